"""Norms against torch, transformers and loops over the last axis in float64, and their invariances."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from ablatio.errors import UserError
from ablatio.registry import rules
from ablatio.registry.kinds import norms

SHAPES = [(7,), (1, 1), (3, 16), (2, 5, 48), (2, 3, 4, 33)]


def ready(name, width, dtype=torch.float64, **knobs):
    norm = norms.build(name, knobs, d_model=width).to(dtype)
    for p in norm.parameters():
        torch.nn.init.normal_(p)
    return norm


def value_and_gradients(function, x, *parameters):
    x = x.clone().requires_grad_()
    y = function(x)
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((y * weight).sum(), [x, *parameters])]


def assert_all_close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_layernorm_is_torchs(shape, eps):
    ours = ready("layernorm", shape[-1], eps=eps)
    theirs = torch.nn.LayerNorm(shape[-1], eps=eps, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    assert_all_close(
        value_and_gradients(ours, x, *ours.parameters()), value_and_gradients(theirs, x, *theirs.parameters()), 1e-12
    )


@pytest.mark.oracle("norm=rmsnorm", "torch rms_norm")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 0)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_rmsnorm_is_torchs(shape, eps, affine, dtype, tolerance):
    ours = ready("rmsnorm", shape[-1], dtype, eps=eps, affine=affine)
    weight = ours.weight.detach().clone().requires_grad_() if affine else None
    x = torch.randn(shape, dtype=dtype)
    theirs = value_and_gradients(lambda x: F.rms_norm(x, shape[-1:], weight, eps), x, *([weight] if affine else []))
    assert_all_close(value_and_gradients(ours, x, *ours.parameters()), theirs, tolerance)


def test_rmsnorm_accepts_any_strides():
    ours = ready("rmsnorm", 6)
    x = torch.randn(6, 4, 3, dtype=torch.float64).transpose(0, 2)  # the last axis is not contiguous
    assert_all_close(
        value_and_gradients(ours, x, ours.weight),
        value_and_gradients(lambda x: F.rms_norm(x, (6,), ours.weight, 1e-6), x, ours.weight),
        1e-12,
    )


def test_nonparametric_is_torchs():
    ours, theirs = ready("nonparametric", 48), torch.nn.LayerNorm(48, elementwise_affine=False)
    x = torch.randn(2, 5, 48, dtype=torch.float64) * 3 + 1
    assert_all_close(value_and_gradients(ours, x), value_and_gradients(theirs, x), 1e-12)
    assert not list(ours.parameters())


@pytest.mark.oracle("norm=gemma_rmsnorm", "transformers GemmaRMSNorm")
def test_gemma_rmsnorm_is_transformers():
    """transformers computes in float32 for every input dtype."""
    ours, theirs = ready("gemma_rmsnorm", 48, torch.float32), GemmaRMSNorm(48)
    assert not norms.build("gemma_rmsnorm", d_model=48).weight.any()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 48) * 3 + 1
    assert_all_close(
        value_and_gradients(ours, x, *ours.parameters()), value_and_gradients(theirs, x, *theirs.parameters()), 2e-5
    )


@pytest.mark.oracle("norm=groupnorm", "torch GroupNorm")
@pytest.mark.parametrize("groups, width, used", [(4, 48, 4), (1, 7, 1), (6, 48, 6), (4, 6, 2), (4, 7, 1)])
def test_groupnorm_is_torchs(groups, width, used):
    """torch groups the channels of (N, C), so each token is one of the N; there are gcd(groups, width) groups."""
    ours = ready("groupnorm", width, groups=groups)
    theirs = torch.nn.GroupNorm(used, width, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, width, dtype=torch.float64) * 3 + 1
    assert_all_close(
        value_and_gradients(ours, x, *ours.parameters()),
        value_and_gradients(lambda x: theirs(x.flatten(0, 1)).view_as(x), x, *theirs.parameters()),
        1e-12,
    )


@pytest.mark.parametrize("groups, fix", [(5, "norm.groups=4"), (32, "norm.groups=16"), (100, "norm.groups=16")])
def test_groupnorm_refuses_unequal_and_single_groups(groups, fix):
    def problems(count):
        config = {"norm": {"name": "groupnorm", "groups": count}, "model": {"d_model": 32}}
        return [p for p in rules.violated_rules(config) if p.where == "norm"]

    (problem,) = problems(groups)
    assert problem.fix == fix and not problems(int(fix.split("=")[1]))
    with pytest.raises(UserError, match="groups=16"):
        norms.build("groupnorm", {"groups": 32}, d_model=32)


def rms(row, eps):
    return math.sqrt(sum(v * v for v in row) / len(row) + eps)


def by_layernorm(row, eps=0.01):
    mean = sum(row) / len(row)
    return [(v - mean) / rms([u - mean for u in row], eps) for v in row]


# name -> (knobs, a function of one row and the norm's parameters).
BY_HAND = {
    "layernorm": (
        {"eps": 0.01},
        lambda row, p: [w * v + b for v, w, b in zip(by_layernorm(row), p["weight"], p["bias"], strict=True)],
    ),
    "nonparametric": ({"eps": 0.01}, lambda row, p: by_layernorm(row)),
    "groupnorm": (
        {"eps": 0.01, "groups": 3, "affine": False},
        lambda row, p: [v for i in range(0, 12, 4) for v in by_layernorm(row[i : i + 4])],
    ),
    "rmsnorm": ({"eps": 0.01}, lambda row, p: [w * v / rms(row, 0.01) for v, w in zip(row, p["weight"], strict=True)]),
    "gemma_rmsnorm": (
        {"eps": 0.01},
        lambda row, p: [(1 + w) * v / rms(row, 0.01) for v, w in zip(row, p["weight"], strict=True)],
    ),
    "simple_rmsnorm": ({"eps": 0.01}, lambda row, p: [v / rms(row, 0.01) for v in row]),
    "scalenorm": ({"eps": 1e-14}, lambda row, p: [p["weight"][0] * v / math.hypot(*row) for v in row]),
    "dyt": (
        {},
        lambda row, p: [
            w * math.tanh(p["alpha"][0] * v) + b for v, w, b in zip(row, p["weight"], p["bias"], strict=True)
        ],
    ),
    "derf": (
        {},
        lambda row, p: [
            w * math.erf(p["alpha"][0] * v + p["shift"][0]) + b
            for v, w, b in zip(row, p["weight"], p["bias"], strict=True)
        ],
    ),
    "identity": ({}, lambda row, p: row),
}


@pytest.mark.oracle("norm", "float64 loop")
@pytest.mark.parametrize("name", BY_HAND)
def test_norms_by_hand(name):
    knobs, function = BY_HAND[name]
    norm, x = ready(name, 12, **knobs), torch.randn(4, 12, dtype=torch.float64) * 3 + 1
    values = {key: parameter.tolist() for key, parameter in norm.named_parameters()}
    rows = [function(row, values) for row in x.tolist()]
    torch.testing.assert_close(norm(x), torch.tensor(rows, dtype=torch.float64), rtol=1e-12, atol=1e-12)


# Transformations of x that do not change the output, apart from eps: (scaling, shift).
INVARIANT = {
    "layernorm": (True, True),
    "nonparametric": (True, True),
    "groupnorm": (True, True),
    "rmsnorm": (True, False),
    "gemma_rmsnorm": (True, False),
    "simple_rmsnorm": (True, False),
    "scalenorm": (True, False),
    "dyt": (False, False),
    "derf": (False, False),
    "identity": (False, False),
}


@pytest.mark.parametrize("name", INVARIANT)
def test_invariance(name):
    norm, x = ready(name, 12), 10 * torch.randn(4, 12, dtype=torch.float64) + 10  # eps is far below
    found = [torch.allclose(norm(changed), norm(x), atol=1e-4) for changed in (30 * x, x + 5)]
    assert tuple(found) == INVARIANT[name]


@pytest.mark.parametrize("name", BY_HAND)
def test_a_token_of_zeros(name):
    """A zero input causes no division by zero, forward or backward; the output is the bias."""
    norm, x = ready(name, 12, torch.float32), torch.zeros(2, 12)
    y, gradient = value_and_gradients(norm, x)
    added = getattr(norm, "bias", None)
    if name == "derf":
        added = added + norm.weight * torch.erf(norm.shift)
    torch.testing.assert_close(y, torch.zeros(2, 12) if added is None else added.expand(2, 12))
    assert gradient.isfinite().all()


def test_lengths_of_tokens():
    """scalenorm gives each token length g, initially sqrt(d_model), the length of simple_rmsnorm."""
    x = torch.randn(5, 12, dtype=torch.float64) * 7
    for norm in (norms.build("scalenorm", d_model=12).double(), norms.build("simple_rmsnorm", {"eps": 1e-12})):
        torch.testing.assert_close(norm(x).norm(dim=-1), torch.full((5,), 12**0.5).double(), rtol=1e-7, atol=0)


def test_elementwise_norms_have_their_papers_initial_values():
    x = torch.randn(5, 12)
    torch.testing.assert_close(norms.build("dyt", d_model=12)(x), torch.tanh(0.5 * x))
    torch.testing.assert_close(norms.build("derf", d_model=12)(x), torch.erf(0.5 * x))


@pytest.mark.parametrize("affine", [True, False])
def test_rmsnorm_can_be_differentiated_twice(affine):
    norm = ready("rmsnorm", 5, affine=affine)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: norm(x), (x, *norm.parameters()))
    assert torch.autograd.gradgradcheck(norm, torch.randn(5, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("knobs", [{}, {"affine": False}], ids=str)
def test_gradients_by_differences(name, knobs):
    norm = ready(name, 5, **knobs)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: norm(x), (x, *norm.parameters()))


def test_layernorm_without_bias_or_affine():
    assert [n for n, _ in ready("layernorm", 4, bias=False).named_parameters()] == ["weight"]
    assert not list(ready("layernorm", 4, affine=False).parameters())
    assert not list(ready("rmsnorm", 4, affine=False).parameters())
