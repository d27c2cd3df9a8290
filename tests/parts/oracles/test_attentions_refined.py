"""Knobs of softmax attention (XSA, shifted keys, query gains, SSMax, sparse gates) and shared keys, by loops."""

import math

import pytest
import torch
from helpers.attention_loops import WIDTH, D, H, assert_texts_alone, context, made
from helpers.support import model_config

from ablatio.config.schema import effective
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.kv_cache import KVCache
from ablatio.registry.rules import violated_rules

LOOPED = [
    {},
    {"exclusive": "full"},
    {"exclusive": "learned"},
    {"key_offset": 0.67},
    {"query_gain": 1.5},
    {"ssmax": True},
    {"exclusive": "learned", "key_offset": 0.34, "query_gain": 0.7, "ssmax": True},
]
PARTS = [
    *(("mha", knobs) for knobs in LOOPED),
    *(("gqa", {"n_kv_heads": 2} | knobs) for knobs in (LOOPED[1], LOOPED[-1])),
    ("mqa", LOOPED[-1]),
    ("sliding", {"window": 100} | LOOPED[-1]),
    ("gated", {"per": "head", "channels": 5} | LOOPED[-1]),
    ("gated", {"per": "element", "channels": 2}),
]


def attended(part, knobs, x):
    """One document through the part, a query and a head at a time.  (T, D) -> same."""
    q, k, v = (p(x).unflatten(-1, (-1, WIDTH)) for p in (part.q_proj, part.k_proj, part.v_proj))  # (T, heads, d_head)
    moved = round(knobs.get("key_offset", 0) * WIDTH)
    if moved:
        shifted = k.clone()
        shifted[1:, :, WIDTH - moved :] = k[:-1, :, WIDTH - moved :]
        k = shifted
    outputs = torch.zeros(len(x), H, WIDTH, dtype=x.dtype)
    for t in range(len(x)):
        for h in range(H):
            g = h // (H // k.shape[1])
            query = q[t, h] / math.sqrt(WIDTH)
            if "query_gain" in knobs:
                query = query * part.gain[h]
            if "ssmax" in knobs:
                query = query * part.sharpness[h] * math.log(t + 1)
            y = (k[: t + 1, g] @ query).softmax(0) @ v[: t + 1, g]
            along = v[t, g] / v[t, g].norm()
            if knobs.get("exclusive") == "full":
                y = y - (y @ along) * along
            elif knobs.get("exclusive") == "learned":
                y = y - math.tanh(part.removed[h]) * (y @ along) * along
            if "channels" in knobs:
                gate = torch.sigmoid(part.g_proj(x[t, : knobs["channels"]]))
                y = y * (gate[h] if knobs["per"] == "head" else gate.view(H, WIDTH)[h])
            outputs[t, h] = y
    return part.o_proj(outputs.flatten(1))


@pytest.mark.oracle("attention", "float64 loop over queries and heads")
@pytest.mark.parametrize(("name", "knobs"), PARTS, ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x)))
@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_refinements_by_loop(name, knobs, packed):
    part, x = made(name, knobs), torch.randn(2, 11, D, dtype=torch.float64)
    segments = torch.tensor([[0] * 4 + [1] * 4 + [0] * 3, [0] * 9 + [5] * 2]) if packed else torch.zeros(2, 11).long()
    expected = torch.zeros_like(x)
    for b in range(2):
        for d in segments[b].unique():
            expected[b, segments[b] == d] = attended(part, knobs, x[b, segments[b] == d])
    ours = part(x, context(11, segments=segments if packed else None))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


def test_where_the_learned_refinements_start():
    """A learned XSA starts at none of it; s log n averages to 1 over the lengths up to max_len."""
    part = made("mha", {"exclusive": "learned", "ssmax": True, "query_gain": 1.5})
    fresh = build_model(model_config(attention={"name": "mha", "ssmax": True, "query_gain": 1.5}, max_len=300), 50)
    scores = fresh.model.layers[0].self_attn
    assert scores.sharpness[0].item() * sum(math.log(n) for n in range(1, 301)) / 300 == pytest.approx(1.0, rel=1e-5)
    assert (scores.gain == 1.5).all() and part.removed.shape == (H,)
    learned = build_model(model_config(attention={"name": "mha", "exclusive": "learned"}), 50)
    plain, tokens = build_model(model_config(attention="mha"), 50), torch.randint(0, 50, (2, 9))
    assert torch.equal(learned(tokens), plain(tokens))


