"""Sparse attention against loops over pairs, transformers' Mistral and Longformer, and its cached decoding."""

import pytest
import torch
from helpers.attention_loops import D, H, by_loop, context, made
from helpers.support import model_config

from ablatio.config.schema import effective
from ablatio.model.build import build_model
from ablatio.model.context import EncoderOutput, make_context
from ablatio.model.kv_cache import KVCache
from ablatio.registry.kinds import positions
from ablatio.registry.rules import violated_rules

# Each returns, as written in its paper, whether t sees s.
PATTERNS = {
    "sliding": ({"window": 3}, lambda t, s: s in range(t - 2, t + 3)),
    "lambda_window": ({"window": 2, "first": 2}, lambda t, s: s in (t - 1, t, t + 1) or s in (0, 1)),
    "sparse": ({"stride": 3}, lambda t, s: s in range(t - 3, t + 4) or s in {t + 3 * i for i in range(-9, 9)}),
    "sparse-fixed": (
        {"kind": "fixed", "stride": 4, "summary": 2},
        lambda t, s: t // 4 == s // 4 or s in (2, 3, 6, 7, 10, 11, 14, 15),
    ),
    "bigbird": (
        {"block": 2, "window": 3, "global_tokens": 1, "random": 0},
        lambda t, s: abs(t // 2 - s // 2) <= 1 or 0 in (t, s),
    ),
}


@pytest.mark.oracle("attention", "float64 loop")
@pytest.mark.parametrize("case", PATTERNS)
@pytest.mark.parametrize("position", ["none", "alibi"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mask", ["causal", "full"])
def test_patterns_by_loop(case, position, packed, mask):
    knobs, allowed = PATTERNS[case]
    part = made(case.split("-")[0], knobs | {"n_kv_heads": 2})
    x = torch.randn(2, 11, D, dtype=torch.float64)
    segments = torch.tensor([[0] * 4 + [1] * 6 + [2], [0] * 9 + [5] * 2]) if packed else torch.zeros(2, 11).long()
    start = [[row.index(d) for d in row] for row in segments.tolist()]
    slope = (lambda h: 2.0 ** (-8 * (h + 1) / H)) if position == "alibi" else (lambda h: 0.0)

    def sees(b, t, s):
        return segments[b, t] == segments[b, s] and allowed(t - start[b][t], s - start[b][s])

    ours = part(x, context(11, position, segments if packed else None, mask=mask))
    theirs = by_loop(part, x, 2, lambda h, t, s: -slope(h) * abs(t - s), sees, causal=mask == "causal")
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("attention=parallel_windows", "all pairs in float64, each document by itself")
@pytest.mark.parametrize("position", ["none", "alibi", "t5", "rope"])
@pytest.mark.parametrize("packed", [False, True])
def test_parallel_windows_pair_by_pair(position, packed):
    """Two parallel windows of 3 at the positions 0, 1, 2; later tokens continue at 3 and see both windows."""
    part, x = made("parallel_windows", {"windows": 2, "window": 3}), torch.randn(2, 11, D, dtype=torch.float64)
    sizes = {"d_model": D, "d_head": 3, "n_heads": H, "n_layers": 1, "max_len": 16, "causal": True}
    place = positions.build(position, {"fraction": 0.67} if position == "rope" else {}, **sizes)
    segments = torch.tensor([[0] * 9 + [1] * 2, [0] * 11]) if packed else None
    ctx = make_context(torch.zeros(2, 11).long(), place, "causal", segments, None, torch.float64)
    expected = torch.zeros(2, 11, D, dtype=torch.float64)
    for row, start, end in [(0, 0, 9), (0, 9, 11), (1, 0, 11)] if packed else [(0, 0, 11), (1, 0, 11)]:
        document = x[row : row + 1, start:end]
        at = torch.tensor([0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7])[: end - start]
        window = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
        sees = [[s <= t and (window[t] in (2, window[s])) for s in range(end - start)] for t in range(end - start)]
        q, (k, v) = part.queries(document), part.keys_values(document, ctx)
        q, k = place.rotate(q, k, at) if position == "rope" else (q, k)
        logits = q @ k.mT / 3**0.5 + (place.bias(at, at) if hasattr(place, "bias") else 0.0)
        heads = logits.masked_fill(~torch.tensor(sees), -torch.inf).softmax(-1) @ v
        expected[row, start:end] = part.o_proj(heads.transpose(1, 2).flatten(2))[0]
    torch.testing.assert_close(part(x, ctx), expected, rtol=1e-6, atol=1e-7)  # bias and angles are float32


@torch.no_grad()
def test_one_parallel_window_is_plain_attention_and_decoding_equals_a_full_pass():
    tokens = torch.randint(0, 50, (2, 30))
    model, plain = sharp({"name": "parallel_windows", "windows": 1}), sharp("mha")
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=1e-9, atol=1e-10)
    model, cache = sharp({"name": "parallel_windows", "windows": 3, "window": 4}), KVCache()
    parts = [model(part, cache=cache) for part in tokens.split([5, *[1] * 20, 5], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("attention", ["linear", "retention", "parallel_windows"])
def test_keys_rotated_once_need_constant_frequencies(attention):
    config = model_config(attention=attention, position={"name": "rope", "scaling": "dynamic", "factor": 2.0})
    assert {p.fix for p in violated_rules(effective(config))} == {"position.scaling=ntk"}


@pytest.mark.parametrize("case", PATTERNS)
def test_a_prefix_is_seen_from_before_it(case):
    knobs, allowed = PATTERNS[case]
    part, x = made(case.split("-")[0], knobs), torch.randn(2, 11, D, dtype=torch.float64)
    opened = torch.zeros(2, 11, dtype=torch.bool)
    opened[:, :6] = True
    ours = part(x, context(11, opened=opened))
    theirs = by_loop(part, x, H, lambda *_: 0.0, lambda b, t, s: (s <= t or s < 6) and allowed(t, s), causal=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["sliding", "lambda_window", "sparse", "bigbird", "parallel_windows"])
def test_cross_attention_sees_the_whole_source(name):
    part, full = made(name), made("mha")
    full.load_state_dict(part.state_dict())
    x, states = torch.randn(2, 5, D, dtype=torch.float64), torch.randn(2, 14, D, dtype=torch.float64)
    none = positions.build("none")
    ctx = make_context(
        torch.zeros(2, 5).long(), none, "causal", None, None, torch.float64, memory=EncoderOutput(states)
    ).cross
    torch.testing.assert_close(part(x, ctx), full(x, ctx))


def test_bigbird_random_blocks():
    """Each block has distinct random blocks outside of its window; the same for any length and pass."""
    from ablatio_std.attentions.sparse import random_blocks

    table = random_blocks(40, 3, 4, 7, torch.device("cpu"))
    for i, row in enumerate(table):
        assert row.sum() == min(4, max(0, i - 1)) and not row[max(0, i - 1) :].any()
    assert torch.equal(random_blocks(25, 3, 4, 7, torch.device("cpu")), table[:25, :25])
    assert not torch.equal(random_blocks(40, 3, 4, 8, torch.device("cpu")), table)
    counts = torch.stack([random_blocks(40, 3, 4, layer, torch.device("cpu")) for layer in range(400)]).sum(0)
    expected = 400 * 4 / 38  # block 39 chooses 4 of 38
    assert (counts[39, :38] - expected).abs().max() < 5 * expected**0.5


@pytest.mark.oracle("attention=bigbird", "float64 loop")
def test_bigbird_by_loop_with_its_random_blocks():
    from ablatio_std.attentions.sparse import random_blocks

    knobs = {"block": 2, "window": 1, "global_tokens": 0, "random": 2}
    part, x = made("bigbird", knobs, layer=5), torch.randn(2, 15, D, dtype=torch.float64)
    table = random_blocks(8, 1, 2, 5, torch.device("cpu"))
    theirs = by_loop(part, x, H, lambda *_: 0.0, lambda b, t, s: t // 2 == s // 2 or bool(table[t // 2, s // 2]))
    torch.testing.assert_close(part(x, context(15)), theirs, rtol=1e-9, atol=1e-12)


def sharp(attention, position="rope", **sizes):
    sizes = {"d_model": 16, "n_layers": 3, "n_heads": 4, "max_len": 200, "tied": False} | sizes
    model = build_model(model_config(attention=attention, position=position, **sizes), 50).double().eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.4)
    return model


def held(cache):
    """Number of keys in a cache, for each row and layer."""
    kept = [k.shape[2] for k, _, *_ in cache._states.values()]
    return max([*kept, *(k.shape[2] for k, _ in cache._buffers.values())])


STREAMS = {
    "sliding": ({"name": "sliding", "window": 5, "n_kv_heads": 2}, 5),
    "lambda_window": ({"name": "lambda_window", "window": 4, "first": 3}, 7),
}


@pytest.mark.parametrize("case", STREAMS)
@pytest.mark.parametrize("position", ["rope", "alibi", "t5", "none"])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_decoding_keeps_only_the_window(case, position, padded):
    """Decoding far beyond the window equals a full pass, and caches at most `window` (+ first) keys."""
    attention, most = STREAMS[case]
    model, tokens, cache = sharp(attention, position), torch.randint(0, 50, (3, 90)), KVCache()
    segments = torch.tensor([[-1] * pad + [0] * (90 - pad) for pad in (0, 2, 6)]) if padded else None
    logits = [model(tokens[:, :9], segments[:, :9] if padded else None, cache)]
    for chunk in tokens[:, 9:].split([1] * 40 + [7] + [1] * 34, dim=1):
        logits.append(model(chunk, cache=cache))
        assert held(cache) <= most
    together = torch.cat(logits, dim=1)
    for row, pad in enumerate((0, 2, 6) if padded else (0, 0, 0)):
        alone = model(tokens[row : row + 1, pad:])
        torch.testing.assert_close(together[row, pad:], alone[0], rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_beam_rows_follow_the_window():
    """KVCache.select reorders the keys of a windowed layer."""
    model, tokens, cache = sharp(STREAMS["lambda_window"][0]), torch.randint(0, 50, (3, 30)), KVCache()
    model(tokens[:, :29], cache=cache)
    rows = torch.tensor([2, 2, 0])
    cache.select(rows)
    torch.testing.assert_close(model(tokens[rows, 29:], cache=cache)[:, 0], model(tokens[rows])[:, 29])


@torch.no_grad()
def test_every_nth_layer_is_full():
    """full_every=2: the second of three layers caches all keys, and passes distant tokens on to the last one."""
    model, cache = sharp({"name": "sliding", "window": 2, "full_every": 2}), KVCache()
    tokens = torch.randint(0, 50, (1, 20))
    parts = [model(part, cache=cache) for part in tokens.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-9, atol=1e-10)
    assert {layer: state[0].shape[2] for layer, state in cache._states.items()} == {0: 2, 2: 2}
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 50
    assert not torch.equal(model(tokens)[:, -1], model(other)[:, -1])
    narrow = sharp({"name": "sliding", "window": 2})  # three layers of window 2 reach three tokens back
    changed = (narrow(tokens) != narrow(other)).any(-1)[0]
    assert changed.tolist() == [True] * 4 + [False] * 16


@pytest.mark.parametrize("case", PATTERNS)
def test_every_nth_layer_of_each_pattern_is_full(case):
    """full_every=2: layer 2 (counted from 1) is plain attention, layers 1 and 3 have the pattern."""
    name, (knobs, _) = case.split("-")[0], PATTERNS[case]
    x, plain = torch.randn(2, 13, D, dtype=torch.float64), made("mha")
    for layer in range(3):
        part, narrow = (made(name, knobs | more, layer=layer) for more in ({"full_every": 2}, {}))
        for other in (narrow, plain):
            other.load_state_dict(part.state_dict())
        torch.testing.assert_close(part(x, context(13)), (plain if layer == 1 else narrow)(x, context(13)))
        assert not torch.allclose(narrow(x, context(13)), plain(x, context(13)))
        assert (part.hidden_flops(context(13)) == 0) == (layer == 1)


@pytest.mark.oracle("attention=sliding", "transformers LongformerSelfAttention")
def test_longformers_window():
    """transformers' sliding chunks, bidirectional: their attention_window w sees w / 2 tokens on each side."""
    from transformers.models.longformer.modeling_longformer import LongformerConfig, LongformerSelfAttention

    config = LongformerConfig(hidden_size=D, num_attention_heads=H, attention_window=[4], num_hidden_layers=1)
    theirs, ours = LongformerSelfAttention(config, 0).double().eval(), made("sliding", {"window": 3})
    for name, projection in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        getattr(theirs, name).load_state_dict(getattr(ours, projection).state_dict())
    ours.o_proj = torch.nn.Identity()
    x, nothing = torch.randn(2, 12, D, dtype=torch.float64), torch.zeros(2, 12, dtype=torch.bool)
    mask = torch.zeros(2, 12, dtype=torch.float64)
    expected = theirs(x, mask, is_index_masked=nothing, is_index_global_attn=nothing)
    # Their softmax is in float32.
    torch.testing.assert_close(ours(x, context(12, mask="full")), expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.oracle("attention=sliding", "transformers MistralForCausalLM")
@torch.no_grad()
def test_mistrals_window():
    """A whole transformers Mistral: sliding_window counts the query's own token, as `window` does."""
    from transformers import MistralConfig, MistralForCausalLM

    position, attention = {"name": "rope", "layout": "half"}, {"name": "sliding", "window": 4, "n_kv_heads": 2}
    ours = build_model(
        model_config(attention=attention, position=position, tied=False, d_ff=40, match="none", d_model=24), 61
    )
    config = MistralConfig(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=4, head_dim=6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    theirs = MistralForCausalLM(config).eval()
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.3)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(0, 61, (2, 25))
    torch.testing.assert_close(ours.eval()(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)
