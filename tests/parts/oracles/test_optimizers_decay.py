"""Hyperball, cautious weight decay, and adafactor's momentum and unfactored form, against float64 loops."""

import copy
import math

import pytest
import torch
import transformers
from helpers.optimizer_oracle import STEPS, adam_means, assert_follows, assert_like, model, run

from ablatio.model.parameter_roles import groups_by_role
from ablatio.registry.kinds import optimizers

ADAMW = {"lr": 0.03, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.5}
MUON = ADAMW | {"lr": 0.1, "aux_lr": 0.03, "momentum": 0.9, "nesterov": False}


def adam_directions(grads, knobs):
    return [m / (v.sqrt() + knobs["eps"]) for m, v in adam_means(grads, knobs["betas"])]


def muon_directions(grads, knobs):
    """Newton-Schulz on singular values, times the factor for the shape."""
    m = torch.zeros_like(grads[0])
    for g in grads:
        m = knobs["momentum"] * m + (1 - knobs["momentum"]) * g
        u, s, vt = torch.linalg.svd(m, full_matrices=False)
        s = s / s.norm()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        yield math.sqrt(max(1, m.shape[0] / m.shape[1])) * (u * s @ vt)


def cautious(directions, lr_of="lr"):
    def by_hand(w, grads, rates, knobs, decay):
        for u, lr in zip(directions(grads, knobs), rates, strict=True):
            w = w - lr * (u + decay * torch.where(u * w >= 0, w, 0.0))
        return w

    by_hand.lr_of = lr_of
    return by_hand


def hyperball(directions):
    def by_hand(w, grads, rates, knobs, decay):
        radius = float(w.square().sum()) ** 0.5
        for u, lr in zip(directions(grads, knobs), rates, strict=True):
            w = w - lr * radius * u / float(u.square().sum()) ** 0.5
            w = radius * w / float(w.square().sum()) ** 0.5
        return w

    return by_hand


def adamw(lr_of="lr"):
    def by_hand(w, grads, rates, knobs, decay):
        for u, lr in zip(adam_directions(grads, knobs), rates, strict=True):
            w = w - lr * (u + decay * w)
        return w

    by_hand.lr_of = lr_of
    return by_hand


OTHERS = ("vector", "embedding", "head")


@pytest.mark.oracle("optimizer=adamw", "float64 loop")
def test_cautious_decay_of_adamw_by_hand():
    assert_follows("adamw", ADAMW | {"cautious_decay": True}, cautious(adam_directions))


@pytest.mark.oracle("optimizer=muon", "singular values in float64")
def test_cautious_decay_of_muon_by_hand():
    by_role = {"matrix": cautious(muon_directions)} | dict.fromkeys(OTHERS, cautious(adam_directions, "aux_lr"))
    assert_follows("muon", MUON | {"cautious_decay": True}, by_role, rtol=1e-8)


@pytest.mark.oracle("optimizer=adamw", "float64 loop")
@pytest.mark.parametrize("cautious_decay", [False, True])
def test_hyperball_of_adamw_by_hand(cautious_decay):
    """Hidden matrices keep their norm; the other roles are as without."""
    other = cautious(adam_directions) if cautious_decay else adamw()
    by_role = {"matrix": hyperball(adam_directions)} | dict.fromkeys(OTHERS, other)
    assert_follows("adamw", ADAMW | {"hyperball": True, "cautious_decay": cautious_decay}, by_role)


@pytest.mark.oracle("optimizer=muon", "singular values in float64")
def test_hyperball_of_muon_by_hand():
    by_role = {"matrix": hyperball(muon_directions)} | dict.fromkeys(OTHERS, adamw("aux_lr"))
    assert_follows("muon", MUON | {"hyperball": True}, by_role, rtol=1e-8)


@pytest.mark.parametrize("name", ["adamw", "muon", "normuon"])
def test_hyperball_holds_each_norm_and_the_length_of_the_step(name):
    """Matrices of one stack keep their own norms; lr is the step's length relative to them, before the projection."""
    w = torch.nn.Parameter(torch.randn(3, 8, 20, dtype=torch.float64) * torch.tensor([0.1, 1.0, 50.0])[:, None, None])
    norms = w.detach().norm(dim=(1, 2))
    optimizer = optimizers.build(name, {"hyperball": True, "lr": 0.05}, groups=[{"params": [w], "role": "matrix"}])
    for step in range(STEPS):
        before = w.detach().clone()
        w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(step), dtype=w.dtype)
        optimizer.step()
        torch.testing.assert_close(w.detach().norm(dim=(1, 2)), norms, rtol=1e-12, atol=0)
        angles = torch.acos((before * w.detach()).sum((1, 2)) / norms**2)
        assert ((angles > 0.01) & (angles <= math.asin(0.05) + 1e-9)).all()


@pytest.mark.parametrize("name", ["adamw", "muon", "normuon"])
def test_a_matrix_that_starts_at_0_has_no_norm_to_keep(name):
    knobs = {"weight_decay": 0.3}
    moved = []
    for held in (True, False):
        w = torch.nn.Parameter(torch.zeros(8, 20, dtype=torch.float64))
        optimizer = optimizers.build(name, knobs | {"hyperball": held}, groups=[{"params": [w], "role": "matrix"}])
        for step in range(5):
            w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(step), dtype=w.dtype)
            optimizer.step()
        moved.append(w.detach())
    assert moved[0].abs().max() > 0
    torch.testing.assert_close(*moved, rtol=1e-12, atol=0)


