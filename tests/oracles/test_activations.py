"""Activations against torch, the formulas of Shazeer 2020 by a loop, and transformers' tanh-GELU."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers.activations import NewGELUActivation

from ablatio.kinds import activations

POINTS = torch.cat(
    [torch.linspace(-12, 12, 481, dtype=torch.float64), torch.tensor([0.0, -1e-9, 1e-9, 40, -40]).double()]
)


def phi(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def tanh_gelu(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


SCALAR = {
    ("relu", None): lambda x: max(0.0, x),
    ("gelu", "none"): lambda x: x * phi(x),
    ("gelu", "tanh"): tanh_gelu,
    ("silu", None): lambda x: x * sigmoid(x),
}
GATED = {
    ("geglu", "none"): lambda gate, up: gate * phi(gate) * up,
    ("geglu", "tanh"): lambda gate, up: tanh_gelu(gate) * up,
    ("swiglu", None): lambda gate, up: gate * sigmoid(gate) * up,
}


def made(name, approximate):
    return activations.build(name, {"approximate": approximate} if approximate else {}, d_ff=4)


@pytest.mark.parametrize("name, approximate", SCALAR, ids=str)
def test_elementwise_by_hand(name, approximate):
    expected = torch.tensor([SCALAR[name, approximate](x) for x in POINTS.tolist()], dtype=torch.float64)
    torch.testing.assert_close(made(name, approximate)(POINTS), expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name, approximate", GATED, ids=str)
def test_gated_by_hand(name, approximate):
    up = torch.randn_like(POINTS)
    expected = [GATED[name, approximate](g, u) for g, u in zip(POINTS.tolist(), up.tolist(), strict=True)]
    actual = made(name, approximate)(POINTS, up)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-15)


def test_elementwise_are_torchs():
    for name, theirs in [("relu", F.relu), ("gelu", F.gelu), ("silu", F.silu)]:
        assert torch.equal(made(name, None)(POINTS), theirs(POINTS))


def test_tanh_gelu_is_gpt2s():
    x = POINTS.clone().requires_grad_()
    ours, theirs = made("gelu", "tanh")(x), NewGELUActivation()(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_the_registry_knows_which_are_gated():
    gated = {name for name in activations.names() if activations[name].facts["gated"]}
    assert {"geglu", "swiglu"} <= gated and not gated & {"relu", "gelu", "silu"}
