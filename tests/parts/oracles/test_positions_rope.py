"""Rope's extensions against transformers' ROPE_INIT_FUNCTIONS and rotary module; xpos against a float64 loop."""

import itertools
import math

import pytest
import torch
from helpers.support import model_config
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from ablatio.model.build import build_model
from ablatio.model.kv_cache import KVCache
from ablatio.registry.kinds import positions
from ablatio.registry.rules import violated_rules

WIRING = {"d_model": 64, "d_head": 32, "n_heads": 2, "n_layers": 2, "max_len": 128, "causal": True}
SCALINGS = positions["rope"].knob("scaling").choices
LONG = {"short_factors": [1.0 + i / 10 for i in range(16)], "long_factors": [1.0 + i for i in range(16)]}


def made(name="rope", knobs=None, **wiring):
    return positions.build(name, knobs, **WIRING | wiring)


def llama(scaling, *, d_head=32, original=128, base=10000.0, **settings):
    parameters = {"rope_type": scaling, "rope_theta": base, **settings}
    if scaling != "dynamic":
        parameters["original_max_position_embeddings"] = original
    # max_position_embeddings is the original length for `dynamic`; the other methods do not read it.
    return LlamaConfig(
        hidden_size=2 * d_head, num_attention_heads=2, max_position_embeddings=original, rope_parameters=parameters
    )


def read(rope, length):
    """Frequencies and attention factor that `prepare` uses, read at position 1, where no angle exceeds pi."""
    cos, sin = rope.prepare(torch.tensor([1]), torch.float64, torch.tensor(length))
    return torch.atan2(sin, cos)[0], torch.hypot(sin, cos)[0]


