"""Norms: (..., D) -> (..., D), independently for each position."""

import pytest
import torch

from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts

KINDS = ("norm",)
D = 16


def test_keeps_shape_and_dtype(part: PartSpec) -> None:
    norm = sample_parts.made(part, d_model=D)
    for shape in ((D,), (3, D), (2, 3, D), (2, 3, 4, D)):
        x = checks.randn(*shape)
        with checks.unchanged(part, x), checks.draws_nothing(part, "in forward"):
            checks.same_shape(part, x, norm(x))
    crossed = checks.randn(3, D, 2).transpose(1, 2)
    checks.near(part, norm(crossed), norm(crossed.contiguous()), "an input that is not contiguous", 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bfloat16", "float64"])
def test_runs_in(part: PartSpec, dtype: torch.dtype) -> None:
    norm = sample_parts.made(part, d_model=D)
    x = checks.randn(2, 3, D)
    y = norm.to(dtype)(x.to(dtype))
    checks.same_shape(part, x.to(dtype), y)
    checks.near(part, y.float(), sample_parts.made(part, d_model=D)(x), f"{dtype} and float32", 0.05)


def test_takes_bfloat16_beside_float32_weights(part: PartSpec) -> None:
    """Under autocast a norm may get bfloat16 inputs while its gains are float32."""
    norm, x = sample_parts.made(part, d_model=D), checks.randn(2, 3, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x.bfloat16())
    checks.near(part, y.float(), norm(x), "a bfloat16 input under autocast and float32", 0.05)


def test_each_position_by_itself(part: PartSpec) -> None:
    norm = sample_parts.made(part, d_model=D).double()
    x = checks.randn(2, 3, D, dtype=torch.float64)
    alone = torch.stack([torch.stack([norm(position) for position in row]) for row in x])
    checks.near(part, norm(x), alone, "all positions at once and each alone (a norm takes the last axis only)")


def test_invariance_holds_at_all_sizes(part: PartSpec) -> None:
    """If a factor of 10 (or a shift of 1) leaves the output unchanged, so does any other factor (or shift)."""
    norm = sample_parts.made(part, d_model=D).double()
    x = checks.randn(5, D, dtype=torch.float64)
    y = norm(x)
    if (norm(10 * x) - y).abs().max() < 1e-4:
        for factor in (2.0, 1e3, 1e6):
            checks.near(part, norm(factor * x), y, f"scale invariance at 10 and at {factor:g}", 1e-4)
    if (norm(x + 1) - y).abs().max() < 1e-4:
        for shift in (-3.0, 100.0):
            checks.near(part, norm(x + shift), y, f"shift invariance at 1 and at {shift:g}", 1e-4)


def test_finite_at_extremes(part: PartSpec) -> None:
    norm = sample_parts.made(part, d_model=D)
    x = checks.randn(3, D)
    for name, value in (("zero", x * 0), ("tiny", x * 1e-12), ("large", x * 1e4), ("huge", x * 1e12)):
        value = value.requires_grad_()
        y = norm(value)
        checks.finite(part, y, f"for a {name} input")
        (gradient,) = torch.autograd.grad(y.sum(), value)
        checks.finite(part, gradient, f"in the gradient at a {name} input")


def test_gradients(part: PartSpec) -> None:
    norm = sample_parts.made(part, d_model=5).double()
    checks.module_gradients_agree(part, norm, norm, checks.randn(2, 3, 5, dtype=torch.float64))


def test_gradient_reaches_every_parameter(part: PartSpec) -> None:
    norm = sample_parts.made(part, d_model=D)
    x = checks.randn(4, D).requires_grad_()
    (norm(x) * checks.randn(4, D, seed=1)).sum().backward()
    assert x.grad is not None and x.grad.any(), f"{checks.label(part)}: no gradient reaches its input"
    lost = checks.without_gradient(norm)
    assert not lost, f"{checks.label(part)}: no gradient reaches {', '.join(lost)}"
