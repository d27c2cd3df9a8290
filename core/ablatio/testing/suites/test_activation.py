"""Activations: elementwise (x), or gated (gate, up) of one shape."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts

KINDS = ("activation",)
F = 12


def _inputs(part: PartSpec, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Normal numbers, none within 0.01 of 0, where some functions have a kink."""
    raw = [checks.randn(*shape, seed=i, dtype=torch.float64) * 2 for i in range(2 if part.facts["gated"] else 1)]
    return tuple(torch.where(x.abs() < 0.01, x + 0.02, x).to(dtype) for x in raw)


def _made(part: PartSpec, dtype: torch.dtype = torch.float32) -> Any:
    return sample_parts.activation(part, d_ff=F, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_keeps_shape_and_dtype(part: PartSpec, dtype: torch.dtype) -> None:
    activation = _made(part, dtype)
    for shape in ((F,), (3, F), (2, 3, F)):
        inputs = _inputs(part, *shape, dtype=dtype)
        with checks.unchanged(part, *inputs), checks.draws_nothing(part, "in forward"):
            y = activation(*inputs)
        checks.same_shape(part, inputs[0], y)


def test_each_row_by_itself(part: PartSpec) -> None:
    """Elementwise along every axis but the last, where a part with parameters may treat features differently."""
    activation, inputs = _made(part, torch.float64), _inputs(part, 3, 4, F, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    moved = activation(*(x[:, order] for x in inputs))
    checks.near(part, moved, activation(*inputs)[:, order], "positions in another order")
    if "d_ff" not in part.wiring:
        flipped = activation(*(x.flip(-1) for x in inputs))
        checks.near(part, flipped, activation(*inputs).flip(-1), "features in another order (it is elementwise)")


def test_finite_at_extremes(part: PartSpec) -> None:
    activation = _made(part)
    for value in (1e4, -1e4, 0.0, 1e-30):
        inputs = [torch.full((2, F), value, requires_grad=True) for _ in _inputs(part, 1)]
        y = activation(*inputs)
        checks.finite(part, y, f"at {value:g}")
        for gradient in torch.autograd.grad(y.sum(), inputs):
            checks.finite(part, gradient, f"in the gradient at {value:g}")


def test_gradients(part: PartSpec) -> None:
    activation = _made(part, torch.float64)
    checks.module_gradients_agree(part, activation, activation, *_inputs(part, 2, F, dtype=torch.float64))


def test_depends_on_each_input(part: PartSpec) -> None:
    inputs = [x.requires_grad_() for x in _inputs(part, 64, F)]
    gradients = torch.autograd.grad(_made(part)(*inputs).sum(), inputs, allow_unused=True)
    for name, gradient in zip(part.wiring if len(part.wiring) == len(inputs) else ("x",), gradients, strict=False):
        reached = gradient is not None and bool(gradient.any())
        assert reached, f"{checks.label(part)}: the output does not depend on `{name}`"