def test_exclusive_attention_is_orthogonal_to_the_own_value():
    part, x = made("mha", {"exclusive": "full"}), torch.randn(2, 7, D, dtype=torch.float64)
    y = part.heads(x, context(7)).unflatten(-1, (H, WIDTH))
    assert (y * part.v_proj(x).unflatten(-1, (H, WIDTH))).sum(-1).abs().max() < 1e-12


@pytest.mark.oracle("attention=cross_layer", "two layers by a float64 loop")
@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_cross_layer_uses_the_keys_and_values_of_the_layer_before(packed):
    first, second = (made("cross_layer", {"n_kv_heads": 2}, layer=i) for i in (2, 3))
    x, y = torch.randn(2, 2, 9, D, dtype=torch.float64)
    segments = torch.tensor([[0] * 4 + [1] * 5, [0] * 9]) if packed else torch.zeros(2, 9).long()
    ctx = context(9, segments=segments if packed else None)
    ours, expected = (first(x, ctx), second(y, ctx)), (torch.zeros_like(x), torch.zeros_like(x))
    q = [part.q_proj(z).unflatten(-1, (H, WIDTH)) for part, z in ((first, x), (second, y))]
    k, v = (p(x).unflatten(-1, (2, WIDTH)) for p in (first.k_proj, first.v_proj))
    heads = torch.zeros(2, 2, 9, H, WIDTH, dtype=torch.float64)
    for i, b, t, h in torch.cartesian_prod(*(torch.arange(n) for n in (2, 2, 9, H))).tolist():
        seen = (segments[b, : t + 1] == segments[b, t]).nonzero()[:, 0]
        shares = (k[b, seen, h // 2] @ q[i][b, t, h] / math.sqrt(WIDTH)).softmax(0)
        heads[i, b, t, h] = shares @ v[b, seen, h // 2]
    expected = [part.o_proj(z.flatten(-2)) for part, z in zip((first, second), heads, strict=True)]
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert not any(n.startswith(("k_", "v_")) for n, _ in second.named_parameters())


REFINED = {"exclusive": "learned", "key_offset": 0.5, "query_gain": 1.5, "ssmax": True}
DECODED = [
    {"name": "mha", **REFINED},
    {"name": "sliding", "window": 5, **REFINED},
    {"name": "gated", "per": "head", "channels": 3, **REFINED},
    {"name": "cross_layer", "share": 2, "n_kv_heads": 2},
    {"name": "cross_layer", "share": 3, "qk_norm": "rmsnorm"},
]


@pytest.mark.parametrize("attention", DECODED, ids=lambda a: "-".join(map(str, a.values())))
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_decoding_packing_and_padding(attention, position):
    assert_texts_alone(attention, position)


def test_a_group_of_layers_caches_once():
    config = model_config(attention={"name": "cross_layer", "share": 2}, n_layers=4)
    plain, cache, other = model_config(attention="mha", n_layers=4), KVCache(), KVCache()
    with torch.no_grad():
        build_model(config, 50)(torch.ones(1, 5).long(), cache=cache)
        build_model(plain, 50)(torch.ones(1, 5).long(), cache=other)
    assert cache.bytes_per_token == other.bytes_per_token / 2 > 0


def test_what_cannot_be_is_refused():
    config = model_config(attention={"name": "cross_layer"}, n_layers=4, distinct_layers=2)
    assert [p.fix for p in violated_rules(effective(config))] == ["attention=mha"]
    config = model_config(attention={"name": "gated", "channels": 99}, d_model=16)
    assert [p.fix for p in violated_rules(effective(config))] == ["attention.channels=16"]
    with pytest.raises(UserError, match="layer 2, which has another attention"):
        made("cross_layer", layer=3)(torch.randn(2, 5, D, dtype=torch.float64), context(5))
