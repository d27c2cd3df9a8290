"""Integer and calibrated codes against their definitions in float64, and a real run."""

import math
from pathlib import Path

import pytest
import torch
from helpers.runs import TINY, ablatio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ablatio import quantizations
from ablatio.model.bit_codes import pack, unpack
from ablatio.model.quantized import Coded, moments_of_inputs
from ablatio.testing import tiny_models
from ablatio.training.restore import read_checkpoint, restore_model

WIDTH, OUT = 24, 7


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 40), st.integers(0, 99))
def test_codes_go_through_bytes(bits: int, count: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (3, count), generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (3, math.ceil(count * bits / 8))
    assert torch.equal(unpack(packed, bits, count), codes.int())


def coded(name: str, layer: nn.Linear, x: torch.Tensor | None = None, **knobs: object) -> Coded:
    """The layer with codes, calibrated on x if it is given."""
    model = nn.Sequential(layer)
    part = quantizations.build(name, knobs)
    if x is not None:
        part.calibrate(model, lambda batches: model(x))
    part.apply(model)
    assert isinstance(model[0], Coded)
    return model[0]


def layer_and_inputs() -> tuple[nn.Linear, torch.Tensor]:
    """A layer, and correlated inputs of which some channels are large."""
    torch.manual_seed(3)
    x = torch.randn(200, WIDTH) @ (torch.eye(WIDTH) + 0.4 * torch.randn(WIDTH, WIDTH)) * torch.logspace(-1, 1, WIDTH)
    return nn.Linear(WIDTH, OUT), x


@pytest.mark.oracle("quantization", "a search over all values for each weight")
@pytest.mark.parametrize(("name", "largest"), [("int6", 31), ("int5", 15)])
@pytest.mark.parametrize("group", [8, 10, 64])
def test_integers_take_the_nearest_step(name: str, largest: int, group: int) -> None:
    layer, _ = layer_and_inputs()
    weight, held = layer.weight.detach().double(), coded(name, layer, group=group)
    found = held.weight.double()
    assert held.codes.numel() == OUT * WIDTH * (5 if name == "int5" else 6) // 8
    for row in range(OUT):
        for start in range(0, WIDTH, group):
            part = weight[row, start : start + group]
            s = part.abs().max() / largest
            steps = s * torch.arange(-largest, largest + 1)
            wanted = steps[(part[:, None] - steps).abs().argmin(1)]
            torch.testing.assert_close(found[row, start : start + group], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.oracle("quantization=binary", "equations 1 to 3 and 10 of arXiv:2310.11453, and 8-bit products")
def test_binary_is_bitnets() -> None:
    layer, x = layer_and_inputs()
    layer.weight.data += 0.1
    weight, found = layer.weight.detach().double(), coded("binary", layer)
    codes = torch.where(weight - weight.mean() > 0, 1.0, -1.0).double()
    torch.testing.assert_close(found.weight.double(), weight.abs().mean() * codes, rtol=1e-6, atol=1e-7)
    step = x.double().abs().amax(1, keepdim=True) / 127
    wanted = (x.double() / step).round() @ codes.T * weight.abs().mean() * step + layer.bias.detach()
    torch.testing.assert_close(found(x).double(), wanted, rtol=1e-4, atol=1e-4)
    assert found.codes.numel() == OUT * WIDTH / 8


@pytest.mark.oracle("quantization=ternary", "equations 1 to 3 of arXiv:2402.17764, and 8-bit products")
def test_ternary_is_bitnets() -> None:
    layer, x = layer_and_inputs()
    weight = layer.weight.detach().double()
    found = coded("ternary", layer)
    s = weight.abs().mean()
    codes = (weight / (s + 1e-12)).round().clamp(-1, 1)
    torch.testing.assert_close(found.weight.double(), s * codes, rtol=1e-6, atol=1e-7)
    step = x.double().abs().amax(1, keepdim=True) / 127
    products = (x.double() / step).round() @ codes.T  # of integers
    wanted = products * s * step + layer.bias.detach()
    torch.testing.assert_close(found(x).double(), wanted, rtol=1e-4, atol=1e-4)
    assert found.codes.numel() == OUT * WIDTH / 4


def rounded(weight: torch.Tensor, group: int) -> torch.Tensor:
    out = torch.empty_like(weight)
    for start in range(0, weight.shape[1], group):
        part = weight[:, start : start + group]
        s = part.abs().amax(1, keepdim=True) / 7
        out[:, start : start + group] = (part / s).round() * s
    return out


def output_error(weight: torch.Tensor, found: torch.Tensor, x: torch.Tensor) -> float:
    return float(((weight - found.double()) @ x.double().T).square().sum())


@pytest.mark.oracle("quantization=gptq", "optimal brain quantization: each column by the inverse of the rest of H")
@pytest.mark.parametrize("group", [6, 24])
def test_gptq_is_optimal_brain_quantization(group: int) -> None:
    """Equations 2 and 3 of the paper: the inverse of the Hessian of the columns that are left, anew for each column."""
    layer, x = layer_and_inputs()
    weight = layer.weight.detach().double()
    found = coded("gptq", layer, x, group=group, damp=0.02).weight
    h = x.double().T @ x.double()
    h = h + 0.02 * h.diagonal().mean() * torch.eye(WIDTH)
    w, wanted = weight.clone(), torch.empty_like(weight)
    for i in range(WIDTH):
        if i % group == 0:
            s = w[:, i : i + group].abs().amax(1) / 7
        inverse = torch.linalg.inv(h[i:, i:])
        wanted[:, i] = (w[:, i] / s).round().clamp(-7, 7) * s
        w[:, i:] -= torch.outer(w[:, i] - wanted[:, i], inverse[0]) / inverse[0, 0]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    assert output_error(weight, found, x) < output_error(weight, rounded(weight, group), x)


@pytest.mark.oracle("quantization=awq", "a search over the powers with the outputs themselves")
def test_awq_finds_the_best_power() -> None:
    layer, x = layer_and_inputs()
    weight = layer.weight.detach().double()
    found = coded("awq", layer, x, group=12, grid=10).weight
    mean, errors = x.double().abs().mean(0), []
    for i in range(10):
        t = mean ** (i / 10)
        t = t / (t.max() * t.min()).sqrt()
        errors.append((output_error(weight, rounded(weight * t, 12) / t, x), rounded(weight * t, 12) / t))
    best = min(errors, key=lambda e: e[0])
    torch.testing.assert_close(found.double(), best[1], rtol=1e-4, atol=1e-5)
    assert best[0] < 0.9 * errors[0][0]


@pytest.mark.oracle("quantization=lqer", "the best scaled approximation of the error, by numpy")
def test_lqer_repairs_the_error() -> None:
    import numpy as np

    layer, x = layer_and_inputs()
    weight = layer.weight.detach().double()
    found = coded("lqer", layer, x, group=24, rank=2).weight
    t = x.double().abs().mean(0).numpy()
    error = (weight - rounded(weight, 24)).numpy()
    u, s, v = np.linalg.svd(error * t, full_matrices=False)
    wanted = rounded(weight, 24) + torch.from_numpy((u[:, :2] * s[:2]) @ v[:2] / t)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-3, atol=2e-4)
    assert output_error(weight, found, x) < 0.8 * output_error(weight, rounded(weight, 24), x)


@pytest.mark.parametrize("name", ["gptq", "awq", "lqer"])
def test_without_calibration_codes_are_the_nearest(name: str) -> None:
    layer, _ = layer_and_inputs()
    weight = layer.weight.detach().double()
    held = coded(name, layer, group=12)
    assert torch.equal(held.codes, coded("gptq", nn.Linear(WIDTH, OUT).requires_grad_(False), group=12).codes) is False
    near = held.codec.codes.decode(dict(held.named_buffers()), WIDTH, slice(None))
    torch.testing.assert_close(near.double(), rounded(weight, 12), rtol=1e-5, atol=1e-6)


def test_moments_are_those_of_the_layers_inputs() -> None:
    net = tiny_models.model()
    found = moments_of_inputs(net, lambda: net(tiny_models.tokens()))
    seen = []
    layer = net.model.layers[1].mlp.down_proj
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, 1)))
    net(tiny_models.tokens())
    got = found["model.layers.1.mlp.down_proj"]
    torch.testing.assert_close(got.second, seen[0].T @ seen[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.absolute, seen[0].abs().sum(0), rtol=1e-4, atol=1e-6)
    assert got.tokens == 96 and layer.training and not layer._forward_hooks


def test_a_run_is_calibrated_on_its_training_data(tmp_path: Path, text_file: Path) -> None:
    """The codes depend on a knob that only calibration uses, and the run is loaded with them."""
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "train.val_every=null", "peft=lora"]
    settings += ["quantization=gptq", "quantization.group=16", "train.steps=1", "optimizer.lr=1e-6"]
    for damp in ("0.01", "1.0"):
        run = ablatio(["train", *settings, f"quantization.damp={damp}", f"name=damp{damp}"], tmp_path / "log")
        assert run.code == 0, run.err
    codes = [read_checkpoint(tmp_path / f"damp{damp}").checkpoint.model for damp in ("0.01", "1.0")]
    names = [name for name in codes[0] if name.endswith("codes")]
    assert names and not all(torch.equal(codes[0][name], codes[1][name]) for name in names)
    model = restore_model(tmp_path / "damp0.01").model.state_dict()
    assert all(torch.equal(model[name], codes[0][name]) for name in names)


def test_tasks_without_rows_of_text_are_refused(tmp_path: Path) -> None:
    refused = ablatio(["train", "task=reward", "quantization=awq", f"out={tmp_path}", "check=true"], tmp_path / "log")
    assert refused.code == 2 and "quantization=int4" in refused.err