def test_hyperball_accepts_a_gradient_of_0():
    w = torch.nn.Parameter(torch.ones(4, 6))
    w.grad = torch.zeros_like(w)
    optimizers.build("muon", {"hyperball": True}, groups=[{"params": [w], "role": "matrix"}]).step()
    torch.testing.assert_close(w.detach(), torch.ones(4, 6))


@pytest.mark.parametrize("name, knobs", [("muon", MUON), ("adamw", ADAMW)], ids=["muon", "adamw"])
def test_without_decay_cautious_decay_changes_nothing(name, knobs):
    finals = [run(name, knobs | {"weight_decay": 0.0, "cautious_decay": on})[0] for on in (False, True)]
    for a, b in zip(*(m.parameters() for m in finals), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("knobs", [{"hyperball": True}, {"cautious_decay": True}, {"coefficients": "polar_express"}])
@pytest.mark.parametrize("name", ["muon", "normuon", "adamw"])
def test_a_restored_state_continues_bit_for_bit(name, knobs):
    if name == "adamw" and "coefficients" in knobs:
        knobs = {"hyperball": True, "cautious_decay": True}
    whole, parts = model(), model()
    one = optimizers.build(name, knobs, groups=groups_by_role(whole))
    steps(one, whole, 0, 9)
    two = optimizers.build(name, knobs, groups=groups_by_role(parts))
    steps(two, parts, 0, 4)
    three = optimizers.build(name, knobs, groups=groups_by_role(parts))
    three.load_state_dict(copy.deepcopy(two.state_dict()))
    steps(three, parts, 4, 9)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_muon_continues_a_state_of_a_version_without_the_newer_knobs():
    old, new = model(), model()
    one = optimizers.build("muon", MUON, groups=groups_by_role(old))
    steps(one, old, 0, 3)
    state = copy.deepcopy(one.state_dict())
    for group in state["param_groups"]:
        for name in ("coefficients", "hyperball", "cautious_decay"):
            del group[name]
    new.load_state_dict(old.state_dict())
    two = optimizers.build("muon", MUON, groups=groups_by_role(new))
    two.load_state_dict(state)
    for optimizer, made in ((one, old), (two, new)):
        steps(optimizer, made, 3, 6)
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))


def steps(optimizer, made, first, last):
    for step in range(first, last):
        for i, p in enumerate(made.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i), dtype=p.dtype)
        optimizer.step()


def adafactor_by_hand(w, grads, rates, knobs, decay):
    """The paper's algorithms 4 and 5 with momentum on the scaled steps, as in the authors' code."""
    factored = knobs["factored"] and w.dim() > 1
    r = c = full = m = 0
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), start=1):
        b = 1 - t ** knobs["decay"]
        size = max(knobs["floor"], float(w.square().mean().sqrt()))
        r, full = b * r + (1 - b) * g.square().mean(-1), b * full + (1 - b) * g * g
        if w.dim() > 1:
            c = b * c + (1 - b) * g.square().mean(-2)
        u = g / (r[:, None] * c[None] / r.mean() if factored else full).sqrt()
        u = u / max(1.0, float(u.square().mean().sqrt()) / knobs["clip"])
        m = knobs["beta1"] * m + (1 - knobs["beta1"]) * size * min(lr, 1 / math.sqrt(t)) * u
        w = w - lr * decay * w - m
    return w


@pytest.mark.oracle("optimizer=adafactor", "float64 loop")
@pytest.mark.parametrize("beta1, factored", [(0.9, True), (0.0, False), (0.9, False), (0.5, True)])
@pytest.mark.parametrize("lr", [0.05, 0.5])
def test_adafactor_with_momentum_and_unfactored_by_hand(beta1, factored, lr):
    knobs = {"lr": lr, "decay": -0.8, "floor": 1e-3, "clip": 1.0, "weight_decay": 0.1}
    assert_follows("adafactor", knobs | {"beta1": beta1, "factored": factored}, adafactor_by_hand, rtol=1e-9)


@pytest.mark.oracle("optimizer=adafactor", "transformers Adafactor")
def test_adafactor_with_momentum_is_transformers():
    given = {"scale_parameter": True, "relative_step": False, "warmup_init": False, "decay_rate": -0.8, "beta1": 0.9}
    make = lambda groups: transformers.Adafactor(groups, lr=0.05, **given)  # noqa: E731
    assert_like("adafactor", {"lr": 0.05, "beta1": 0.9, "weight_decay": 0.0}, make, rtol=1e-6)


def test_adafactor_without_momentum_equals_torchs():
    """Our own loop, by a momentum too small to matter, is the one that beta1=0 runs."""
    finals = [run("adafactor", {"beta1": b, "weight_decay": 0.1})[0] for b in (0.0, 1e-15)]
    for a, b in zip(*(m.parameters() for m in finals), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_adafactor_keeps_what_its_knobs_say():
    """Numbers of state: n + m factored, n m unfactored, another n m with momentum."""
    counts = {}
    for beta1, factored in [(0.9, True), (0.0, False), (0.9, False)]:
        w = torch.nn.Parameter(torch.ones(6, 10))
        w.grad = torch.ones_like(w)
        knobs = {"beta1": beta1, "factored": factored}
        optimizer = optimizers.build("adafactor", knobs, groups=[{"params": [w], "role": "matrix"}])
        optimizer.step()
        counts[beta1, factored] = sum(x.numel() for x in optimizer.state[w].values() if isinstance(x, torch.Tensor))
    assert counts == {(0.9, True): 60 + 16, (0.0, False): 60, (0.9, False): 120}
