"""Memories and routed feed-forward layers against loops over tokens."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.attention_loops import context
from helpers.support import model_config

from ablatio.config.schema import effective
from ablatio.model.cost.parameters import measure
from ablatio.registry.kinds import mlps
from ablatio.registry.rules import violated_rules

D, FF = 12, 20


def made(name, **knobs):
    wiring = {"d_model": D, "d_ff": FF, "dropout": 0.0, "layer": 0, "n_layers": 1, "bias": True, "inner_norm": None}
    part = mlps.build(name, knobs, activation=lambda g, u: F.silu(g) * u, gated=True, **wiring).double()
    for p in part.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return part


def read(memory, x, keys, heads, top_k):
    """Score all n^2 values of one token (D,), and read the best."""
    y = torch.zeros(D, dtype=x.dtype)
    width = memory.keys.shape[-1]
    for h, q in enumerate(memory.q_proj(x).view(heads, 2, width)):
        q = q / (q.square().mean(-1, keepdim=True) + torch.finfo(q.dtype).eps).sqrt()
        scores = [
            memory.keys[2 * h, i // keys] @ q[0] + memory.keys[2 * h + 1, i % keys] @ q[1] for i in range(keys**2)
        ]
        best = sorted(range(keys**2), key=lambda i: -scores[i].item())[:top_k]
        shares = torch.stack([scores[i] for i in best]).softmax(0)
        y += sum(w * memory.values[i] for w, i in zip(shares, best, strict=True))
    return y


@pytest.mark.oracle("mlp", "float64 loop over all values")
@pytest.mark.parametrize("name", ["product_key", "memory"])
@pytest.mark.parametrize(("keys", "heads", "top_k"), [(5, 2, 3), (3, 1, 9), (4, 3, 6)])
@torch.no_grad()
def test_memory_by_loop(name, keys, heads, top_k):
    part, x = made(name, keys=keys, heads=heads, top_k=top_k, key_width=4), torch.randn(2, 3, D, dtype=torch.float64)
    expected = torch.stack([read(part.memory, t, keys, heads, top_k) for t in x.flatten(0, 1)]).view_as(x)
    if name == "memory":
        expected = part.down_proj(F.silu(part.gate_proj(x)) * expected)
    torch.testing.assert_close(part(x, None), expected, rtol=1e-10, atol=1e-12)


def test_values_that_no_query_reads_get_no_gradient():
    part = made("product_key", keys=6, heads=1, top_k=2)
    part(torch.randn(1, 2, D, dtype=torch.float64), None).sum().backward()
    touched = part.memory.values.grad.abs().sum(1).count_nonzero().item()
    assert 2 <= touched <= 4
    assert part.memory.idle_parameters == (36 - 2) * D


@pytest.mark.oracle("mlp=mixture_of_depths", "float64 loop over the chosen tokens")
@pytest.mark.parametrize("training", [True, False])
def test_depths_by_loop(training):
    part, x = made("mixture_of_depths", capacity=0.3, router_loss=0.5).train(training), torch.randn(2, 7, D).double()
    segments = torch.tensor([[0] * 7, [0] * 5 + [-1] * 2])
    ctx = context(7, segments=segments)
    r = (x @ part.router.weight[0]).detach()
    expected, losses = torch.zeros_like(x), []
    for b in range(2):
        real = [t for t in range(7) if segments[b, t] >= 0]
        chosen = sorted(real, key=lambda t: -r[b, t].item())[:3]
        for t in range(7):
            if t in chosen if training else r[b, t] > 0:
                expected[b, t] = r[b, t] * part.inner(x[b, t], None)
        losses += [-math.log(torch.sigmoid(r[b, t] if t in chosen else -r[b, t])) for t in real]
    torch.testing.assert_close(part(x, ctx), expected, rtol=1e-10, atol=1e-12)
    if training:
        loss = ctx.record.losses["train/depth_router"].item()
        assert loss == pytest.approx(0.5 * sum(losses) / len(losses), rel=1e-9)
    else:
        assert not ctx.record.losses


def test_costs_of_routed_tokens():
    """A router, and the share of the dense layer's products that is computed; all weights are counted."""
    sizes = {"d_model": 16, "n_layers": 1, "max_len": 64}
    dense = measure(model_config(**sizes), 50)
    routed = measure(model_config(mlp={"name": "mixture_of_depths", "capacity": 0.25}, **sizes), 50)
    matrices = dense.parameters - measure(model_config(mlp="none", **sizes), 50).parameters - 16  # without its norm
    assert routed.parameters == dense.parameters + 16
    assert routed.active == dense.active + 16 - round(0.75 * matrices)
    assert routed.flops_per_token == dense.flops_per_token + 2 * 16 - 0.75 * 2 * matrices


def test_what_cannot_be_is_refused():
    config = model_config(mlp={"name": "memory", "keys": 3, "top_k": 10})
    assert [p.fix for p in violated_rules(effective(config))] == ["mlp.top_k=3"]
