"""Optimizers: 20 steps against float64 loops over numbers that are written as the papers have them."""

import copy
import math

import pytest
import torch
from support import model_config

from ablatio.kinds import optimizers
from ablatio.model.assembly import build_model
from ablatio.model.roles import groups_by_role

STEPS = 20


def model():
    config = model_config(norm="layernorm", position="learned", bias=True, d_model=8, tied=False)
    made = build_model(config, 13).double()
    for p in made.parameters():
        torch.nn.init.normal_(p)
    return made


def gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}


def run(name, knobs, rates):
    ours = model()
    start = copy.deepcopy(dict(ours.named_parameters()))
    optimizer = optimizers.build(name, knobs, groups=groups_by_role(ours))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        for n, g in gradients(ours, step).items():
            ours.get_parameter(n).grad = g
        optimizer.step()
    return start, dict(ours.named_parameters())


def assert_follows(name, knobs, reference):
    rates = [knobs["lr"] * (step + 1) / STEPS for step in range(STEPS)]
    start, ours = run(name, knobs, rates)
    assert any(p.dim() == 1 for p in start.values()) and any(p.dim() == 2 for p in start.values())
    for n, w in start.items():
        grads = [GRADIENTS[step][n] for step in range(STEPS)]
        decay = knobs["weight_decay"] if w.dim() > 1 else 0.0  # gains and biases do not decay
        expected = reference(w.detach().clone(), grads, rates, knobs, decay)
        torch.testing.assert_close(ours[n].detach(), expected, rtol=1e-11, atol=1e-13, msg=lambda m, n=n: f"{n}: {m}")


GRADIENTS = {step: gradients(model(), step) for step in range(STEPS)}


def adamw_by_hand(w, grads, rates, knobs, decay):
    (b1, b2), m, v = knobs["betas"], torch.zeros_like(w), torch.zeros_like(w)
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        w = w - lr * (m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + knobs["eps"]) + decay * w)
    return w


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.8, 0.999)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_by_hand(betas, weight_decay):
    assert_follows("adamw", {"lr": 0.03, "betas": betas, "eps": 1e-6, "weight_decay": weight_decay}, adamw_by_hand)


def sgd_by_hand(w, grads, rates, knobs, decay):
    u, momentum = torch.zeros_like(w), knobs["momentum"]
    for g, lr in zip(grads, rates, strict=True):
        g = g + decay * w
        u = momentum * u + g
        w = w - lr * (g + momentum * u if knobs["nesterov"] else u)
    return w


@pytest.mark.parametrize("momentum, nesterov", [(0.9, False), (0.9, True), (0.0, False)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_sgd_by_hand(momentum, nesterov, weight_decay):
    knobs = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    assert_follows("sgd", knobs, sgd_by_hand)


@pytest.mark.parametrize("tied", [True, False])
def test_each_parameter_is_in_one_group_of_its_role(tied):
    made = build_model(model_config(norm="layernorm", position="t5", bias=True, tied=tied), 13)
    groups = groups_by_role(made)
    roles = {id(p): g["role"] for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(roles) == len(list(made.parameters()))
    for name, p in made.named_parameters():
        expected = "vector" if p.dim() == 1 else "head" if name == "lm_head.weight" else "matrix"
        if "embed_tokens" in name or "relative_attention_bias" in name:
            expected = "embedding"
        assert roles[id(p)] == expected, name


def test_default_adamw_is_gpt3s():
    (group, *_) = optimizers.build("adamw", {}, groups=groups_by_role(model())).param_groups
    assert group["betas"] == (0.9, 0.95) and group["weight_decay"] == 0.1 and math.isclose(group["eps"], 1e-8)
