"""contra_muon against float64 loops over singular values, and the properties of brake and floor."""

import math

import pytest
import torch
from helpers.optimizer_oracle import adamw_by_hand, assert_follows

from ablatio.registry.kinds import optimizers

KNOBS = {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.5, "aux_lr": 0.03, "betas": (0.9, 0.95)}
KNOBS |= {"eps": 1e-6}


def contra_by_hand(w, grads, rates, knobs, decay):
    """Each singular value by itself; what the brake leaves of the step is split along and across W."""
    m = torch.zeros_like(w)
    for g, lr in zip(grads, rates, strict=True):
        m = knobs["momentum"] * m + (1 - knobs["momentum"]) * g
        u, s, vt = torch.linalg.svd(m, full_matrices=False)
        power = knobs.get("power", 0.0)
        if power == 0:
            bent = s / s.norm()
            for _ in range(5):
                bent = 3.4445 * bent - 4.7750 * bent**3 + 2.0315 * bent**5
        else:
            bent = (s / s.norm()) ** power
        bent = bent - knobs["contra"] * s / (s**4).sum() ** 0.25
        step = u * (math.sqrt(len(s) * max(1, w.shape[0] / w.shape[1])) * bent / bent.norm()) @ vt
        w = w * (1 - lr * decay)
        size = w.norm()
        along = float((step * w).sum() / size)
        across = step - along * w / size
        along *= knobs.get("outward", 1.0) if along < 0 else 1.0
        step = across + along * w / size
        if (shortest := knobs.get("floor", 0.0) * size) > step.norm():
            step, along = step * shortest / step.norm(), float(along * shortest / step.norm())
        w = w - lr * step
        if knobs.get("outward", 1.0) < 1:
            w = w * (size - lr * along) / w.norm()
    return w


def aux_adamw(w, grads, rates, knobs, decay):
    return adamw_by_hand(w, grads, rates, knobs, decay)


aux_adamw.lr_of = "aux_lr"


@pytest.mark.oracle("optimizer=contra_muon", "singular values in float64")
@pytest.mark.parametrize(
    "knobs",
    [{}, {"contra": 0.5}, {"power": 0.1}, {"power": -0.25, "contra": 0.0}, {"outward": 0.5}, {"floor": 1.2},
     {"outward": 0.0, "floor": 0.8, "power": 0.3}],
    ids=str,
)  # fmt: skip
def test_contra_muon_by_hand(knobs: dict[str, float]) -> None:
    by_role = {"matrix": contra_by_hand} | dict.fromkeys(("vector", "embedding", "head"), aux_adamw)
    if knobs.get("power"):  # the shape's factor of the norm does not depend on how the power was normalized
        knobs = {"contra": 0.0, **knobs}
    assert_follows("contra_muon", KNOBS | {"contra": 0.2} | knobs, by_role, rtol=1e-6)


def step_of(w: torch.Tensor, g: torch.Tensor, **knobs: float) -> torch.Tensor:
    p = torch.nn.Parameter(w.clone())
    p.grad = g
    given = {"lr": 0.1, "nesterov": False, "weight_decay": 0.0, **knobs}
    optimizers.build("contra_muon", given, groups=[{"params": [p], "role": "matrix", "rate": 1.0}]).step()
    return p.detach()


def test_a_full_brake_never_lengthens_a_matrix_and_a_floor_holds() -> None:
    torch.manual_seed(1)
    w, g = torch.randn(2, 6, 9, dtype=torch.float64)
    assert step_of(w, -w, contra=0.0, outward=0.0).norm() <= w.norm() * (1 + 1e-12)
    assert step_of(w, -w, contra=0.0).norm() > w.norm()
    assert (step_of(w, w, outward=0.0) - step_of(w, w, outward=0.999)).abs().max() < 0.1  # inward steps stay
    moved = step_of(w, g, floor=3.0) - w
    torch.testing.assert_close(moved.norm(), 0.1 * 3.0 * w.norm())
    assert torch.equal(step_of(torch.zeros_like(w), g, outward=0.5), step_of(torch.zeros_like(w), g))


def test_without_contra_it_is_muon() -> None:
    torch.manual_seed(2)
    w, g = torch.randn(2, 8, 8, dtype=torch.float64)
    p = torch.nn.Parameter(w.clone())
    p.grad = g
    given = {"lr": 0.1, "nesterov": False, "weight_decay": 0.0, "ns_steps": 12, "coefficients": "polar_express"}
    optimizers.build("muon", given, groups=[{"params": [p], "role": "matrix", "rate": 1.0}]).step()
    ours = step_of(w, g, contra=0.0, ns_steps=12, coefficients="polar_express")
    torch.testing.assert_close(ours, p.detach(), rtol=1e-9, atol=1e-9)
