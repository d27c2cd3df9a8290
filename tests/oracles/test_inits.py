"""Initial weights: their distribution, and that parts which two arms share start equal."""

import math

import pytest
import torch
from support import model_config

from ablatio.model.assembly import build_model


def weights(seed=0, vocab=211, **options):
    options = {"d_model": 96, "n_layers": 3, "n_heads": 4} | options
    return dict(build_model(model_config(**options), vocab, seed=seed).named_parameters())


@pytest.mark.parametrize("std, residual_scale", [(0.02, True), (0.02, False), (0.1, True)])
def test_gpt2_statistics(std, residual_scale):
    init = {"name": "gpt2", "std": std, "residual_scale": residual_scale}
    for name, w in weights(init=init, norm="layernorm", position="learned", bias=True, tied=False).items():
        if w.dim() == 1:
            assert torch.equal(w, torch.full_like(w, float("norm" in name and name.endswith("weight")))), name
            continue
        small = residual_scale and ("o_proj" in name or "down_proj" in name)
        expected = std / math.sqrt(2 * 3) if small else std
        n, z = w.numel(), w.detach().double() / expected
        assert abs(z.mean()) < 5 / math.sqrt(n), name
        assert abs(z.var() - 1) < 5 * math.sqrt(2 / n), name
        assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n), name  # a normal's fourth moment
        assert abs((z[1:] * z[:-1]).mean()) < 5 / math.sqrt(n), name  # rows do not repeat


PAIRS = [
    ({"norm": "layernorm"}, {"norm": "rmsnorm"}),
    ({"position": "rope"}, {"position": "alibi"}),
    ({"position": "learned"}, {"position": "t5"}),
    ({"attention": "mha"}, {"attention": "gqa"}),
    ({"block": "sequential"}, {"block": "parallel"}),
    ({"placement": "pre"}, {"placement": "post"}),
    ({"activation": "geglu"}, {"activation": "swiglu"}),
    ({"tied": True}, {"tied": False}),
    ({"bias": True}, {"bias": False}),
]


@pytest.mark.parametrize("one, other", PAIRS, ids=str)
def test_shared_parts_start_equal(one, other):
    a, b = weights(**one), weights(**other)
    shared = [n for n in a.keys() & b.keys() if a[n].shape == b[n].shape]
    assert len(shared) >= 3 * 6 and "model.embed_tokens.weight" in shared
    assert all(torch.equal(a[n], b[n]) for n in shared)


def test_the_seed_and_the_name_decide():
    a, b, c = weights(seed=1), weights(seed=1), weights(seed=2)
    matrices = [n for n, w in a.items() if w.dim() > 1]
    assert all(torch.equal(a[n], b[n]) and not torch.equal(a[n], c[n]) for n in matrices)
    layers = [a[f"model.layers.{i}.self_attn.{p}_proj.weight"] for i in range(3) for p in "qkv"]
    assert not any(torch.equal(x, y) for i, x in enumerate(layers) for y in layers[:i])


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    weights()
    assert torch.equal(torch.rand(3), expected)
