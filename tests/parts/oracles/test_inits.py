"""Initial weights: their distributions, and equal initial values of the parts that two arms share."""

import math

import pytest
import torch
from helpers.support import model_config
from transformers import T5Config, T5ForConditionalGeneration

from ablatio.config.schema import effective
from ablatio.model.build import build_model
from ablatio.model.builder import ModelBuilder
from ablatio.model.parameter_roles import apply_rates, describe, groups_by_role, named_generator
from ablatio.registry.kinds import inits, optimizers
from ablatio.registry.registry import ContractError
from ablatio.registry.rules import violated_rules
from ablatio.testing import tiny_models


def weights(seed=0, vocab=211, **options):
    options = {"d_model": 96, "n_layers": 3, "n_heads": 4} | options
    return dict(build_model(model_config(**options), vocab, seed=seed).named_parameters())


@pytest.mark.oracle("init=gpt2", "moments of normal distributions")
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
        assert abs((z[1:] * z[:-1]).mean()) < 5 / math.sqrt(n), name  # neighbors are uncorrelated


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


def test_initial_weights_depend_on_seed_and_name():
    a, b, c = weights(seed=1), weights(seed=1), weights(seed=2)
    matrices = [n for n, w in a.items() if w.dim() > 1]
    assert all(torch.equal(a[n], b[n]) and not torch.equal(a[n], c[n]) for n in matrices)
    layers = [a[f"model.layers.{i}.self_attn.{p}_proj.weight"] for i in range(3) for p in "qkv"]
    assert not any(torch.equal(x, y) for i, x in enumerate(layers) for y in layers[:i])


def test_building_a_model_does_not_use_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    weights()
    assert torch.equal(torch.rand(3), expected)


WIDE = {"d_model": 96, "n_layers": 3, "n_heads": 4, "d_ff": 160, "tied": False}
GAINED = ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def described(init, **options):
    """name -> (weight, info) of a model with this init."""
    model = build_model(model_config(init=init, **WIDE | options), 211, seed=3)
    return {info.name: (p.detach(), info) for p, info in describe(model)}


def is_normal(weight, std):
    z = weight.double() / std
    n = z.numel()
    small = abs(z.mean()) < 5 / math.sqrt(n) and abs(z.var() - 1) < 5 * math.sqrt(2 / n)
    return small and abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)


@pytest.mark.oracle("init=xavier", "torch xavier_normal_, xavier_uniform_")
@pytest.mark.parametrize("uniform", [False, True])
def test_xavier_equals_torch(uniform):
    fill = torch.nn.init.xavier_uniform_ if uniform else torch.nn.init.xavier_normal_
    for name, (weight, info) in described({"name": "xavier", "uniform": uniform}).items():
        if info.role == "matrix":
            expected = fill(torch.empty(weight.shape), generator=named_generator(3, name))
            torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-9, msg=name)
        elif info.role in ("embedding", "head"):
            assert is_normal(weight, 0.02), name


@pytest.mark.oracle("init=deepnorm", "torch xavier_normal_ with the paper's gains")
def test_deepnorm_equals_torch_xavier_with_beta():
    """arXiv:2203.00555, figure 2: gain beta on value, output and feed-forward matrices, 1 on queries and keys."""
    beta, seen = (8 * 3) ** -0.25, set()
    for name, (weight, info) in described("deepnorm", placement="deepnorm").items():
        if info.role == "matrix":
            parent = name.split(".")[-2]
            gain = beta if parent in GAINED else 1.0
            generator = named_generator(3, name)
            expected = torch.nn.init.xavier_normal_(torch.empty(weight.shape), gain, generator=generator)
            torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-9, msg=name)
            seen.add(parent)
    assert seen == {"q_proj", "k_proj", *GAINED}


def test_deepnorm_is_refused_with_other_placements():
    config = tiny_models.config() | {"init": {"name": "deepnorm", "embedding_std": 0.02}}
    assert [p.fix for p in violated_rules(effective(config))] == ["init=xavier"]


