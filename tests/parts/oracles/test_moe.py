"""mlp=moe and deepseek_moe against transformers' Switch, Mixtral and DeepSeek-V3 blocks; they, expert_choice and
soft_moe against loops."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from helpers.support import model_config
from torch import nn
from transformers import DeepseekV3Config, MixtralConfig, SwitchTransformersConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func as mixtral_balance
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersSparseMLP,
    router_z_loss_func,
)
from transformers.models.switch_transformers.modeling_switch_transformers import (
    load_balancing_loss_func as switch_balance,
)

from ablatio.config.schema import effective
from ablatio.model.build import build_model
from ablatio.model.context import make_context
from ablatio.model.cost.parameters import measure
from ablatio.model.parameter_roles import describe
from ablatio.registry import rules
from ablatio.registry.kinds import mlps, positions
from ablatio.testing import tiny_models

D, FF, E, T = 12, 20, 4, 24
PLAIN = {"balance": 0.0, "jitter": 0.0, "z_loss": 0.0}


def swiglu(gate, up):
    return F.silu(gate) * up


def made(name="moe", knobs=None, gated=False, **wiring):
    given = {"d_model": D, "d_ff": FF, "bias": False, "dropout": 0.0, "layer": 0, "n_layers": 1, "inner_norm": None}
    activation = swiglu if gated else F.relu
    part = mlps.build(name, {"experts": E, **(knobs or {})}, activation=activation, gated=gated, **given | wiring)
    for p in part.parameters():
        nn.init.normal_(p, std=0.5)
    return part.double()


def context(rows=2, segments=None):
    position = positions.build("none", {}, d_model=D, d_head=3, n_heads=4, n_layers=1, max_len=T, causal=True)
    return make_context(torch.zeros(rows, T, dtype=torch.long), position, "causal", segments, None, torch.float64)


def inputs(rows=2):
    x = torch.randn(rows, T, D, dtype=torch.float64)
    return x, x.clone().requires_grad_(), x.clone().requires_grad_()


@torch.no_grad()
def copied(to, part):
    """transformers keeps gate and up in one matrix (E, 2F, D)."""
    experts = part.experts
    to.experts.gate_up_proj.copy_(torch.cat([experts.gate_proj.weight, experts.up_proj.weight], dim=1))
    to.experts.down_proj.copy_(experts.down_proj.weight)
    to.gate.weight.copy_(part.router.weight)
    return to.double()


@pytest.mark.oracle("mlp=moe", "transformers SwitchTransformersSparseMLP")
@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_switch_is_transformers(factor):
    """Training with dropped tokens: output and gradients of input, router and experts; both auxiliary losses."""
    part = made(knobs={"capacity_factor": factor, "balance": 1.0, "z_loss": 1.0, "jitter": 0.0}).train()
    room = math.ceil(factor * T / E)
    other = SwitchTransformersSparseMLP(
        SwitchTransformersConfig(
            d_model=D, d_ff=FF, num_experts=E, expert_capacity=room, dropout_rate=0.0, router_jitter_noise=0.0,
            dense_act_fn="relu",
        )
    ).double()  # fmt: skip
    other.router.dtype = torch.float64
    with torch.no_grad():
        other.router.classifier.weight.copy_(part.router.weight)
        for e, expert in enumerate(other.experts.values()):
            expert.wi.weight.copy_(part.experts.up_proj.weight[e])
            expert.wo.weight.copy_(part.experts.down_proj.weight[e])
    x, a, b = inputs()
    weights, ctx = torch.randn_like(x), context()
    (part(a, ctx) * weights).sum().backward()
    (other.train()(b) * weights).sum().backward()
    torch.testing.assert_close(part(x, context()), other(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(part.router.weight.grad, other.router.classifier.weight.grad)
    for e, expert in enumerate(other.experts.values()):
        torch.testing.assert_close(part.experts.up_proj.weight.grad[e], _grad(expert.wi))
        torch.testing.assert_close(part.experts.down_proj.weight.grad[e], _grad(expert.wo))
    logits = part.router(x)
    torch.testing.assert_close(ctx.record.losses["train/moe_z"], router_z_loss_func(logits))
    for row in x:  # transformers averages the balance loss over rows, so one row is compared at a time
        ctx = context(1)
        part(row[None], ctx)
        theirs = switch_balance(part.router(row[None]).softmax(-1), part.router(row[None]).argmax(-1))
        torch.testing.assert_close(ctx.record.losses["train/moe_balance"], theirs)


def _grad(linear):
    """The gradient, or None for an expert without tokens."""
    return torch.zeros_like(linear.weight) if linear.weight.grad is None else linear.weight.grad


@pytest.mark.oracle("mlp=moe", "transformers MixtralSparseMoeBlock")
def test_top_2_is_mixtral():
    part = made(knobs={"top_k": 2, "capacity_factor": None, **PLAIN, "balance": 1.0}, gated=True).train()
    config = MixtralConfig(hidden_size=D, intermediate_size=FF, num_local_experts=E, num_experts_per_tok=2)
    other = copied(MixtralSparseMoeBlock(config).double(), part)
    x, a, b = inputs()
    weights, ctx = torch.randn_like(x), context()
    (part(a, ctx) * weights).sum().backward()
    (other(b) * weights).sum().backward()
    close = {"rtol": 1e-5, "atol": 1e-5}  # Mixtral's softmax is float32
    torch.testing.assert_close(part(x, context()), other(x), **close)
    torch.testing.assert_close(a.grad, b.grad, **close)
    torch.testing.assert_close(part.router.weight.grad, other.gate.weight.grad, **close)
    grads = torch.cat([part.experts.gate_proj.weight.grad, part.experts.up_proj.weight.grad], dim=1)
    torch.testing.assert_close(grads, other.experts.gate_up_proj.grad, **close)
    torch.testing.assert_close(part.experts.down_proj.weight.grad, other.experts.down_proj.grad, **close)
    theirs = mixtral_balance((part.router(x).flatten(0, 1).detach(),), E, 2) / 2  # their shares have the sum top_k
    torch.testing.assert_close(ctx.record.losses["train/moe_balance"].detach().float(), theirs.float())


@pytest.mark.oracle("mlp=deepseek_moe", "transformers DeepseekV3MoE")
@pytest.mark.parametrize("shared", [1, 2])
def test_deepseek_is_transformers_v3(shared):
    """Sigmoid scores, a bias for the choice only, normalized gates, shared experts."""
    knobs = {
        "shared": shared, "top_k": 2, "granularity": 2, "scores": "sigmoid", "normalize": True, "bias_rate": 0.1,
        "balance": 0.0,
    }  # fmt: skip
    part = made("deepseek_moe", knobs, gated=True)
    part.balance_bias.bias.copy_(torch.tensor([0.3, -0.2, 0.0, 0.1]))
    config = DeepseekV3Config(
        hidden_size=D, intermediate_size=FF, moe_intermediate_size=FF // 2, n_routed_experts=E, num_experts_per_tok=2,
        n_shared_experts=shared, n_group=1, topk_group=1, routed_scaling_factor=1.0, norm_topk_prob=True,
    )  # fmt: skip
    other = copied(DeepseekV3MoE(config), part)
    other.gate.e_score_correction_bias.copy_(part.balance_bias.bias)
    with torch.no_grad():
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(other.shared_experts, name).weight.copy_(getattr(part.shared, name).weight)
    x, a, b = inputs()
    weights = torch.randn_like(x)
    (part.eval()(a, context()) * weights).sum().backward()
    (other(b) * weights).sum().backward()
    torch.testing.assert_close(part(x, context()), other(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def by_loop(part, x, k, room, real=None):
    """One token after the other, counting the assignments of each expert."""
    y = torch.zeros_like(x)
    dropped = 0
    for row in range(len(x)):
        taken = Counter()
        for t in range(T):
            p = (part.router.weight @ x[row, t]).softmax(0)
            best = sorted(range(E), key=lambda e: -float(p[e].detach()))[:k]
            total = sum(p[e] for e in best) if k > 1 else 1.0
            for e in best:
                if taken[e] >= room:
                    dropped += 1
                    continue
                taken[e] += 1 if real is None or real[row, t] else 0
                inner = F.relu(part.experts.up_proj.weight[e] @ x[row, t])
                y[row, t] += p[e] / total * (part.experts.down_proj.weight[e] @ inner)
        assert max(taken.values()) <= room
    return y, dropped / (len(x) * T * k)


@pytest.mark.oracle("mlp=moe", "float64 loop")
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("factor", [0.3, 1.25, None])
def test_first_come_first_served_by_loop(k, factor):
    part = made(knobs={"top_k": k, "capacity_factor": factor, **PLAIN})
    x, _, _ = inputs(3)
    ctx = context(3)
    room = T * k if factor is None else math.ceil(factor * k * T / E)
    expected, dropped = by_loop(part, x, k, room)
    torch.testing.assert_close(part.train()(x, ctx), expected, rtol=1e-12, atol=1e-12)
    assert float(ctx.record.measures["train/moe_dropped"]) == pytest.approx(dropped)
    assert dropped > 0 or factor != 0.3
    torch.testing.assert_close(part.eval()(x, ctx), by_loop(part, x, k, T * k)[0], rtol=1e-12, atol=1e-12)


def test_padding_counts_neither_for_capacity_nor_for_balance():
    part = made(knobs={"capacity_factor": 0.5, **PLAIN, "balance": 1.0, "z_loss": 1.0}).train()
    x, _, _ = inputs(1)
    segments = torch.zeros(1, T, dtype=torch.long)
    segments[:, :10] = -1
    ctx, other = context(1, segments), context(1, segments)
    y = part(x, ctx)
    expected, _ = by_loop(part, x, 1, math.ceil(0.5 * T / E), real=segments >= 0)
    torch.testing.assert_close(y[:, 10:], expected[:, 10:])
    part(torch.cat([x[:, :10].flip(1) * 3, x[:, 10:]], dim=1), other)
    for name in ("train/moe_balance", "train/moe_z"):
        torch.testing.assert_close(ctx.record.losses[name], other.record.losses[name])


@pytest.mark.parametrize("factor", [0.4, 1.0])
def test_training_is_causal(factor):
    """A later token does not displace an earlier one, and rows do not affect each other."""
    part = made(knobs={"top_k": 2, "capacity_factor": factor, **PLAIN}).train()
    x, _, _ = inputs(3)
    changed = x.clone()
    changed[:, 11:] = torch.randn_like(changed[:, 11:])
    a, b = part(x, context(3)), part(changed, context(3))
    assert torch.equal(a[:, :11], b[:, :11])
    torch.testing.assert_close(part(x[1:2], context(1)), a[1:2], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("k", [1, 2])
def test_the_balance_loss_of_even_routing_is_alpha(k):
    """Each expert is preferred equally often: f_e = P_e = 1 / E; collapsed routing costs E / k times as much."""
    part = made(knobs={"top_k": k, **PLAIN, "balance": 0.01}).train()
    with torch.no_grad():
        part.router.weight.zero_()
        part.router.weight[:, :E] = torch.eye(E) * 30
    x = torch.zeros(2, T, D, dtype=torch.float64)
    for t in range(T):
        x[:, t, [(t + i) % E for i in range(k)]] = 1.0
    even, ctx = context(), context()
    part(x, even)
    torch.testing.assert_close(even.record.losses["train/moe_balance"].detach(), torch.tensor(0.01).double())
    assert float(even.record.measures["train/moe_load"]) == pytest.approx(1)
    part(x[:, :1].expand(-1, T, -1), ctx)
    assert float(ctx.record.losses["train/moe_balance"].detach()) == pytest.approx(0.01 * E / k, rel=1e-6)


def test_the_bias_moves_against_the_load():
    part = made("deepseek_moe", {"experts": E, "top_k": 1, "bias_rate": 0.25, "balance": 0.0}).train()
    x, _, _ = inputs()
    load = torch.bincount(part.router(x).softmax(-1).argmax(-1).flatten(), minlength=E)
    part(x, context())
    expected = 0.25 * torch.sign(load.double().mean() - load)
    torch.testing.assert_close(part.balance_bias.bias, expected)
    part.eval()(x, context())
    torch.testing.assert_close(part.balance_bias.bias, expected)
    assert "balance_bias.bias" in part.state_dict()
    for _ in range(60):
        part.train()(x, context())
    part.balance_bias.rate = 0.01
    for _ in range(200):
        part(x, context())
    ctx = context()
    part(x, ctx)
    assert float(ctx.record.measures["train/moe_load"]) < float(load.max() * E / load.sum())


def test_every_second_layer_has_experts_and_the_others_equal_the_dense_model():
    sparse = build_model(model_config(mlp={"name": "moe", "every": 2}, n_layers=4), 50)
    dense = build_model(model_config(n_layers=4), 50)
    kinds = [hasattr(layer.mlp, "experts") for layer in sparse.model.layers]
    assert kinds == [False, True, False, True]
    for a, b in zip(sparse.model.layers[0].parameters(), dense.model.layers[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_experts_are_initialized_as_the_dense_layer():
    """Each expert's matrices have the standard deviation of the dense layer's; equal names get equal weights."""
    options = {"d_model": 64, "n_layers": 3, "placement": "deepnorm", "activation": "gelu"}
    model = build_model(model_config(mlp={"name": "moe", "experts": 3}, **options), 50)
    dense = {i.name: (p, i) for p, i in describe(build_model(model_config(**options), 50))}
    found = 0
    for parameter, info in describe(model):
        if ".experts." not in info.name:
            continue
        found += 1
        plain, other = dense[info.name.replace(".experts", "")]
        assert (info.role, info.fan_in, info.fan_out, info.gain, info.residual) == (
            other.role, other.fan_in, other.fan_out, other.gain, other.residual,
        )  # fmt: skip
        for expert in parameter:
            assert float(expert.detach().std()) == pytest.approx(float(plain.detach().std()), rel=0.05)
        assert not torch.equal(parameter[0], parameter[1])
    assert found == 3 * 2
    again = build_model(model_config(mlp={"name": "moe", "experts": 3}, norm="layernorm", **options), 50)
    for a, b in zip(model.model.layers[1].mlp.parameters(), again.model.layers[1].mlp.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bias", [False, True])
def test_total_and_active_parameters_in_closed_form(bias):
    """A token uses k of E experts; the FLOPs are those of k dense layers and the router."""
    experts, k, layers, d, ff, length, vocab = 6, 2, 3, 32, 48, 16, 40
    options = {"n_layers": layers, "d_model": d, "d_ff": ff, "max_len": length, "activation": "gelu", "bias": bias}
    size = measure(model_config(mlp={"name": "moe", "experts": experts, "top_k": k}, **options), vocab)
    dense = measure(model_config(**options), vocab)
    one = 2 * d * ff + (d + ff if bias else 0)
    assert dense.active == dense.parameters
    assert size.parameters == dense.parameters + layers * ((experts - 1) * one + d * experts)
    assert size.active == dense.parameters + layers * ((k - 1) * one + d * experts)
    assert size.flops_per_token == dense.flops_per_token + layers * ((k - 1) * 4 * d * ff + 2 * d * experts)


def test_fine_grained_experts_have_the_flops_of_the_dense_layer():
    """shared + top_k = granularity: the FLOPs of the dense layer and the router."""
    options = {"d_model": 32, "d_ff": 96, "activation": "gelu", "n_layers": 2, "max_len": 16}
    size, dense = (measure(model_config(mlp=name, **options), 40) for name in ("deepseek_moe", "dense"))
    assert size.flops_per_token == dense.flops_per_token + 2 * 2 * 32 * 15
    assert size.active == dense.active + 2 * 32 * 15
    assert size.parameters == dense.parameters + 2 * (12 * 2 * 32 * 24 + 32 * 15)


def one(part, e, x):
    """Expert e on one token."""
    return part.experts.down_proj.weight[e] @ F.relu(part.experts.up_proj.weight[e] @ x)


PACKED = torch.tensor([[0] * 9 + [1] * 12 + [-1] * 3, [0] * T])


@pytest.mark.oracle("mlp=expert_choice", "float64 loop")
@pytest.mark.parametrize("factor", [0.6, 2.0, 9.0])
@pytest.mark.parametrize("segments", [None, PACKED])
def test_expert_choice_by_loop(factor, segments):
    """Each expert sorts each document's tokens by score and takes the first ones."""
    part = made("expert_choice", {"capacity_factor": factor})
    x, _, _ = inputs()
    of = torch.zeros(2, T, dtype=torch.long) if segments is None else segments
    expected = torch.zeros_like(x)
    for row in range(2):
        for document in of[row].unique():
            tokens = [t for t in range(T) if of[row, t] == document and document >= 0]
            p = (x[row] @ part.router.weight.T).softmax(-1)
            room = math.ceil(len(tokens) * min(1.0, factor / E))
            for e in range(E):
                for t in sorted(tokens, key=lambda t: -float(p[t, e].detach()))[:room]:
                    expected[row, t] += p[t, e] * one(part, e, x[row, t])
    torch.testing.assert_close(part(x, context(segments=segments)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.oracle("mlp=soft_moe", "float64 loop")
@pytest.mark.parametrize("segments", [None, PACKED])
def test_soft_moe_by_loop(segments):
    part = made("soft_moe", {"slots": 3})
    with torch.no_grad():
        part.scale.fill_(2.5)
    x, _, _ = inputs()
    of = torch.zeros(2, T, dtype=torch.long) if segments is None else segments
    expected = torch.zeros_like(x)
    for row in range(2):
        for document in of[row].unique():
            tokens = [t for t in range(T) if of[row, t] == document and document >= 0]
            if not tokens:
                continue
            unit = [part.slots.weight[s] / part.slots.weight[s].norm() for s in range(3 * E)]
            rows = [[2.5 * (x[row, t] / x[row, t].norm()) @ u for u in unit] for t in tokens]
            logits = torch.stack([torch.stack(r) for r in rows])  # (tokens, S)
            slots = logits.softmax(0).T @ x[row, tokens]
            said = torch.stack([one(part, s // 3, slots[s]) for s in range(3 * E)])
            expected[row, tokens] = logits.softmax(1) @ said
    torch.testing.assert_close(part(x, context(segments=segments)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["expert_choice", "soft_moe"])
@pytest.mark.parametrize("architecture", ["causal", "prefix", "encoder_decoder", "encoder"])
def test_routing_by_all_tokens_is_for_encoders_only(name, architecture):
    found = rules.violated_rules(
        effective(tiny_models.config() | {"mlp": {"name": name}, "architecture": {"name": architecture}})
    )
    assert any("routes by all tokens" in problem.what for problem in found) == (architecture != "encoder")


@pytest.mark.long
@pytest.mark.filterwarnings("default")
def test_compiled_is_eager():
    """The experts stay outside of the graph, since their shapes depend on the loads."""

    def run(compiled):
        part = made(knobs={"top_k": 2, **PLAIN}).float().train()
        torch.manual_seed(3)
        for p in part.parameters():
            nn.init.normal_(p, std=0.5)
        call = torch.compile(part) if compiled else part
        x = torch.randn(2, T, D, requires_grad=True)
        y = call(x, context())
        y.square().sum().backward()
        return [y.detach(), x.grad, *(p.grad for p in part.parameters())]

    torch._dynamo.reset()
    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