CASES = [
    ("linear", {"factor": 4.0}),
    ("dynamic", {"factor": 1.0}),
    ("dynamic", {"factor": 3.0}),
    ("yarn", {"factor": 4.0}),
    ("yarn", {"factor": 16.0, "beta_fast": 8.0, "beta_slow": 2.0}),
    ("yarn", {"factor": 4.0, "attention_factor": 1.5}),
    ("llama3", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    ("llama3", {"factor": 2.0, "low_freq_factor": 0.5, "high_freq_factor": 8.0}),
    ("longrope", {"factor": 4.0}),
]


@pytest.mark.oracle("position=rope", "transformers ROPE_INIT_FUNCTIONS: linear, dynamic, yarn, llama3, longrope")
@pytest.mark.parametrize("scaling, settings", CASES, ids=str)
@pytest.mark.parametrize("length", [5, 128, 129, 1000])
@pytest.mark.parametrize("shape", [{}, {"original": 4096, "base": 5e5}, {"original": 40, "base": 300.0}], ids=str)
def test_scaled_frequencies_are_transformers(scaling, settings, length, shape):
    given = {f"{k[:-1]}": v for k, v in LONG.items()} if scaling == "longrope" else {}
    config = llama(scaling, **shape, **settings, **given)
    theirs, factor = ROPE_INIT_FUNCTIONS[scaling](config, torch.device("cpu"), seq_len=length)
    knobs = settings | (LONG if scaling == "longrope" else {})
    knobs |= {"scaling": scaling, "base": shape.get("base", 10000.0), "original_max_len": shape.get("original", 128)}
    ours, ours_factor = read(made(knobs=knobs), length)
    torch.testing.assert_close(ours.float(), theirs, rtol=3e-6, atol=0)  # theirs are float32
    torch.testing.assert_close(ours_factor, torch.full((16,), factor, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.oracle("position=rope", "transformers LlamaRotaryEmbedding, scaled")
@pytest.mark.parametrize("scaling, settings", [c for c in CASES if c[0] != "longrope"], ids=str)
def test_scaled_rotation_is_llamas(scaling, settings):
    """transformers' rotary module switches to the frequencies for longer texts itself."""
    q, k, pos = torch.randn(2, 2, 300, 32), torch.randn(2, 1, 300, 32), torch.arange(300)
    cos, sin = LlamaRotaryEmbedding(llama(scaling, **settings))(q, pos[None])
    theirs = apply_rotary_pos_emb(q, k, cos, sin)
    ours = made(knobs={"scaling": scaling, "layout": "half", **settings}).rotate(q, k, pos)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
def test_ntk_is_another_base(factor):
    """transformers has no static ntk; its plain rotary embedding with base * s^(d/(d-2)) is equal to it."""
    config = llama("default", base=10000.0 * factor ** (32 / 30))
    theirs = LlamaRotaryEmbedding(config).inv_freq
    ours, _ = read(made(knobs={"scaling": "ntk", "factor": factor}), 7)
    torch.testing.assert_close(ours.float(), theirs, rtol=3e-6, atol=0)


def test_longrope_defaults_to_ntk():
    rope, ntk = (made(knobs={"scaling": name}) for name in ("longrope", "ntk"))
    torch.testing.assert_close(read(rope, 129)[0], read(ntk, 129)[0])
    torch.testing.assert_close(read(rope, 128)[0], read(made(), 128)[0])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scores_depend_on_distances_only(scaling):
    rope = made(knobs={"scaling": scaling})
    q, k = torch.randn(2, 1, 2, 9, 32, dtype=torch.float64).unbind(0)

    def scores(start):
        prepared = rope.prepare(torch.arange(start, start + 9), q.dtype, torch.tensor(3000))
        q_turned, k_turned = rope.rotate(q, k, prepared)
        return q_turned @ k_turned.mT

    torch.testing.assert_close(scores(2500), scores(0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("scaling", [s for s in SCALINGS if s not in ("none", "longrope")])
def test_factor_one_is_plain_rope(scaling):
    length = 128 if scaling == "dynamic" else 1000
    ours, factor = read(made(knobs={"scaling": scaling, "factor": 1.0}), length)
    torch.testing.assert_close(ours, read(made(), length)[0], rtol=1e-14, atol=0)
    assert torch.allclose(factor, torch.ones_like(factor))


@pytest.mark.parametrize("scaling", ["yarn", "llama3"])
def test_fast_pairs_are_kept_and_slow_ones_interpolated(scaling):
    ours, _ = read(made(knobs={"scaling": scaling, "factor": 8.0}), 1000)
    plain, _ = read(made(), 1000)
    ratio = plain / ours
    assert ratio[0] == pytest.approx(1) and ratio[-1] == pytest.approx(8)
    assert (ratio.diff() >= -1e-12).all()


def test_dynamic_is_plain_up_to_the_original_length():
    rope = made(knobs={"scaling": "dynamic", "factor": 2.0})
    plain, _ = read(made(), 1)
    assert torch.equal(read(rope, 128)[0], plain)
    slower = [read(rope, length)[0][-1].item() for length in (128, 129, 200, 1000)]
    assert slower == sorted(slower, reverse=True) and len(set(slower)) == 4


# In a model: the length of each document and of a cached text


def model_with(knobs, **sizes):
    options = {"d_model": 32, "n_layers": 1, "n_heads": 2, "max_len": 8, "tied": False} | sizes
    model = build_model(model_config(position={"name": "rope", "scaling": "dynamic", **knobs}, **options), 50)
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.4)
    return model.double().eval()


BY_LENGTH = [{"scaling": "dynamic"}, {"scaling": "longrope"}]


@pytest.mark.parametrize("knobs", BY_LENGTH, ids=str)
@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa"])
@torch.no_grad()
def test_cached_keys_are_rotated_again_as_the_text_grows(knobs, attention):
    """In one layer keys and values do not depend on the length, so each step equals a full pass at its length."""
    model, x, cache = model_with(knobs, attention=attention, n_heads=4), torch.randint(0, 50, (2, 20)), KVCache()
    for start, stop in [(0, 5), (5, 6), (6, 11), (11, 12), (12, 20)]:
        step = model(x[:, start:stop], cache=cache)
        torch.testing.assert_close(step[:, -1], model(x[:, :stop])[:, -1], rtol=1e-9, atol=1e-9)
    plain = model_with({"scaling": "none"}, attention=attention, n_heads=4)
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(plain(x)[:, -1], step[:, -1], atol=1e-3)


@pytest.mark.parametrize("knobs", BY_LENGTH, ids=str)
@torch.no_grad()
def test_each_packed_document_has_its_own_length(knobs):
    model, x = model_with(knobs, n_layers=2), torch.randint(0, 50, (2, 25))
    segments = torch.tensor([[0] * 5 + [1] * 20, [3] * 14 + [4] * 3 + [7] * 8])
    packed = model(x, segments)
    for row, starts in [(0, (0, 5, 25)), (1, (0, 14, 17, 25))]:
        for a, b in itertools.pairwise(starts):
            torch.testing.assert_close(packed[row, a:b], model(x[row : row + 1, a:b])[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("knobs", BY_LENGTH, ids=str)
@torch.no_grad()
def test_left_padded_rows_have_their_own_length(knobs):
    model, x, pads, cache = model_with(knobs), torch.randint(0, 50, (3, 14)), (0, 3, 5), KVCache()
    segments = torch.tensor([[-1] * pad + [0] * (14 - pad) for pad in pads])
    model(x[:, :9], segments[:, :9], cache)
    for t in range(9, 14):
        step = model(x[:, t : t + 1], cache=cache)
        for row, pad in enumerate(pads):
            alone = model(x[row : row + 1, pad : t + 1])[0, -1]
            torch.testing.assert_close(step[row, -1], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scaling", SCALINGS)
@torch.no_grad()
def test_works_beyond_the_original_length(scaling):
    model = model_with({"scaling": scaling})
    assert model(torch.randint(0, 50, (1, 32))).isfinite().all()


@pytest.mark.parametrize(
    "knobs, word",
    [
        ({"scaling": "yarn", "beta_fast": 1.0}, "beta_fast=1"),
        ({"scaling": "llama3", "low_freq_factor": 4.0}, "high_freq_factor=4"),
        ({"scaling": "longrope", "long_factors": [1.0, 2.0]}, "2 factors for 4 pairs"),
        ({"scaling": "longrope", "short_factors": [1.0, 2.0, 3.0]}, "3 factors for 4 pairs"),
    ],
    ids=str,
)
def test_inconsistent_settings_are_refused(knobs, word):
    def problems(position):
        config = model_config(position={"name": "rope", **position})
        config["model"]["d_head"] = 8
        return violated_rules(config)

    assert not problems({"scaling": knobs["scaling"]})
    (problem,) = problems(knobs)
    assert word in str(problem)


@pytest.mark.oracle("position=rope", "transformers SmolLM3Config.no_rope_layers")
def test_layers_are_skipped_as_in_smollm3():
    from transformers import SmolLM3Config

    for interval in (2, 3, 4):
        theirs = SmolLM3Config(num_hidden_layers=12, no_rope_layer_interval=interval).no_rope_layers  # 1: rotated
        rope = made(knobs={"skip_every": interval})
        assert [not rope.skips(layer) for layer in range(12)] == list(map(bool, theirs))
    assert not any(made().skips(layer) for layer in range(12))


# xpos


def xpos_by_hand(x, pos, sign, scale_base, gamma, middle):
    """Each pair as a complex number, times z^(+-(t - middle) / S) exp(i t w)."""
    y, d = x.clone(), x.shape[-1]
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in x.shape[:3])).tolist():
        for i in range(d // 2):
            z = (2 * i / d + gamma) / (1 + gamma)
            size, angle = z ** (sign * (pos[t] - middle) / scale_base), pos[t] * 10000.0 ** (-2 * i / d)
            pair = complex(x[b, h, t, 2 * i], x[b, h, t, 2 * i + 1])
            pair *= size * complex(math.cos(angle), math.sin(angle))
            y[b, h, t, 2 * i], y[b, h, t, 2 * i + 1] = pair.real, pair.imag
    return y


@pytest.mark.oracle("position=xpos", "complex numbers in a float64 loop")
@pytest.mark.parametrize("scale_base, gamma", [(512.0, 0.4), (20.0, 1.0)])
def test_xpos_by_hand(scale_base, gamma):
    q, k = torch.randn(2, 2, 3, 5, 8, dtype=torch.float64).unbind(0)
    pos = [0, 1, 7, 300, 301]
    xpos = made("xpos", {"scale_base": scale_base, "gamma": gamma}, d_head=8)
    ours = xpos.rotate(q, k, torch.tensor(pos))
    for a, x, sign in zip(ours, (q, k), (1, -1), strict=True):
        torch.testing.assert_close(a, xpos_by_hand(x, pos, sign, scale_base, gamma, 64), rtol=1e-10, atol=1e-10)


def test_xpos_scores_depend_on_distances_and_decay():
    xpos = made("xpos")
    q = torch.randn(1, 1, 1, 32, dtype=torch.float64).expand(1, 1, 9, 32)

    def scores(start, step=1, dtype=torch.float64):
        pos = start + step * torch.arange(9)
        a, b = xpos.rotate(q.to(dtype), q.to(dtype), pos)
        return (a @ b.mT)[0, 0].double()

    torch.testing.assert_close(scores(20000), scores(0), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(scores(20000, dtype=torch.float32), scores(0), rtol=0, atol=2e-3)
    far = scores(0, step=4096)[-1].flip(0).abs()  # of the last query, by distance
    limit = q[0, 0, 0].square().sum() * (0.4 / 1.4 + 15 / 16 / 1.4) ** (torch.arange(9) * 8.0)
    assert (far <= limit + 1e-9).all()  # no pair decays more slowly than the slowest


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_a_part_of_heads_of_odd_width_is_rotated(layout):
    """Two of five features: each head's pair is rotated as a complex number, the rest is unchanged."""
    rope = made(knobs={"fraction": 0.4, "layout": layout}, d_head=5)
    x = torch.randn(2, 7, 15, dtype=torch.float64).unflatten(-1, (3, 5)).transpose(1, 2)
    turned, _ = rope.rotate(x, x, torch.arange(7))
    for t in range(7):
        expected = torch.complex(x[:, :, t, 0], x[:, :, t, 1]) * complex(math.cos(t), math.sin(t))
        torch.testing.assert_close(torch.complex(turned[:, :, t, 0], turned[:, :, t, 1]), expected)
    assert torch.equal(turned[..., 2:], x[..., 2:])
