"""Attention by explicit loops, and small parts and contexts to compare with it."""

import math

import torch
from helpers.support import head_norm, model_config

from ablatio.model.build import build_model
from ablatio.model.context import make_context
from ablatio.model.kv_cache import KVCache
from ablatio.registry.kinds import attentions, positions

D, H, WIDTH = 12, 4, 3


def made(name, knobs=None, bias=True, layer=0):
    wiring = {
        "d_model": D,
        "d_head": WIDTH,
        "n_heads": H,
        "n_layers": 1,
        "max_len": 16,
        "layer": layer,
        "scale": WIDTH**-0.5,
        "inner_norm": None,
        "head_norm": head_norm,
    }
    part = attentions.build(name, knobs, bias=bias, dropout=0.0, **wiring).double()
    for p in part.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return part


def context(length, position="none", segments=None, batch=2, mask="causal", opened=None):
    sizes = {"d_model": D, "d_head": WIDTH, "n_heads": H, "n_layers": 1, "max_len": 16}
    part = positions.build(position, {}, causal=mask == "causal", **sizes)
    tokens = torch.zeros(batch, length, dtype=torch.long)
    return make_context(tokens, part, mask, segments, None, torch.float64, opened=opened)


def by_loop(part, x, n_kv, bias, allowed, causal=True):
    """sum_s softmax_s(q_t . k_s / sqrt(d_head) + bias) v_s, computed element by element.  (B, T, d_model) -> same."""
    projections = (part.q_proj, part.k_proj, part.v_proj)
    q, k, v = (p(x).unflatten(-1, (-1, WIDTH)) for p in projections)  # (B, T, heads, d_head)
    batch, length = x.shape[:2]
    heads = torch.zeros(batch, length, H, WIDTH, dtype=x.dtype)
    for b, h, t in torch.cartesian_prod(torch.arange(batch), torch.arange(H), torch.arange(length)).tolist():
        g = h // (H // n_kv)
        seen = [s for s in range(t + 1 if causal else length) if allowed(b, t, s)]
        scores = [math.exp((q[b, t, h] @ k[b, s, g]).item() / math.sqrt(WIDTH) + bias(h, t, s)) for s in seen]
        for s, score in zip(seen, scores, strict=True):
            heads[b, t, h] += score / sum(scores) * v[b, s, g]
    return part.o_proj(heads.flatten(-2))


@torch.no_grad()
def assert_texts_alone(attention, position):
    """With sharp weights, single tokens, packed documents and padded rows give the result of each text alone."""
    sizes = {"d_model": 16, "n_layers": 4, "n_heads": 4, "max_len": 64, "tied": False}
    model = build_model(model_config(attention=attention, position=position, **sizes), 50).double().eval()
    for name, p in model.named_parameters():
        if p.dim() > 1 or name.endswith("removed"):
            torch.nn.init.normal_(p, std=0.4)
    tokens, cache = torch.randint(0, 50, (2, 20)), KVCache()
    segments = torch.tensor([[0] * 20, [-1] * 4 + [0] * 16])
    steps = [model(tokens[:, :6], segments[:, :6], cache)]
    steps += [model(t, cache=cache) for t in tokens[:, 6:].split([1, 5, 1, 1, 1, 1, 1, 1, 1, 1], dim=1)]
    for row, pad in ((0, 0), (1, 4)):
        alone = model(tokens[row : row + 1, pad:])
        torch.testing.assert_close(torch.cat(steps, dim=1)[row, pad:], alone[0], rtol=1e-9, atol=1e-10)
    packed = model(tokens, torch.tensor([[0] * 7 + [1] * 13] * 2))
    alone = torch.cat([model(tokens[:, :7]), model(tokens[:, 7:])], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-10)
