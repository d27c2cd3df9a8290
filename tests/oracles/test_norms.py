"""Norms against torch's and against loops over the last axis."""

import math

import pytest
import torch
import torch.nn.functional as F

from ablatio.kinds import norms

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


def test_rmsnorm_takes_any_strides():
    ours = ready("rmsnorm", 6)
    x = torch.randn(6, 4, 3, dtype=torch.float64).transpose(0, 2)  # the last axis is not contiguous
    assert_all_close(
        value_and_gradients(ours, x, ours.weight),
        value_and_gradients(lambda x: F.rms_norm(x, (6,), ours.weight, 1e-6), x, ours.weight),
        1e-12,
    )


def by_hand(name, row, weight, bias, eps):
    mean = sum(row) / len(row) if name == "layernorm" else 0.0
    scale = 1 / math.sqrt(sum((v - mean) ** 2 for v in row) / len(row) + eps)
    return [w * (v - mean) * scale + b for v, w, b in zip(row, weight, bias, strict=True)]


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm"])
def test_norms_by_hand(name):
    norm, x = ready(name, 11, eps=0.01), torch.randn(4, 11, dtype=torch.float64) * 3 + 1
    bias = getattr(norm, "bias", None)
    bias = [0.0] * 11 if bias is None else bias.tolist()
    rows = [by_hand(name, row, norm.weight.tolist(), bias, 0.01) for row in x.tolist()]
    torch.testing.assert_close(norm(x), torch.tensor(rows, dtype=torch.float64), rtol=1e-12, atol=1e-12)


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
