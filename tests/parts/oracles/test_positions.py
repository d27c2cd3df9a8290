"""Positional encodings against loops, transformers' Llama, the alibi of BLOOM and MPT, and T5's buckets."""

import cmath
import math

import pytest
import torch
from transformers import LlamaConfig, T5Config
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from ablatio.registry.kinds import positions

WIRING = {"d_model": 16, "d_head": 8, "n_heads": 4, "n_layers": 2, "max_len": 32, "causal": True}


def made(name, knobs=None, **wiring):
    return positions.build(name, knobs, **WIRING | wiring)


# Sinusoids and tables


@pytest.mark.oracle("position=sinusoidal", "loop in Python floats")
@pytest.mark.parametrize("width, base", [(16, 10000.0), (10, 50.0), (2, 3.0)])
def test_sinusoidal_by_hand(width, base):
    rows = []
    for t in range(40):
        row = []
        for i in range(width // 2):
            angle = t / base ** (2 * i / width)
            row += [math.sin(angle), math.cos(angle)]
        rows.append(row)
    x = torch.randn(3, 40, width, dtype=torch.float64)
    ours = made("sinusoidal", {"base": base}, d_model=width).embed(x, torch.arange(40))
    expected = math.sqrt(width) * x + torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.oracle("position=learned", "row by row")
def test_learned_adds_its_rows():
    position, x = made("learned"), torch.randn(2, 3, 16)
    pos = torch.tensor([[0, 1, 2], [4, 0, 31]])
    y = position.embed(x, pos)
    for b, t in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        assert torch.equal(y[b, t], x[b, t] + position.table.weight[pos[b, t]])


# Rotary


def rotated_by_hand(x, pos, base, layout, width):
    """x (B, H, T, d_head), pos (B, T): each pair is a complex number, times exp(i t base^(-2i/width))."""
    y = x.clone()
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in x.shape[:3])).tolist():
        for i in range(width // 2):
            re, im = (2 * i, 2 * i + 1) if layout == "interleaved" else (i, i + width // 2)
            z = complex(x[b, h, t, re], x[b, h, t, im]) * cmath.exp(1j * pos[b, t].item() * base ** (-2 * i / width))
            y[b, h, t, re], y[b, h, t, im] = z.real, z.imag
    return y


@pytest.mark.oracle("position=rope", "complex numbers in a float64 loop")
@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("base", [10000.0, 500.0])
def test_rope_is_a_complex_product(layout, fraction, base):
    rope = made("rope", {"layout": layout, "fraction": fraction, "base": base})
    q = torch.randn(2, 5, 3, 8, dtype=torch.float64).transpose(1, 2)  # strided, as from split_heads
    k = torch.randn(2, 1, 5, 8, dtype=torch.float64)
    pos = torch.tensor([[0, 1, 2, 3, 4], [7, 1000, 0, 31, 2]])
    for ours, x in zip(rope.rotate(q, k, pos), (q, k), strict=True):
        expected = rotated_by_hand(x, pos, base, layout, int(8 * fraction))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    shared = rope.rotate(q, k, pos[0])  # one row of positions for the whole batch
    both = rope.rotate(q, k, pos[:1].expand(2, -1))
    assert all(torch.equal(a, b) for a, b in zip(shared, both, strict=True))


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_rope_gradients_by_differences(layout):
    rope, pos = made("rope", {"layout": layout, "fraction": 0.5}), torch.arange(3)
    q, k = (torch.randn(1, 2, 3, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda q, k: rope.rotate(q, k, pos), (q, k))


@pytest.mark.oracle("position=rope", "transformers LlamaRotaryEmbedding")
def test_rope_half_is_llamas():
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=rope)
    q, k, pos = torch.randn(2, 4, 200, 16), torch.randn(2, 2, 200, 16), torch.arange(200)
    cos, sin = LlamaRotaryEmbedding(config)(q, pos[None])
    theirs = apply_rotary_pos_emb(q, k, cos, sin)
    ours = made("rope", {"layout": "half"}, d_head=16).rotate(q, k, pos)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)  # their angles are float32


def test_rope_layouts_are_one_model_with_permuted_rows():
    order = torch.arange(8).view(2, 4).T.flatten()  # puts half's pairs (i, i + 4) next to each other
    q, k, pos = torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8), torch.arange(9)
    half = made("rope", {"layout": "half"}).rotate(q, k, pos)
    pairs = made("rope").rotate(q[..., order], k[..., order], pos)
    for a, b in zip(half, pairs, strict=True):
        torch.testing.assert_close(a[..., order], b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_rope_frequencies_do_not_depend_on_the_models_dtype(layout):
    """Angles in bfloat16 would be wrong by whole turns at position 1000."""
    q, pos = torch.randn(1, 1, 4, 8), torch.tensor([0, 100, 1000, 8000])
    exact = made("rope", {"layout": layout}).rotate(q, q, pos)[0]
    low = made("rope", {"layout": layout}).to(torch.bfloat16).rotate(q.bfloat16(), q.bfloat16(), pos)[0]
    torch.testing.assert_close(low.float(), exact, rtol=0, atol=0.04)


def test_sinusoidal_frequencies_do_not_depend_on_the_models_dtype():
    x, pos = torch.zeros(1, 3, 16), torch.tensor([0, 999, 8001])
    exact, low = made("sinusoidal"), made("sinusoidal").to(torch.bfloat16)
    torch.testing.assert_close(low.embed(x.bfloat16(), pos).float(), exact.embed(x, pos), rtol=0, atol=0.01)


# Alibi


def alibi_bias(n_heads, length, **wiring):
    pos = torch.arange(length)
    return made("alibi", n_heads=n_heads, **wiring).bias(pos, pos)  # (H, T, S)


@pytest.mark.oracle("position=alibi", "transformers BLOOM and MPT")
@pytest.mark.parametrize("n_heads", range(1, 41))
def test_alibi_is_blooms_and_mpts(n_heads):
    """Both use slope * s instead of the paper's -slope * (t - s), a difference that cancels in the softmax."""
    length = 33
    bloom = build_alibi_tensor(torch.ones(1, length), n_heads, torch.float32).view(n_heads, 1, length)
    mpt = build_mpt_alibi_tensor(n_heads, length)  # (H, 1, S), 0 at the last key
    ours = alibi_bias(n_heads, length)
    slopes = ours[:, 1:2, 0:1].neg()
    assert (slopes - mpt[..., -2:-1].neg()).abs().max() <= 3e-8
    assert (slopes - bloom[..., 1:2]).abs().max() <= 6e-8  # an ulp: theirs are powers of a rounded float32 base
    for theirs in (bloom, mpt):
        shifted = theirs - theirs.expand(-1, length, -1).diagonal(dim1=1, dim2=2)[..., None]
        torch.testing.assert_close(ours.tril(), shifted.tril(), rtol=0, atol=4e-6)  # rounding of slope * 32 in float32


def test_alibi_slopes_of_the_paper():
    slope = lambda n: -alibi_bias(n, 2)[:, 1, 0]  # noqa: E731
    assert slope(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert torch.allclose(slope(16), torch.tensor([2 ** (-i / 2) for i in range(1, 17)]))
    assert torch.allclose(slope(12), torch.tensor([2.0**-i for i in range(1, 9)] + [2 ** -(i + 0.5) for i in range(4)]))


# T5


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (32, 20), (8, 5), (4, 128), (10, 17), (320, 800)])
def test_t5_buckets_are_t5s(buckets, max_distance, causal):
    distance = torch.arange(-300, 301)  # query - key; theirs counts key - query
    ours = made("t5", {"buckets": buckets, "max_distance": max_distance}, causal=causal).bucket(distance)
    theirs = T5Attention._relative_position_bucket(-distance, not causal, buckets, max_distance)
    assert torch.equal(ours, theirs)


@pytest.mark.oracle("position=t5", "transformers T5Attention")
@pytest.mark.parametrize("causal", [True, False])
def test_t5_bias_is_t5s(causal):
    buckets = {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 40}
    config = T5Config(d_model=16, d_kv=4, num_heads=4, is_decoder=causal, **buckets)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    ours = made("t5", {"buckets": 12, "max_distance": 40}, causal=causal)
    ours.relative_attention_bias.load_state_dict(theirs.relative_attention_bias.state_dict())
    k_pos = torch.arange(70)
    for q_pos, past in [(k_pos, 0), (k_pos[60:], 60)]:
        bias = theirs.compute_bias(len(q_pos), 70, past_seen_tokens=past)[0]
        assert torch.equal(ours.bias(q_pos, k_pos), bias)
