"""schedule_free and prodigy: 20 steps against float64 loops and pytorch_optimizer, and the evaluated weights."""

import copy
import math

import pytest
import pytorch_optimizer
import torch
from helpers.optimizer_oracle import GRADIENTS, STEPS, assert_follows, assert_like, model, rates_of, run

from ablatio.model.parameter_roles import groups_by_role
from ablatio.registry import rules
from ablatio.registry.kinds import optimizers

FREE = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "power": 2.0, "weight_decay": 0.1}


def sequences(w, grads, rates, knobs, decay):
    """(y, x) after the last step: x is the mean of all z, weighted by rate^power."""
    (b1, b2), z, weights, zs, y = knobs["betas"], w, [], [], w
    for t, lr in enumerate(rates, start=1):
        v = sum((1 - b2) * b2 ** (t - s) * g * g for s, g in enumerate(grads[:t], start=1)) / (1 - b2**t)
        z = z - lr * (grads[t - 1] / (v.sqrt() + knobs["eps"]) + decay * y)
        zs, weights = [*zs, z], [*weights, max(rates[:t]) ** knobs["power"]]
        x = sum(a * b for a, b in zip(weights, zs, strict=True)) / sum(weights)
        y = (1 - b1) * z + b1 * x
    return y, x


@pytest.mark.oracle("optimizer=schedule_free", "float64 loop")
@pytest.mark.parametrize("power", [0.0, 2.0])
def test_schedule_free_by_hand(power):
    assert_follows("schedule_free", FREE | {"power": power}, lambda *given: sequences(*given)[0], rtol=1e-9)


@pytest.mark.oracle("optimizer=schedule_free", "pytorch_optimizer ScheduleFreeAdamW")
def test_schedule_free_is_pytorch_optimizers():
    given = {k: v for k, v in FREE.items() if k not in ("weight_decay", "power")}
    make = lambda g: pytorch_optimizer.ScheduleFreeAdamW(g, **given, weight_lr_power=2.0)  # noqa: E731
    assert_like("schedule_free", FREE, make, rtol=1e-9)


def test_schedule_free_evaluates_the_mean_and_trains_on_bit_for_bit():
    made, start, optimizer = run("schedule_free", FREE)
    y = {n: p.detach().clone() for n, p in made.named_parameters()}
    optimizer.eval()
    for n, p in made.named_parameters():
        decay = FREE["weight_decay"] if p.dim() > 1 else 0.0
        grads = [GRADIENTS[step][n] for step in range(STEPS)]
        expected = sequences(start[n], grads, rates_of(FREE["lr"]), FREE, decay)[1]
        torch.testing.assert_close(p.detach(), expected, rtol=1e-9, atol=1e-11)
    with pytest.raises(RuntimeError, match=r"train\(\)"):
        optimizer.step()
    optimizer.eval()  # a second call has no effect
    optimizer.train()
    optimizer.train()
    assert all(torch.equal(p, y[n]) for n, p in made.named_parameters())


def test_schedule_free_saved_while_it_evaluates_continues_bit_for_bit():
    made, _, optimizer = run("schedule_free", FREE)
    optimizer.eval()
    other = model()
    other.load_state_dict(made.state_dict())
    again = optimizers.build("schedule_free", FREE, groups=groups_by_role(other))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, o in ((made, optimizer), (other, again)):
        o.train()
        for n, g in GRADIENTS[0].items():
            net.get_parameter(n).grad = g.clone()
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), other.parameters(), strict=True))


def test_schedule_free_needs_a_constant_schedule():
    assert "schedule_free" in optimizers.names()  # this loads the plugins and so their rules
    config = {"optimizer": {"name": "schedule_free"}, "schedule": {"name": "cosine"}}
    (problem,) = rules.violated_rules(config)
    assert problem.fix == "schedule=constant" and "cosine" in problem.what
    config["schedule"]["name"] = "constant"
    assert not rules.violated_rules(config)


PRODIGY = {"lr": 1.0, "betas": (0.9, 0.95), "eps": 1e-8, "d0": 1e-3, "coef": 1.5, "weight_decay": 0.0}


@pytest.mark.oracle("optimizer=prodigy", "float64 loop")
def test_prodigy_by_hand():
    """The loop treats all parameters as one vector."""
    made, start, optimizer = run("prodigy", PRODIGY)
    names = list(start)
    flat = lambda named: torch.cat([named[n].flatten() for n in names])  # noqa: E731
    w, (b1, b2), d = flat(start), PRODIGY["betas"], PRODIGY["d0"]
    w0, b3, m, v, s, r, seen = w, math.sqrt(b2), 0, 0, 0, 0.0, []
    for step, lr in enumerate(rates_of(1.0)):
        g = flat(GRADIENTS[step])
        r = b3 * r + lr * d * d / PRODIGY["d0"] * float(g @ (w0 - w))
        s = b3 * s + d * d / PRODIGY["d0"] * g
        m, v = b1 * m + (1 - b1) * d * g, b2 * v + (1 - b2) * (d * g) ** 2
        old, d = d, max(d, PRODIGY["coef"] * r / float(s.abs().sum()))
        w = w - lr * old * m / (v.sqrt() + d * PRODIGY["eps"])
        seen.append(d)
    assert len(set(seen)) > 3 and seen[-1] > 2 * seen[0]  # the estimate grew
    assert optimizer.param_groups[0]["d"] == pytest.approx(d, rel=1e-9)
    torch.testing.assert_close(flat({n: p.detach() for n, p in made.named_parameters()}), w, rtol=1e-9, atol=1e-11)


@pytest.mark.oracle("optimizer=prodigy", "pytorch_optimizer Prodigy")
def test_prodigy_is_pytorch_optimizers():
    """pytorch_optimizer keeps r in float32."""
    knobs = PRODIGY | {"weight_decay": 0.1}
    given = {"lr": 1.0, "betas": (0.9, 0.95), "eps": 1e-8, "d0": 1e-3, "d_coef": 1.5}
    make = lambda g: pytorch_optimizer.Prodigy(g, **given, safeguard_warmup=True, weight_decouple=True)  # noqa: E731
    assert_like("prodigy", knobs, make, rtol=1e-4)
