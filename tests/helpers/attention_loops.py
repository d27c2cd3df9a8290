"""Attention by explicit loops, and small parts and contexts to compare with it."""

import math

import torch
from helpers.support import head_norm

from ablatio.model.context import make_context
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