@pytest.mark.oracle("init=orthogonal", "W W^T = gain^2 I")
@pytest.mark.parametrize("gain", [1.0, 0.3])
def test_orthogonal_equals_torch_and_is_orthogonal(gain):
    for name, (weight, info) in described({"name": "orthogonal", "gain": gain}).items():
        if info.role == "matrix":
            expected = torch.nn.init.orthogonal_(torch.empty(weight.shape), gain, generator=named_generator(3, name))
            assert torch.equal(weight, expected)
            short = weight if weight.shape[0] <= weight.shape[1] else weight.T
            torch.testing.assert_close(short @ short.T, gain**2 * torch.eye(len(short)), rtol=0, atol=1e-5)


def residual(name):
    return "o_proj" in name or "down_proj" in name


STDS = {
    "normal": lambda name, layer: 0.02,
    "llama_depth": lambda name, layer: 0.02 / math.sqrt(2 * (layer + 1)) if residual(name) else 0.02,
    "small_init": lambda name, layer: math.sqrt(2 / (5 * 96)),
    "wang": lambda name, layer: 2 / (3 * math.sqrt(96)) if residual(name) else math.sqrt(2 / (5 * 96)),
}


@pytest.mark.oracle("init", "moments of normal distributions")
@pytest.mark.parametrize("init", STDS)
def test_standard_deviations(init):
    """The papers' formulas in a model of width 96 and 3 layers, whose d_ff is not a multiple of the width."""
    for name, (weight, info) in described(init).items():
        if info.role != "vector":
            assert is_normal(weight, STDS[init](name, info.layer)), name


def test_small_init_equals_xavier_for_a_feed_forward_matrix_of_four_times_the_width():
    small, xavier = (described(i, d_ff=4 * 96, activation="gelu") for i in ("small_init", "xavier"))
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(small[name][0], xavier[name][0], rtol=1e-6, atol=1e-9)


def test_llama_depth_gives_the_first_layers_of_a_deeper_model_the_same_weights():
    shallow, deep = described("llama_depth", n_layers=2), described("llama_depth", n_layers=5)
    assert all(torch.equal(weight, deep[name][0]) for name, (weight, _) in shallow.items())


@pytest.mark.oracle("init=zero_out", "a model without layers")
def test_zero_out_makes_the_initial_layers_the_identity():
    model = build_model(model_config(init="zero_out", **WIDE), 211)
    tokens = torch.randint(0, 211, (2, 9))
    assert torch.equal(model.model(tokens), model.model.norm(model.model.embed_tokens(tokens)))
    for name, p in model.named_parameters():
        assert bool(p.any()) != residual(name), name


@pytest.mark.oracle("init=t5", "transformers T5ForConditionalGeneration")
def test_t5_against_transformers():
    """Equal standard deviations of each matrix; q_proj includes the attention's 1 / sqrt(d_head)."""
    torch.manual_seed(0)
    sizes = {"d_model": 96, "d_kv": 24, "num_heads": 4, "d_ff": 160, "num_layers": 1, "vocab_size": 2000}
    theirs = dict(T5ForConditionalGeneration(T5Config(**sizes, tie_word_embeddings=True)).named_parameters())
    ours = described("t5", position="t5", activation="relu")
    table = {
        "model.embed_tokens.weight": ("shared.weight", 1),
        "model.layers.0.self_attn.q_proj.weight": ("encoder.block.0.layer.0.SelfAttention.q.weight", 1),
        "model.layers.0.self_attn.k_proj.weight": ("encoder.block.0.layer.0.SelfAttention.k.weight", 1),
        "model.layers.0.self_attn.v_proj.weight": ("encoder.block.0.layer.0.SelfAttention.v.weight", 1),
        "model.layers.0.self_attn.o_proj.weight": ("encoder.block.0.layer.0.SelfAttention.o.weight", 1),
        "model.layers.0.mlp.up_proj.weight": ("encoder.block.0.layer.1.DenseReluDense.wi.weight", 1),
        "model.layers.0.mlp.down_proj.weight": ("encoder.block.0.layer.1.DenseReluDense.wo.weight", 1),
        "model.position.table": (
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 1,
        ),
    }  # fmt: skip
    names = {name for name in ours if "position" in name}
    assert len(names) == 1
    for name, (their_name, factor) in table.items():
        weight, their = ours[next(iter(names)) if "position" in name else name][0], theirs[their_name].detach()
        noise = 5 * math.sqrt(1 / (2 * weight.numel()) + 1 / (2 * their.numel()))
        assert abs(math.log(weight.std() / (their.std() * factor))) < noise, name
    assert inits.build("t5").logit_scale(96) == 96**-0.5  # transformers: hidden * model_dim^-0.5 before a tied head


