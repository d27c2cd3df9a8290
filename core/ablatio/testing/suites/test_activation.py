"""Activations: elementwise (x), or gated (gate, up) of one shape."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ablatio.registry import Entry
from ablatio.testing import probe, samples

KINDS = ("activation",)
F = 12


def _inputs(part: Entry, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Normal numbers, none within 0.01 of 0, where some functions have a kink."""
    raw = [probe.randn(*shape, seed=i, dtype=torch.float64) * 2 for i in range(2 if part.facts["gated"] else 1)]
    return tuple(torch.where(x.abs() < 0.01, x + 0.02, x).to(dtype) for x in raw)


def _made(part: Entry, dtype: torch.dtype = torch.float32) -> Any:
    return samples.activation(part, d_ff=F, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_keeps_shape_and_dtype(part: Entry, dtype: torch.dtype) -> None:
    activation = _made(part, dtype)
    for shape in ((F,), (3, F), (2, 3, F)):
        inputs = _inputs(part, *shape, dtype=dtype)
        with probe.unchanged(part, *inputs), probe.draws_nothing(part, "in forward"):
            y = activation(*inputs)
        probe.same_shape(part, inputs[0], y)


def test_each_row_by_itself(part: Entry) -> None:
    """Elementwise along every axis but the last, where a part with parameters may treat features differently."""
    activation, inputs = _made(part, torch.float64), _inputs(part, 3, 4, F, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    moved = activation(*(x[:, order] for x in inputs))
    probe.near(part, moved, activation(*inputs)[:, order], "positions in another order")
    if "d_ff" not in part.wiring:
        flipped = activation(*(x.flip(-1) for x in inputs))
        probe.near(part, flipped, activation(*inputs).flip(-1), "features in another order (it is elementwise)")


def test_finite_at_extremes(part: Entry) -> None:
    activation = _made(part)
    for value in (1e4, -1e4, 0.0, 1e-30):
        inputs = [torch.full((2, F), value, requires_grad=True) for _ in _inputs(part, 1)]
        y = activation(*inputs)
        probe.finite(part, y, f"at {value:g}")
        for gradient in torch.autograd.grad(y.sum(), inputs):
            probe.finite(part, gradient, f"in the gradient at {value:g}")


def test_gradients(part: Entry) -> None:
    activation = _made(part, torch.float64)
    probe.module_gradients_agree(part, activation, activation, *_inputs(part, 2, F, dtype=torch.float64))


def test_depends_on_each_input(part: Entry) -> None:
    inputs = [x.requires_grad_() for x in _inputs(part, 64, F)]
    gradients = torch.autograd.grad(_made(part)(*inputs).sum(), inputs, allow_unused=True)
    for name, gradient in zip(part.wiring if len(part.wiring) == len(inputs) else ("x",), gradients, strict=False):
        reached = gradient is not None and bool(gradient.any())
        assert reached, f"{probe.label(part)}: the output does not depend on `{name}`"
