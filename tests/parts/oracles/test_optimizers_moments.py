"""Variants of Adam (ademamix, mars, cautious_adamw, adam_mini, lamb), lion and sophia: 20 steps in float64."""

import math
import types

import pytest
import pytorch_optimizer
import torch
from helpers.optimizer_oracle import STEPS, adam_means, assert_follows, assert_like, model, run

from ablatio.model.parameter_roles import groups_by_role
from ablatio.registry.kinds import optimizers

ADAM = {"lr": 0.03, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}


@pytest.mark.oracle("optimizer=ademamix", "pytorch_optimizer AdEMAMix")
@pytest.mark.parametrize("ramp", [0, 8, 40])
def test_ademamix_is_pytorch_optimizers(ramp):
    knobs = ADAM | {"betas": (0.9, 0.99, 0.999), "alpha": 5.0, "ramp": ramp}
    given = {k: v for k, v in knobs.items() if k not in ("weight_decay", "ramp")}
    make = lambda g: pytorch_optimizer.AdEMAMix(g, **given, t_alpha_beta3=ramp or None, weight_decouple=True)  # noqa: E731
    assert_like("ademamix", knobs, make)


def mars_by_hand(w, grads, rates, knobs, decay):
    (b1, b2), m, v, last = knobs["betas"], 0, 0, grads[0]  # the paper starts from x_0 = x_1
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), start=1):
        c = g + knobs["gamma"] * b1 / (1 - b1) * (g - last)
        c, last = c / max(1.0, float(c.norm())), g
        m, v = b1 * m + (1 - b1) * c, b2 * v + (1 - b2) * c * c
        w = w - lr * (m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + knobs["eps"]) + decay * w)
    return w


@pytest.mark.oracle("optimizer=mars", "float64 loop")
@pytest.mark.parametrize("gamma", [0.025, 0.5])
def test_mars_by_hand(gamma):
    assert_follows("mars", ADAM | {"betas": (0.95, 0.99), "gamma": gamma}, mars_by_hand, rtol=1e-10)


def cautious_by_hand(w, grads, rates, knobs, decay):
    for g, (m, v), lr in zip(grads, adam_means(grads, knobs["betas"]), rates, strict=True):
        u = m / (v.sqrt() + knobs["eps"])
        agree = u * g > 0
        w = w - lr * decay * w - lr * torch.where(agree, u, 0) * u.numel() / (agree.sum() + 1)
    return w


@pytest.mark.oracle("optimizer=cautious_adamw", "float64 loop")
def test_cautious_adamw_by_hand():
    assert_follows("cautious_adamw", ADAM, cautious_by_hand)


def adam_mini_by_hand(w, grads, rates, knobs, decay):
    """Adam with one v for each row; a vector is one row."""
    rows = [w] if w.dim() == 1 else list(w)
    for i, row in enumerate(rows):
        row_grads = [g if w.dim() == 1 else g[i] for g in grads]
        (b1, b2), v, x = knobs["betas"], 0.0, row
        for t, ((m, _), g, lr) in enumerate(
            zip(adam_means(row_grads, (b1, b2)), row_grads, rates, strict=True), start=1
        ):
            v = b2 * v + (1 - b2) * float(g @ g) / len(g)
            x = x - lr * (m / (math.sqrt(v / (1 - b2**t)) + knobs["eps"]) + decay * x)
        rows[i] = x
    return rows[0] if w.dim() == 1 else torch.stack(rows)


@pytest.mark.oracle("optimizer=adam_mini", "float64 loop")
def test_adam_mini_by_hand():
    assert_follows("adam_mini", ADAM, adam_mini_by_hand)


def test_adam_mini_keeps_half_of_adams_state():
    numels = {}
    for name in ("adam_mini", "cautious_adamw"):
        state = run(name, {})[2].state_dict()["state"]
        numels[name] = sum(s["m"].numel() + s["v"].numel() for s in state.values())
    assert numels["adam_mini"] < 0.6 * numels["cautious_adamw"]


