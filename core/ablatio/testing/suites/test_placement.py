"""Placements: x, a sublayer and its norms -> (B, T, D)."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablatio.model.builder import Sublayer, n_norms
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts

KINDS = ("placement",)
D = 8
WIRING: dict[str, Any] = {
    "d_model": D, "n_layers": 4, "sublayer": 0, "side": "decoder", "encoder_layers": 0, "decoder_layers": 4,
}  # fmt: skip


SUBLAYERS: tuple[Sublayer, ...] = ("attention", "mlp")


def _made(part: PartSpec, around: Sublayer = "attention", layer: int = 1) -> tuple[object, nn.Module]:
    """The placement, in eval mode and float64, and as many norms as it wants."""
    placement = sample_parts.made(part, layer=layer, around=around, **WIRING)
    norms = [nn.LayerNorm(D).double() for _ in range(n_norms(part.facts, around, layer))]
    placement = placement.double().eval() if isinstance(placement, nn.Module) else placement
    return placement, norms[0] if len(norms) == 1 else nn.ModuleList(norms)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("around", SUBLAYERS)
def test_wraps_the_sublayer(part: PartSpec, around: Sublayer, layer: int) -> None:
    placement, norms = _made(part, around, layer)
    x, calls = checks.randn(2, 3, D, dtype=torch.float64), []

    def sublayer(h: Tensor) -> Tensor:
        calls.append(h)
        return h.tanh()

    stream = _opened(part, x)
    with checks.unchanged(part, stream), checks.draws_nothing(part, "when called"):
        checks.same_shape(part, stream, placement(stream, sublayer, norms))  # type: ignore[operator]
    assert calls[0].shape == x.shape, (
        f"{checks.label(part)}: the sublayer got {tuple(calls[0].shape)}, not {tuple(x.shape)}"
    )
    assert len(calls) == 1, f"{checks.label(part)}: calls its sublayer {len(calls)} times; expected once"


def _opened(part: PartSpec, x: Tensor) -> Tensor:
    """The residual stream that the placement makes of x: x itself, unless it says otherwise."""
    ends = sample_parts.made(part, layer=None, around="both", **WIRING)
    if not hasattr(ends, "open"):
        return x
    assert hasattr(ends, "close"), f"{checks.label(part)}: has `open` and no `close`"
    stream: Tensor = ends.open(x)
    checks.same_shape(part, x, ends.close(stream, nn.Identity()), "closed stream")
    return stream


def test_gain_is_a_number(part: PartSpec) -> None:
    gain = getattr(_made(part)[0], "gain", None)
    number = isinstance(gain, int | float) and math.isfinite(gain) and gain > 0
    assert number, f"{checks.label(part)}: `gain` is {gain!r}; expected a positive number (1.0 for no change)"


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("around", SUBLAYERS)
def test_norms_and_sublayer_are_used(part: PartSpec, around: Sublayer, layer: int) -> None:
    placement, norms = _made(part, around, layer)
    inner = nn.Linear(D, D).double()
    x = checks.randn(2, 3, D, dtype=torch.float64).requires_grad_()
    # A placement may start closed (rezero): every parameter is opened first.
    with torch.no_grad():
        for p in placement.parameters() if isinstance(placement, nn.Module) else ():
            p.add_(0.5)
    y = placement(_opened(part, x), inner, norms)  # type: ignore[operator]
    (y * checks.randn(*y.shape, seed=1, dtype=torch.float64)).sum().backward()
    assert x.grad is not None and x.grad.any(), f"{checks.label(part)}: no gradient reaches x"
    lost = [*checks.without_gradient(norms), *checks.without_gradient(inner)]
    assert not lost, f"{checks.label(part)}: no gradient reaches {', '.join(lost)} of the norms and the sublayer"
