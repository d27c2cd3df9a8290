"""Optimizers: 20 steps against float64 loops that are written as in the papers."""

import math

import pytest
import torch
import transformers
from helpers.optimizer_oracle import STEPS, adam_means, adamw_by_hand, assert_follows, assert_like, model
from helpers.support import model_config

from ablatio.model.build import build_model
from ablatio.model.parameter_roles import groups_by_role
from ablatio.registry.kinds import optimizers


@pytest.mark.oracle("optimizer=adamw", "float64 loop")
@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.8, 0.999)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_by_hand(betas, weight_decay):
    assert_follows("adamw", {"lr": 0.03, "betas": betas, "eps": 1e-6, "weight_decay": weight_decay}, adamw_by_hand)


def adam_by_hand(w, grads, rates, knobs, decay):
    (b1, b2), m, v, top = knobs["betas"], 0, torch.zeros_like(w), torch.zeros_like(w)
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), start=1):
        g = g + decay * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        top = torch.maximum(top, v) if knobs["amsgrad"] else v
        w = w - lr * m / (1 - b1**t) / ((top / (1 - b2**t)).sqrt() + knobs["eps"])
    return w


@pytest.mark.oracle("optimizer=adam", "float64 loop")
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_by_hand(amsgrad):
    knobs = {"lr": 0.03, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "amsgrad": amsgrad}
    assert_follows("adam", knobs, adam_by_hand)


@pytest.mark.oracle("optimizer=nadam", "torch NAdam")
@pytest.mark.parametrize("momentum_decay", [0.0, 4e-3])
def test_nadam_is_torchs(momentum_decay):
    knobs = {"lr": 0.03, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "momentum_decay": momentum_decay}
    given = {k: v for k, v in knobs.items() if k != "weight_decay"}
    # torch keeps the product of the momenta in float32.
    assert_like("nadam", knobs, lambda g: torch.optim.NAdam(g, **given, decoupled_weight_decay=True), rtol=1e-6)


def radam_by_hand(w, grads, rates, knobs, decay):
    """The paper's algorithm 2, and decoupled decay."""
    b1, b2 = knobs["betas"]
    limit = 2 / (1 - b2) - 1
    for t, ((m, v), lr) in enumerate(zip(adam_means(grads, (b1, b2)), rates, strict=True), start=1):
        rho, u = limit - 2 * t * b2**t / (1 - b2**t), m
        if rho > 5:  # the paper says 4; torch and the authors' code 5
            r = math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
            # the authors' code adds eps before the correction of v
            u = r * m / (v.sqrt() + knobs["eps"] / math.sqrt(1 - b2**t))
        w = w - lr * decay * w - lr * u
    return w


@pytest.mark.oracle("optimizer=radam", "float64 loop")
@pytest.mark.parametrize("b2", [0.9, 0.99])
def test_radam_by_hand(b2):
    assert_follows("radam", {"lr": 0.03, "betas": (0.9, b2), "eps": 1e-6, "weight_decay": 0.1}, radam_by_hand)


def adafactor_by_hand(w, grads, rates, knobs, decay):
    """The paper's algorithms 4 and 5, and decoupled decay."""
    r = c = full = 0
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), start=1):
        b = 1 - t ** knobs["decay"]
        size = max(knobs["floor"], float(w.square().mean().sqrt()))
        r, full = b * r + (1 - b) * g.square().mean(-1), b * full + (1 - b) * g * g
        if w.dim() > 1:
            c = b * c + (1 - b) * g.square().mean(-2)
        u = g / (r[:, None] * c[None] / r.mean() if w.dim() > 1 else full).sqrt()
        u = u / max(1.0, float(u.square().mean().sqrt()) / knobs["clip"])
        w = w - lr * decay * w - size * min(lr, 1 / math.sqrt(t)) * u
    return w


@pytest.mark.oracle("optimizer=adafactor", "float64 loop")
@pytest.mark.parametrize("lr", [0.05, 0.5])
def test_adafactor_by_hand(lr):
    knobs = {"lr": lr, "decay": -0.8, "floor": 1e-3, "clip": 1.0, "weight_decay": 0.1}
    assert_follows("adafactor", knobs, adafactor_by_hand, rtol=1e-9)


@pytest.mark.oracle("optimizer=adafactor", "transformers Adafactor")
def test_adafactor_is_transformers():
    """With scale_parameter, which multiplies lr by the root mean square of the tensor; their norm is in float32."""
    given = {"scale_parameter": True, "relative_step": False, "warmup_init": False, "decay_rate": -0.8}
    make = lambda groups: transformers.Adafactor(groups, lr=0.05, **given)  # noqa: E731
    assert_like("adafactor", {"lr": 0.05, "weight_decay": 0.0}, make, rtol=1e-6)


def sgd_by_hand(w, grads, rates, knobs, decay):
    u, momentum = torch.zeros_like(w), knobs["momentum"]
    for g, lr in zip(grads, rates, strict=True):
        g = g + decay * w
        u = momentum * u + g
        w = w - lr * (g + momentum * u if knobs["nesterov"] else u)
    return w


@pytest.mark.oracle("optimizer=sgd", "float64 loop")
@pytest.mark.parametrize("momentum, nesterov", [(0.9, False), (0.9, True), (0.0, False)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_sgd_by_hand(momentum, nesterov, weight_decay):
    knobs = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    assert_follows("sgd", knobs, sgd_by_hand)


def adagrad_by_hand(w, grads, rates, knobs, decay):
    s = torch.full_like(w, knobs["start"])
    for g, lr in zip(grads, rates, strict=True):
        g = g + decay * w
        s = s + g * g
        w = w - lr * g / (s.sqrt() + knobs["eps"])
    return w


@pytest.mark.oracle("optimizer=adagrad", "float64 loop")
@pytest.mark.parametrize("start", [0.0, 0.1])
def test_adagrad_by_hand(start):
    assert_follows("adagrad", {"lr": 0.1, "start": start, "eps": 1e-8, "weight_decay": 0.05}, adagrad_by_hand)


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


def test_steps_are_counted_for_each_parameter():
    """A parameter with a late first gradient starts at step 1: its bias corrections are those of step 1."""
    late, new = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    other = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    groups = [{"params": [other], "role": "matrix"}, {"params": [late], "role": "vector"}]
    optimizer = optimizers.build("cautious_adamw", {}, groups=groups)
    for step in range(STEPS):
        other.grad = torch.ones_like(other)
        late.grad = torch.ones_like(late) if step == STEPS - 1 else None
        optimizer.step()
    new.grad = torch.ones_like(new)
    optimizers.build("cautious_adamw", {}, groups=[{"params": [new], "role": "vector"}]).step()
    torch.testing.assert_close(late, new, rtol=0, atol=0)
