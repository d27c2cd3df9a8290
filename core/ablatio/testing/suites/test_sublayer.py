"""Attention, mlp and block by themselves: (B, T, D) -> (B, T, D)."""

from dataclasses import replace

import torch
from torch import Tensor

from ablatio.registry import Entry
from ablatio.testing import probe, samples
from ablatio.testing.observe import isolated

KINDS = ("attention", "mlp", "block")


def test_keeps_shape_and_dtype(part: Entry) -> None:
    module, ctx, width = samples.sublayer(part)
    x = probe.randn(2, 3, width, dtype=torch.float64)
    with probe.unchanged(part, x), probe.draws_nothing(part, "in eval mode"):
        probe.same_shape(part, x, module.eval()(x, ctx))


def test_gradients(part: Entry) -> None:
    module, ctx, width = samples.sublayer(part)
    x = probe.randn(2, 3, width, dtype=torch.float64)
    # Each call is a pass of its own: what layers hand to one another does not outlive it.
    probe.module_gradients_agree(part, module.eval(), lambda x: module(x, replace(ctx, _shared={})), x)


def test_extra_losses_are_scalars(part: Entry) -> None:
    module, ctx, width = samples.sublayer(part)
    module.train()(probe.randn(2, 3, width, dtype=torch.float64), ctx)
    named = {**ctx.record.losses, **ctx.record.measures}
    for name, value in named.items():
        scalar = isinstance(value, Tensor) and value.dim() == 0
        assert scalar, f"{probe.label(part)}: {name} got {value!r}, a scalar tensor was expected"
        probe.finite(part, value, f"in {name}")
    said = set(part.facts.get("metrics", ()))
    unknown = sorted(named.keys() - said)
    assert not unknown, f"{probe.label(part)}: gives {unknown}, which `metrics` {sorted(said)} does not name"


def test_dropout_is_used(part: Entry) -> None:
    if "dropout" not in part.wiring:
        return
    module, ctx, width = samples.sublayer(part, dropout=0.5)
    x = probe.randn(2, 3, width, dtype=torch.float64)
    with isolated(1):
        a, b = module.train()(x, ctx), module(x, ctx)
        c, d = module.eval()(x, ctx), module(x, ctx)
    assert not torch.equal(a, b), f"{probe.label(part)}: asks for `dropout` and gives the same twice in training"
    assert torch.equal(c, d), f"{probe.label(part)}: gives different outputs in eval mode; no dropout was expected"


def test_bias_is_used(part: Entry) -> None:
    if "bias" not in part.wiring:
        return
    with_bias, without = (samples.sublayer(part, bias=bias)[0] for bias in (True, False))
    more, less = (sum(p.numel() for p in m.parameters()) for m in (with_bias, without))
    assert more > less, f"{probe.label(part)}: asks for `bias` and has {more} parameters with it, {less} without"
