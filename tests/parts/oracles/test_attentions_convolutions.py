"""Short convolutions against torch's conv1d on each document, and attention on the convolved tokens."""

import pytest
import torch
import torch.nn.functional as F
from helpers.attention_loops import D, context, made
from helpers.support import model_config

from ablatio.model.build import build_model
from ablatio.model.kv_cache import KVCache
from ablatio.registry.kinds import mlps

SEGMENTS = torch.tensor([[0] * 4 + [1] * 7 + [0] * 3, [2] * 12 + [5] * 2])  # document 0 is split in two


def convolved(x, weight, segments):
    """torch's conv1d (a correlation, so the kernel is reversed) on the tokens of one document at a time."""
    y, width = torch.zeros_like(x), len(weight)
    for b in range(len(x)):
        for d in segments[b].unique():
            own = segments[b] == d
            line = F.pad(x[b, own].T[None], (width - 1, 0))
            y[b, own] = F.conv1d(line, weight.flip(0).T[:, None], groups=x.shape[2])[0].T
    return y


@pytest.mark.oracle("attention=convolution", "torch conv1d on each document")
@pytest.mark.parametrize("width", [1, 2, 5, 30])
@pytest.mark.parametrize("packed", [False, True])
def test_convolution(width, packed):
    part, x = made("convolution", {"width": width}), torch.randn(2, 14, D, dtype=torch.float64)
    segments = SEGMENTS if packed else torch.zeros(2, 14).long()
    mixed = convolved(part.v_proj(x), part.conv.weight, segments)
    expected = part.o_proj(part.g_proj(x) * (mixed + part.shift))
    ours = part(x, context(14, segments=SEGMENTS if packed else None))
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.oracle("attention=conv_mha", "torch conv1d on each document, then gqa")
@pytest.mark.parametrize("on", ["input", "projections", "both"])
@pytest.mark.parametrize("packed", [False, True])
def test_conv_mha_is_mha_on_convolved_tokens(on, packed):
    part, full = made("conv_mha", {"on": on, "n_kv_heads": 2}), made("gqa")
    full.load_state_dict(part.state_dict(), strict=False)
    x, segments = torch.randn(2, 14, D, dtype=torch.float64), SEGMENTS if packed else torch.zeros(2, 14).long()
    ctx = context(14, segments=SEGMENTS if packed else None)
    y = x if on == "projections" else x + convolved(x, part.convs[0].weight, segments)
    if on != "input":
        for name, conv in zip("qkv", list(part.convs)[-3:], strict=True):
            project, weight = getattr(part, f"{name}_proj"), conv.weight
            getattr(full, f"{name}_proj").forward = lambda x, p=project, w=weight: p(x) + convolved(p(x), w, segments)
    torch.testing.assert_close(part(x, ctx), full(y, ctx), rtol=1e-9, atol=1e-11)


@pytest.mark.oracle("mlp=canon", "torch conv1d on each document, then the dense layer's equation")
@pytest.mark.parametrize("on", ["both", "input", "inner"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_canon(on, gated, packed):
    activation = (lambda g, u: F.silu(g) * u) if gated else F.gelu
    wiring = {"d_ff": 7, "activation": activation, "gated": gated, "bias": True, "dropout": 0.0, "layer": 0}
    part = mlps.build("canon", {"on": on}, d_model=D, inner_norm=None, n_layers=1, **wiring).double()
    for p in part.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x, segments = torch.randn(2, 14, D, dtype=torch.float64), SEGMENTS if packed else torch.zeros(2, 14).long()
    y = x if on == "inner" else x + convolved(x, part.on_input.weight, segments)
    inner = [p(y) for p in ((part.gate_proj, part.up_proj) if gated else (part.up_proj,))]
    if on != "input":
        inner = [
            t + convolved(t, w, segments)
            for t, w in zip(inner, part.on_inner.weight.chunk(len(inner), dim=1), strict=True)
        ]
    ours = part(x, context(14, segments=SEGMENTS if packed else None))
    torch.testing.assert_close(ours, part.down_proj(activation(*inner)), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("on", ["both", "input", "inner"])
def test_canon_starts_as_dense(on):
    sizes, tokens = {"d_model": 32, "n_layers": 2}, torch.randint(0, 50, (2, 20))
    a, b = (build_model(model_config(mlp=mlp, **sizes), 50) for mlp in ({"name": "canon", "on": on}, "dense"))
    torch.testing.assert_close(a(tokens), b(tokens))


@pytest.mark.parametrize("on", ["input", "projections", "both"])
def test_conv_mha_starts_as_mha(on):
    sizes = {"d_model": 32, "n_layers": 2}
    a = build_model(model_config(attention={"name": "conv_mha", "on": on}, **sizes), 50)
    b = build_model(model_config(attention="mha", **sizes), 50)
    tokens = torch.randint(0, 50, (2, 20))
    torch.testing.assert_close(a(tokens), b(tokens))


CASES = [
    ({"name": "convolution", "width": 3}, "learned"),
    ({"name": "convolution", "width": 9}, "none"),
    ({"name": "conv_mha", "on": "input"}, "rope"),
    ({"name": "conv_mha", "conv": 1}, "alibi"),
    ({"name": "conv_mha", "conv": 7}, "rope"),
    ({"name": "conv_mha", "on": "both"}, "rope"),
]


@pytest.mark.parametrize("attention, position", CASES, ids=str)
@pytest.mark.parametrize("mlp", ["dense", "canon"])
@torch.no_grad()
def test_decoding_and_padding(attention, position, mlp):
    """Prompts shorter than the convolution, single tokens and padded rows give the result of each text alone."""
    sizes = {"d_model": 16, "n_layers": 3, "n_heads": 4, "max_len": 64, "tied": False}
    model = build_model(model_config(attention=attention, position=position, mlp=mlp, **sizes), 50).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    tokens, cache = torch.randint(0, 50, (2, 20)), KVCache()
    segments = torch.tensor([[0] * 20, [-1] * 2 + [0] * 18])
    steps = [model(tokens[:, :3], segments[:, :3], cache)]
    steps += [model(t, cache=cache) for t in tokens[:, 3:].split([1, 5, 1, 1, 1, 1, 1, 1, 5], dim=1)]
    for row, pad in ((0, 0), (1, 2)):
        alone = model(tokens[row : row + 1, pad:])
        torch.testing.assert_close(torch.cat(steps, dim=1)[row, pad:], alone[0], rtol=1e-9, atol=1e-10)
    assert all(t.shape[1] <= 8 for state in cache._states.values() for t in state)


@pytest.mark.parametrize("name", ["convolution", "conv_mha"])
def test_gradients_by_differences(name):
    part, x = made(name), torch.randn(2, 5, D, dtype=torch.float64, requires_grad=True)
    ctx = context(5, segments=torch.tensor([[0, 0, 1, 1, 1], [0] * 5]))
    assert torch.autograd.gradcheck(lambda x: part(x, ctx), (x,))