BASE, WIDTH = 48, 192
MUP = {"name": "mup", "base_width": BASE, "base_head": 12}


def test_mup_equals_gpt2_at_the_base_width():
    plain = described("gpt2", d_model=BASE)
    assert all(torch.equal(w, plain[name][0]) for name, (w, _) in described(MUP, d_model=BASE).items())
    config = model_config(init=MUP, **WIDE | {"d_model": BASE})
    one = ModelBuilder(config, 211)
    other = ModelBuilder(config | {"init": {"name": "gpt2", "std": 0.02, "residual_scale": True}}, 211)
    assert math.isclose(one.attention_scale, other.attention_scale) and one.logit_scale == other.logit_scale == 1


@pytest.mark.oracle("init=mup", "the paper's table 8")
def test_mup_follows_table_8():
    """arXiv:2203.03466, table 8 for Adam: hidden variance, learning rate and output multiplier are 1 / fan_in."""
    part, m = inits.build("mup", {"base_width": BASE, "base_head": 12}), WIDTH / BASE
    wide, base = (described(MUP, d_model=w, d_ff=4 * w, bias=True) for w in (WIDTH, BASE))
    for name, (weight, info) in wide.items():
        rate = part.rate(info) / part.rate(base[name][1])
        if info.role == "vector":
            assert rate == 1
            continue
        hidden = info.role == "matrix"
        assert rate == (1 / m if hidden else 1)
        depth = 1 / math.sqrt(2 * 3) if residual(name) else 1
        assert is_normal(weight, 0.02 * depth * (m**-0.5 if hidden else 1)), name
    assert part.logit_scale(WIDTH) == 1 / m and part.logit_scale(BASE) == 1
    assert math.isclose(part.attention_scale(24) / part.attention_scale(12), 1 / 2)  # 1 / d, not 1 / sqrt(d)


def test_mup_treats_small_readouts_as_matrices():
    """The connections of hyper_connections sum over the width, although their role is `vector`."""
    wide = described(MUP, d_model=WIDTH, placement="hyper_connections")
    part = inits.build("mup", {"base_width": BASE})
    rates = {name.rpartition(".")[2]: part.rate(info) for name, (_, info) in wide.items() if "around_mlp" in name}
    assert rates == {
        "to_alpha": 1 / 4,
        "to_beta": 1 / 4,
        "read_and_mix": 1,
        "write": 1,
        "alpha_scale": 1,
        "beta_scale": 1,
    }


def rated(optimizer="adamw", **knobs):
    model = build_model(model_config(init=MUP, **WIDE | {"d_model": WIDTH}), 211)
    rate = inits.build("mup", {"base_width": BASE}).rate
    made = optimizers.build(optimizer, knobs, groups=groups_by_role(model, rate))
    apply_rates(made, model, rate)
    return model, made


def test_optimizer_uses_the_learning_rates_of_mup():
    """Adam's first step has the size of the learning rate, so that the change of each weight shows its rate."""
    model, optimizer = rated(lr=1e-3, weight_decay=0.0, eps=1e-30)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    for (name, p), (_, info) in zip(model.named_parameters(), describe(model), strict=True):
        expected = 1e-3 / 4 if info.role == "matrix" else 1e-3
        torch.testing.assert_close((p - before[name]).abs(), torch.full_like(p, expected), rtol=1e-2, atol=1e-6)


