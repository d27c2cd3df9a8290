"""Norms: (..., D) -> (..., D), each position by itself."""

import pytest
import torch

from ablatio.registry import Entry
from ablatio.testing import probe, samples

KINDS = ("norm",)
D = 16


def test_keeps_shape_and_dtype(part: Entry) -> None:
    norm = samples.made(part, d_model=D)
    for shape in ((D,), (3, D), (2, 3, D), (2, 3, 4, D)):
        x = probe.randn(*shape)
        with probe.unchanged(part, x), probe.draws_nothing(part, "in forward"):
            probe.same_shape(part, x, norm(x))
    crossed = probe.randn(3, D, 2).transpose(1, 2)
    probe.near(part, norm(crossed), norm(crossed.contiguous()), "an input that is not contiguous", 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bfloat16", "float64"])
def test_runs_in(part: Entry, dtype: torch.dtype) -> None:
    norm = samples.made(part, d_model=D)
    x = probe.randn(2, 3, D)
    y = norm.to(dtype)(x.to(dtype))
    probe.same_shape(part, x.to(dtype), y)
    probe.near(part, y.float(), samples.made(part, d_model=D)(x), f"{dtype} and float32", 0.05)


def test_takes_bfloat16_beside_float32_weights(part: Entry) -> None:
    """Under autocast a norm of a sublayer's output, or of queries, gets bfloat16; its own gains are float32."""
    norm, x = samples.made(part, d_model=D), probe.randn(2, 3, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x.bfloat16())
    probe.near(part, y.float(), norm(x), "a bfloat16 input under autocast and float32", 0.05)


def test_each_position_by_itself(part: Entry) -> None:
    norm = samples.made(part, d_model=D).double()
    x = probe.randn(2, 3, D, dtype=torch.float64)
    alone = torch.stack([torch.stack([norm(position) for position in row]) for row in x])
    probe.near(part, norm(x), alone, "all positions at once and each alone (a norm takes the last axis only)")


def test_invariance_holds_at_all_sizes(part: Entry) -> None:
    """Where a tenfold (or shifted) input gives the same output, any other factor (or shift) has to as well."""
    norm = samples.made(part, d_model=D).double()
    x = probe.randn(5, D, dtype=torch.float64)
    y = norm(x)
    if (norm(10 * x) - y).abs().max() < 1e-4:
        for factor in (2.0, 1e3, 1e6):
            probe.near(part, norm(factor * x), y, f"scale invariance at 10 and at {factor:g}", 1e-4)
    if (norm(x + 1) - y).abs().max() < 1e-4:
        for shift in (-3.0, 100.0):
            probe.near(part, norm(x + shift), y, f"shift invariance at 1 and at {shift:g}", 1e-4)


def test_finite_at_extremes(part: Entry) -> None:
    norm = samples.made(part, d_model=D)
    x = probe.randn(3, D)
    for name, value in (("zero", x * 0), ("tiny", x * 1e-12), ("large", x * 1e4), ("huge", x * 1e12)):
        value = value.requires_grad_()
        y = norm(value)
        probe.finite(part, y, f"for a {name} input")
        (gradient,) = torch.autograd.grad(y.sum(), value)
        probe.finite(part, gradient, f"in the gradient at a {name} input")


def test_gradients(part: Entry) -> None:
    norm = samples.made(part, d_model=5).double()
    probe.module_gradients_agree(part, norm, norm, probe.randn(2, 3, 5, dtype=torch.float64))


def test_gradient_reaches_every_parameter(part: Entry) -> None:
    norm = samples.made(part, d_model=D)
    x = probe.randn(4, D).requires_grad_()
    (norm(x) * probe.randn(4, D, seed=1)).sum().backward()
    assert x.grad is not None and x.grad.any(), f"{probe.label(part)}: no gradient reaches its input"
    lost = probe.without_gradient(norm)
    assert not lost, f"{probe.label(part)}: no gradient reaches {', '.join(lost)}"
