"""Quantized matrices against their definitions, weight by weight in float64, and bitsandbytes."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ablatio import quantizations
from ablatio.errors import UserError
from ablatio.model.quantized import Coded
from ablatio_std.quantizations import NF4, by_bitsandbytes


def coded(name: str, layer: nn.Linear, **knobs: object) -> Coded:
    model = nn.Sequential(layer)
    quantizations.build(name, knobs).apply(model)
    assert isinstance(model[0], Coded)
    return model[0]


@pytest.mark.oracle("quantization=int4", "the table's definition, from scipy's normal quantiles")
def test_nf4_table() -> None:
    """Appendix E of arXiv:2305.14314: eight quantiles above zero, seven below, and zero, scaled to [-1, 1]."""
    from scipy.stats import norm

    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    above = norm.ppf(torch.linspace(offset, 0.5, 9)[:-1].double().numpy())
    below = -norm.ppf(torch.linspace(offset, 0.5, 8)[:-1].double().numpy())
    wanted = sorted([*above, 0.0, *below])
    torch.testing.assert_close(
        torch.tensor(NF4), torch.tensor([w / wanted[-1] for w in wanted]).float(), rtol=0, atol=1e-5
    )


@pytest.mark.oracle("quantization=int4", "a search over the table for each weight")
@pytest.mark.parametrize("code", ["nf4", "absmax"])
@pytest.mark.parametrize("width, group", [(128, 64), (40, 16), (33, 8)])
def test_int4_takes_the_nearest_table_entry(code: str, width: int, group: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(width, 6)
    weight = layer.weight.detach().double()
    found = coded("int4", layer, code=code, group=group, double=False).weight
    table = list(NF4) if code == "nf4" else [i / 7 for i in range(-7, 8)]
    for row in range(6):
        for start in range(0, width, group):
            part = weight[row, start : start + group]
            scale = part.abs().max().item()
            wanted = [scale * min(table, key=lambda t, w=w: abs(t - w / scale)) for w in part.tolist()]
            torch.testing.assert_close(
                found[row, start : start + group].double(), torch.tensor(wanted).double(), rtol=1e-5, atol=1e-6
            )


@pytest.mark.oracle("quantization=int4", "bitsandbytes")
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("width, group", [(128, 64), (192, 64), (256, 32)])
def test_int4_equals_bitsandbytes(width: int, group: int, double: bool) -> None:
    """Equal codes and scales of the same matrix, and equal weights from the kernel that a GPU uses."""
    from bitsandbytes import functional

    weight = torch.randn(48, width, generator=torch.Generator().manual_seed(0))
    codec = quantizations.build("int4", {"group": group, "double": double})
    held = codec.encode(weight)
    packed, state = functional.quantize_4bit(weight, blocksize=group, quant_type="nf4")
    assert torch.equal(held["codes"].flatten(), packed.flatten())
    scales = codec._scales(held, slice(None)) if double else held["scales"]
    assert double or torch.equal(scales.flatten(), state.absmax)
    for rows in (slice(None), slice(8, 24)):
        ours, theirs = codec.decode(held, width, rows), by_bitsandbytes(held["codes"][rows], scales[rows], group)
        assert theirs.shape == ours.shape and torch.equal(theirs, ours)
    if not double:
        assert torch.equal(functional.dequantize_4bit(packed, state), codec.decode(held, width))


@pytest.mark.oracle("quantization=int4", "bitsandbytes' layout: two codes per byte, the first in the high bits")
def test_int4_packs_two_codes_per_byte() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -1.0, 0.0, 0.3379152]])
    held = coded("int4", layer, group=4, double=False)
    assert held.codes.tolist() == [[15 << 4 | 0, 7 << 4 | 11]] and held.scales.tolist() == [[1.0]]


def test_double_quantization_saves_bits_at_little_error() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(512, 512, bias=False)
    weight, found = layer.weight.detach().clone(), {}
    for double in (False, True):
        layer = nn.Linear(512, 512, bias=False)
        layer.weight.data = weight.clone()
        held = coded("int4", layer, double=double)
        bits = 8 * sum(b.numel() * b.element_size() for b in held.buffers()) / weight.numel()
        found[double] = bits, float((held.weight - weight).norm() / weight.norm())
    assert math.isclose(found[False][0], 4.5) and math.isclose(found[True][0], 4.127, abs_tol=0.002)
    assert found[True][1] < 1.02 * found[False][1]


@pytest.mark.oracle("quantization=int8", "integer products and full precision for outliers, in float64")
@pytest.mark.parametrize("group", [None, 16])
def test_int8_equals_integer_products(group: int | None) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 7), torch.randn(5, 40)
    x[1, 3], x[4, 0] = 9.0, -20.0
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    held, wanted = coded("int8", layer, group=group), torch.zeros(5, 7).double()
    size = group or 40
    for t in range(5):
        outlier = x[t].abs() > 6
        scale = x[t][~outlier].abs().max().double() / 127
        codes = torch.where(outlier, 0.0, (x[t].double() / scale)).round().long()
        for o in range(7):
            total = bias[o].clone()
            for start in range(0, 40, size):
                part = slice(start, start + size)
                step = weight[o, part].abs().max() / 127
                whole = (weight[o, part] / step).round().long()
                total += scale * step * int((codes[part] * whole).sum())
                total += sum(
                    x[t, i].double() * step * whole[i - start]
                    for i in range(start, min(40, start + size))
                    if outlier[i]
                )
            wanted[t, o] = total
    torch.testing.assert_close(held(x).double(), wanted, rtol=1e-5, atol=1e-5)


def test_blockwise_products_equal_the_whole_product() -> None:
    """A matrix larger than one decoded block: equal outputs and gradients."""
    layer = nn.Linear(2048, 1200)
    held = coded("int4", layer)
    x = torch.randn(3, 2048, requires_grad=True)
    g = torch.randn(3, 1200)
    y = held(x)
    y.backward(g)
    torch.testing.assert_close(y, x @ held.weight.T + held.bias, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, g @ held.weight, rtol=1e-4, atol=1e-4)


@pytest.mark.oracle("quantization=int8", "one scale for the matrix, weight by weight")
def test_int8_with_one_scale() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 7)
    weight = layer.weight.detach().clone()
    held = coded("int8", layer, granularity="tensor")
    scale = float(weight.abs().max()) / 127
    wanted = [[round(w / scale) * scale for w in row] for row in weight.tolist()]
    torch.testing.assert_close(held.weight, torch.tensor(wanted), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"quantization\.group=null"):
        quantizations.build("int8", {"granularity": "tensor", "group": 16})


@pytest.mark.oracle("quantization=int4", "the best approximation of the rounding error, by numpy")
@pytest.mark.parametrize("rank", [1, 3, 40])
def test_int4_keeps_the_largest_directions_of_its_error(rank: int) -> None:
    """Eckart and Young: no matrix of rank r is nearer to the error than its first r singular directions."""
    torch.manual_seed(0)
    layer = nn.Linear(40, 12)
    weight = layer.weight.detach().double().numpy()
    plain = nn.Linear(40, 12)
    plain.load_state_dict(layer.state_dict())
    rounded = coded("int4", plain, group=8).weight.double().numpy()
    u, s, v = np.linalg.svd(weight - rounded, full_matrices=False)
    s[rank:] = 0
    found = coded("int4", layer, group=8, low_rank=rank)
    torch.testing.assert_close(found.weight.double(), torch.from_numpy(rounded + u * s @ v), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.rows(slice(3, 7)), found.weight[3:7])