def test_weight_decay_per_step_does_not_depend_on_the_rate():
    """lr * weight_decay is the same for all rates: the width should not change the time scale of the decay."""
    for group in rated(lr=1e-3, weight_decay=0.1)[1].param_groups:
        expected = 0.0 if group["role"] == "vector" else 1e-4
        assert math.isclose(group["lr"] * group["weight_decay"], expected)


def test_groups_have_one_role_and_one_rate():
    model = build_model(model_config(**WIDE), 211)
    assert [(g["role"], g["rate"]) for g in groups_by_role(model)] == [
        ("matrix", 1.0), ("vector", 1.0), ("embedding", 1.0), ("head", 1.0),
    ]  # fmt: skip

    def by_layer(info):
        return 0.5 if info.layer == 0 else 1.0

    groups = groups_by_role(model, by_layer)
    assert [(g["role"], g["rate"]) for g in groups[:2]] == [("matrix", 0.5), ("matrix", 1.0)]
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    for group in groups:
        rates = {by_layer(info) for p, info in describe(model) if any(p is q for q in group["params"])}
        assert rates == {group["rate"]}


def test_an_optimizer_that_merges_groups_is_refused():
    model = build_model(model_config(**WIDE), 211)
    merged = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with pytest.raises(ContractError, match="AdamW merges parameter groups"):
        apply_rates(merged, model, lambda info: 0.5 if info.role == "matrix" else 1.0)


def test_mup_is_refused_with_optimizers_that_are_not_entrywise():
    config = tiny_models.config() | {"init": MUP | {"std": 0.02, "residual_scale": True}}
    assert not violated_rules(effective(config))
    config["optimizer"] = {"name": "sgd", **optimizers["sgd"].defaults}
    assert [p.fix for p in violated_rules(effective(config))] == ["optimizer=adamw"]


@pytest.mark.oracle("init=mimetic", "moments around the identity, and the product of values and output")
def test_mimetic_values_and_output_undo_each_other():
    for name, w in weights(init={"name": "mimetic", "beta": 0.25, "noise": 0.01}, n_layers=2).items():
        module, sign = name.split(".")[-2], -1 if "o_proj" in name else 1
        if module in ("v_proj", "o_proj"):
            rest = (w.detach() - sign * 0.5 * torch.eye(96)).double()
            assert abs(rest.std() / 0.01 - 1) < 0.05 and abs(rest.mean()) < 1e-3, name
        elif module == "down_proj":
            assert not w.any(), name
        elif w.dim() == 2:
            assert abs(w.detach().double().std() / 0.02 - 1) < 0.1, name
    made = weights(init="mimetic", attention={"name": "gqa", "n_kv_heads": 2})
    value, out = (made[f"model.layers.0.self_attn.{m}.weight"].detach() for m in ("v_proj", "o_proj"))
    assert value.shape == (48, 96) and abs(value.diagonal().mean() - 0.05**0.5) < 0.01
    assert abs((out[:, :48] @ value).diagonal()[:48].mean() + 0.05) < 0.01


@pytest.mark.oracle("init=by_matrix", "moments of normal distributions")
def test_by_matrix_has_a_deviation_for_each():
    stds = {"o_proj": 0.5, "up_proj": 0.1, "gate_proj": 0.1, "down_proj": 0.2, "q_proj": 0.03, "k_proj": 0.03}
    stds |= {"v_proj": 0.03, "embed_tokens": 0.4, "lm_head": 0.4}
    init = {"name": "by_matrix", "std": 0.03, "attention_out": 0.5, "mlp_in": 0.1, "mlp_out": 0.2, "table": 0.4}
    for name, w in weights(init=init, activation="swiglu", tied=False).items():
        if w.dim() == 2:
            z = w.detach().double() / stds[name.split(".")[-2]]
            assert abs(z.std() - 1) < 5 / math.sqrt(2 * w.numel()) and abs(z.mean()) < 5 / math.sqrt(w.numel()), name


def test_every_init_is_tested_here():
    more = {"gpt2", "xavier", "deepnorm", "orthogonal", "zero_out", "t5", "mup", "mimetic", "by_matrix"}
    assert STDS.keys() | more == {e.name for e in inits if e.distribution.name == "ablatio"}
