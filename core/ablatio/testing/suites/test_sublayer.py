"""Attention, mlp and block in isolation: (B, T, D) -> (B, T, D)."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ablatio.model.records import Store
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts
from ablatio.testing.observe import isolated

KINDS = ("attention", "mlp", "block")


def test_keeps_shape_and_dtype(part: PartSpec) -> None:
    module, ctx, width = sample_parts.sublayer(part)
    x = checks.randn(2, 3, width, dtype=torch.float64)
    with checks.unchanged(part, x), checks.draws_nothing(part, "in eval mode"):
        checks.same_shape(part, x, module.eval()(x, ctx))


def test_gradients(part: PartSpec) -> None:
    module, ctx, width = sample_parts.sublayer(part)
    x = checks.randn(2, 3, width, dtype=torch.float64)

    def call(x: Tensor) -> Tensor:
        """Call it in a pass of its own: what layers hand to one another does not outlive it."""
        y: Tensor = module(x, replace(ctx, _shared=Store(), _passed_on=Store()))
        return y

    checks.module_gradients_agree(part, module.eval(), call, x)


def test_extra_losses_are_scalars(part: PartSpec) -> None:
    module, ctx, width = sample_parts.sublayer(part)
    module.train()(checks.randn(2, 3, width, dtype=torch.float64), ctx)
    named = {**ctx.record.losses, **ctx.record.measures}
    for name, value in named.items():
        scalar = isinstance(value, Tensor) and value.dim() == 0
        assert scalar, f"{checks.label(part)}: {name} got {value!r}; expected a scalar tensor"
        checks.finite(part, value, f"in {name}")
    said = set(part.facts.get("metrics", ()))
    unknown = sorted(named.keys() - said)
    assert not unknown, f"{checks.label(part)}: gives {unknown}, which `metrics` {sorted(said)} does not name"


def test_dropout_is_used(part: PartSpec) -> None:
    if "dropout" not in part.wiring:
        pytest.skip("it takes no dropout")
    module, ctx, width = sample_parts.sublayer(part, dropout=0.5)
    x = checks.randn(2, 3, width, dtype=torch.float64)
    with isolated(1):
        a, b = module.train()(x, ctx), module(x, ctx)
        c, d = module.eval()(x, ctx), module(x, ctx)
    assert not torch.equal(a, b), f"{checks.label(part)}: asks for `dropout` and gives the same twice in training"
    assert torch.equal(c, d), f"{checks.label(part)}: gives different outputs in eval mode; expected no dropout"


def test_bias_is_used(part: PartSpec) -> None:
    if "bias" not in part.wiring:
        pytest.skip("it takes no bias")
    with_bias, without = (sample_parts.sublayer(part, bias=bias)[0] for bias in (True, False))
    more, less = (sum(p.numel() for p in m.parameters()) for m in (with_bias, without))
    assert more > less, f"{checks.label(part)}: asks for `bias` and has {more} parameters with it, {less} without"
