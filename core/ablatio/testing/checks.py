"""Checks that several suites share.

A failure says what the part did, and what was expected.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError, gradcheck
from torch.func import functional_call

from ablatio.model.decoding.cuda_graph import Step
from ablatio.registry.registry import PartSpec, Registry
from ablatio.training.scheduled_settings import on_groups


class Unreplayed:
    """In place of CUDA graphs: a step is run where a graph would be replayed."""

    def __call__(self, step: Step, tokens: Tensor) -> Step:
        """Return the step itself, in place of its replay."""
        return step

    def eager(self, step: Step, tokens: Tensor) -> Tensor:
        """Run the step."""
        return step(tokens)


def label(part: PartSpec) -> str:
    """Name of a part in messages: `norm=mine of my-norms 1.0`."""
    return f"{part.kind}={part.name} of {part.distribution}"


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed numbers, independent of torch's global random state."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def same_shape(part: PartSpec, x: Tensor, y: Tensor, what: str = "output") -> None:
    """Check that `y` is a tensor with the shape and dtype of `x`."""
    assert isinstance(y, Tensor), f"{label(part)}: the {what} is a {type(y).__name__}; expected a tensor"
    assert y.shape == x.shape, f"{label(part)}: {tuple(x.shape)} went in, {tuple(y.shape)} came out; expected the same"
    assert y.dtype == x.dtype, f"{label(part)}: {x.dtype} went in, {y.dtype} came out; expected the same"


def finite(part: PartSpec, y: Tensor, when: str) -> None:
    """Check that all values are finite."""
    bad = int((~torch.isfinite(y)).sum())
    assert not bad, f"{label(part)}: {bad} of {y.numel()} values are NaN or infinite {when}"


def near(part: PartSpec, a: Tensor, b: Tensor, what: str, tolerance: float = 1e-9) -> None:
    """Check that the largest difference, relative to the largest value of `b`, is within the tolerance."""
    assert a.shape == b.shape, f"{label(part)}: {what}: shapes {tuple(a.shape)} and {tuple(b.shape)}"
    size = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
    gap = float((a - b).detach().abs().max()) / size if b.numel() else 0.0
    assert gap <= tolerance, f"{label(part)}: {what}: they differ by {gap:.3g}; expected at most {tolerance:g}"


@contextmanager
def unchanged(part: PartSpec, *inputs: Tensor) -> Iterator[None]:
    """Context manager: the part must not modify its inputs in place."""
    before = [x.detach().clone() for x in inputs]
    yield
    for i, (x, old) in enumerate(zip(inputs, before, strict=True)):
        same = torch.equal(x.detach(), old)
        assert same, f"{label(part)}: input {i} was changed in place; work on a copy (x + 1, not x += 1)"


@contextmanager
def draws_nothing(part: PartSpec, when: str) -> Iterator[None]:
    """Context manager: the part must not use torch's global random state."""
    before = torch.random.get_rng_state()
    yield
    same = torch.equal(before, torch.random.get_rng_state())
    assert same, f"{label(part)}: draws from torch's global random state {when}; use the generator it receives"


def gradients_agree(part: PartSpec, function: Callable[..., Any], *inputs: Tensor) -> None:
    """Compare autograd with finite differences in float64; inputs that require no gradient are constants."""
    wanted = [x for x in inputs if x.requires_grad]
    if not wanted:
        return
    quick = {"check_undefined_grad": False, "check_grad_dtypes": True}
    try:
        gradcheck(function, inputs, eps=1e-6, atol=1e-5, rtol=1e-3, nondet_tol=1e-10, fast_mode=True, **quick)
    except GradcheckError as error:
        pytest.fail(f"{label(part)}: autograd's gradient differs from finite differences: {error}")


def module_gradients_agree(part: PartSpec, module: Any, function: Callable[..., Any], *inputs: Tensor) -> None:
    """The same for the inputs and all parameters of a module; `function` calls the module on the inputs."""
    held = dict(module.named_parameters()) if isinstance(module, nn.Module) else {}
    constants = [x for x in inputs if not x.is_floating_point()]
    moving = [x.detach().clone().requires_grad_() for x in inputs if x.is_floating_point()]
    weights = [p.detach().clone().requires_grad_() for p in held.values()]

    def call(*values: Tensor) -> Any:
        given = values[: len(moving)]
        if not held:
            return function(*given, *constants)
        called = _Caller(module, function)
        changed = {f"module.{name}": value for name, value in zip(held, values[len(moving) :], strict=True)}
        return functional_call(called, changed, (*given, *constants))

    gradients_agree(part, call, *moving, *weights)


class _Caller(nn.Module):
    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def without_gradient(module: nn.Module) -> list[str]:
    """Names of trainable parameters whose gradient is missing or all zero."""
    return [n for n, p in module.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]


@contextmanager
def built_and_set(part: PartSpec, knobs: Mapping[str, Any], later: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Context in which the part is built with `knobs` and then set to the values `later`, as a schedule would.

    Yields a list to which the objects that were set are added.
    """
    build, changed = Registry.build, list[Any]()

    def patched(self: Registry[Any], name: str, given: Mapping[str, Any] | None = None, **wiring: Any) -> Any:
        if (self.kind, name) != (part.kind, part.name):
            return build(self, name, given, **wiring)
        made = build(self, name, {**(given or {}), **knobs}, **wiring)
        for key, value in later.items():
            if isinstance(made, torch.optim.Optimizer):
                on_groups(made, key, knobs[key])(value)
            elif hasattr(made, key):
                setattr(made, key, value)
            else:  # a layer that does not have the part, such as a dense one between layers with experts
                continue
            changed.append(made)
        return made

    Registry.build = patched  # type: ignore[method-assign, assignment]
    try:
        yield changed
    finally:
        Registry.build = build  # type: ignore[method-assign]