def lamb_by_hand(w, grads, rates, knobs, decay):
    for (m, v), lr in zip(adam_means(grads, knobs["betas"]), rates, strict=True):
        u = m / (v.sqrt() + knobs["eps"]) + decay * w
        w = w - lr * float(w.norm()) / float(u.norm()) * u
    return w


@pytest.mark.oracle("optimizer=lamb", "float64 loop")
def test_lamb_by_hand():
    assert_follows("lamb", ADAM, lamb_by_hand)


def test_lamb_moves_weights_that_are_zero():
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    optimizers.build("lamb", {"lr": 0.1}, groups=[{"params": [p], "role": "vector"}]).step()
    torch.testing.assert_close(p.detach(), torch.full((3,), -0.1), rtol=1e-4, atol=0)


@pytest.mark.oracle("optimizer=lion", "pytorch_optimizer Lion")
def test_lion_is_pytorch_optimizers():
    knobs = {"lr": 0.03, "betas": (0.9, 0.99), "weight_decay": 0.5}
    assert_like("lion", knobs, lambda g: pytorch_optimizer.Lion(g, lr=0.03, betas=(0.9, 0.99), weight_decouple=True))


SOPHIA = {"lr": 0.03, "betas": (0.9, 0.8), "gamma": 0.5, "every": 3, "eps": 1e-12, "weight_decay": 0.1}
TARGETS = 16


def drawn(p):
    """Gradient of the fake sampled loss sum(a w^2), with a chosen by the parameter's shape."""
    return 2e-2 * p.numel() ** 0.5 * p


def fake_step(made, index):
    def sampled_loss():
        return torch.stack([1e-2 * p.numel() ** 0.5 * p.square().sum() for p in made.parameters()]).sum()

    return types.SimpleNamespace(index=index, n_targets=TARGETS, sampled_loss=sampled_loss)


def sophia_by_hand(w, grads, rates, knobs, decay):
    (b1, b2), m, h = knobs["betas"], torch.zeros_like(w), torch.zeros_like(w)
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True)):
        m = b1 * m + (1 - b1) * g
        if t % knobs["every"] == 0 and knobs["observed"]:
            h = b2 * h + (1 - b2) * TARGETS * drawn(w) ** 2
        u = (m / torch.maximum(knobs["gamma"] * h, torch.tensor(knobs["eps"]))).clamp(-1, 1)
        w = w - lr * decay * w - lr * u
    return w


@pytest.mark.oracle("optimizer=sophia", "float64 loop")
@pytest.mark.parametrize("observed", [True, False])
def test_sophia_by_hand(observed):
    shares = []

    def before(optimizer, made, step):
        grads = [p.grad.clone() for p in made.parameters()]
        if observed:
            optimizer.observe(fake_step(made, step))
        assert all(torch.equal(p.grad, g) for p, g in zip(made.parameters(), grads, strict=True))  # .grad is unchanged
        for p in made.parameters():
            if optimizer.state[p]:
                u = optimizer.state[p]["m"] / (SOPHIA["gamma"] * optimizer.state[p]["h"])
                shares.append(float((u.abs() < 1).double().mean()))

    def reference(w, grads, rates, knobs, decay):
        return sophia_by_hand(w, grads, rates, knobs | {"observed": observed}, decay)

    assert_follows("sophia", SOPHIA, reference, rtol=1e-9, before=before)
    assert not observed or 0.1 < sum(shares) / len(shares) < 0.9  # some entries are clipped, some are not


def test_sophia_observed_state_continues_bit_for_bit():
    def steps(optimizer, made, first, last):
        for step in range(first, last):
            for i, p in enumerate(made.parameters()):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i), dtype=p.dtype)
            optimizer.observe(fake_step(made, step))
            optimizer.step()

    whole, parts = model(), model()
    one = optimizers.build("sophia", SOPHIA, groups=groups_by_role(whole))
    steps(one, whole, 0, STEPS)
    two = optimizers.build("sophia", SOPHIA, groups=groups_by_role(parts))
    steps(two, parts, 0, 7)
    three = optimizers.build("sophia", SOPHIA, groups=groups_by_role(parts))
    three.load_state_dict(two.state_dict())
    steps(three, parts, 7, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
