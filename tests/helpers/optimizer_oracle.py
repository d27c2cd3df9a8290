"""Compare twenty steps of an optimizer with a float64 loop: `from helpers.optimizer_oracle import assert_follows`."""

import copy

import torch
from helpers.support import model_config

from ablatio.model.build import build_model
from ablatio.model.parameter_roles import describe, groups_by_role
from ablatio.registry.kinds import optimizers

STEPS = 20


def model():
    """Model with parameters of all roles: 8 x 8, 24 x 8 and 8 x 24 matrices, 13 x 8 embedding and head, vectors."""
    config = model_config(norm="layernorm", position="learned", bias=True, d_model=8, d_ff=24, tied=False)
    made = build_model(config, 13).double()
    generator = torch.Generator().manual_seed(1)
    for p in made.parameters():
        torch.nn.init.normal_(p, generator=generator)
    return made


def gradients(model, step):
    """Gradients N(1/2, 1): their mean is not 0 because prodigy uses the distance from the start."""
    generator = torch.Generator().manual_seed(step)
    return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) + 0.5 for n, p in model.named_parameters()}


GRADIENTS = {step: gradients(model(), step) for step in range(STEPS)}


def rates_of(lr):
    """Learning rates of a warm-up over all steps, so that using another step's rate is detected."""
    return [lr * (step + 1) / STEPS for step in range(STEPS)]


def run(name, knobs, before=lambda optimizer, model, step: None):
    """Returns (model after all steps, its initial parameters, the optimizer); `before` is called before each step."""
    ours = model()
    start = copy.deepcopy({n: p.detach() for n, p in ours.named_parameters()})
    optimizer = optimizers.build(name, knobs, groups=groups_by_role(ours))
    first = [group["lr"] for group in optimizer.param_groups]
    for step in range(STEPS):
        for group, lr in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = lr * (step + 1) / STEPS
        for n, g in GRADIENTS[step].items():
            ours.get_parameter(n).grad = g.clone()
        before(optimizer, ours, step)
        optimizer.step()
    return ours, start, optimizer


def assert_follows(name, knobs, reference, rtol=1e-11, before=lambda optimizer, model, step: None):
    """Assert that the optimizer equals `reference(w, grads, rates, knobs, decay)`, which returns w after all steps.

    `reference` is one function, or a dict with one for each role.  A function's attribute `lr_of` names the knob that
    holds its learning rate.
    """
    ours, start, _ = run(name, knobs, before)
    roles = {info.name: info.role for _, info in describe(ours)}
    assert set(roles.values()) == {"matrix", "vector", "embedding", "head"}
    for n, w in start.items():
        follow = reference[roles[n]] if isinstance(reference, dict) else reference
        rates = rates_of(knobs[getattr(follow, "lr_of", "lr")])
        decay = knobs.get("weight_decay", 0.0) if roles[n] != "vector" else 0.0  # gains and biases do not decay
        expected = follow(w.clone(), [GRADIENTS[step][n] for step in range(STEPS)], rates, knobs, decay)
        close = {"rtol": rtol, "atol": rtol / 100, "msg": lambda m, n=n: f"{n}: {m}"}
        torch.testing.assert_close(ours.get_parameter(n).detach(), expected, **close)


def assert_like(name, knobs, make, rtol=1e-11):
    """Assert that the optimizer equals another library's, built by make(groups with weight_decay)."""
    ours, _, _ = run(name, knobs)
    theirs = model()
    decayed = [
        {"params": g["params"], "weight_decay": 0.0 if g["role"] == "vector" else knobs.get("weight_decay", 0.0)}
        for g in groups_by_role(theirs)
    ]
    optimizer = make(decayed)
    for step, lr in enumerate(rates_of(knobs["lr"])):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for n, g in GRADIENTS[step].items():
            theirs.get_parameter(n).grad = g.clone()
        optimizer.step()
    for (n, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol / 100, msg=lambda m, n=n: f"{n}: {m}")


def adam_means(grads, betas):
    """Yield Adam's bias-corrected moments (m^, v^) for each step, as explicit weighted sums over past gradients."""
    for t in range(1, len(grads) + 1):
        (b1, b2), past = betas, list(enumerate(grads[:t], start=1))
        m = sum(b1 ** (t - s) * g for s, g in past) / sum(b1 ** (t - s) for s, _ in past)
        v = sum(b2 ** (t - s) * g * g for s, g in past) / sum(b2 ** (t - s) for s, _ in past)
        yield m, v


def adamw_by_hand(w, grads, rates, knobs, decay):
    for (m, v), lr in zip(adam_means(grads, knobs["betas"]), rates, strict=True):
        w = w - lr * (m / (v.sqrt() + knobs["eps"]) + decay * w)
    return w
