"""Quantization: fewer bits and nearly the same outputs; or quantization-aware training."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablatio.model.peft.adapters import targets_of
from ablatio.model.quantized import Coded, dequantize
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts, tiny_models

KINDS = ("quantization",)
KEPT = {
    32: 0.0,
    8: 0.02,
    4: 0.2,
    2: 0.55,
}  # the error of a matrix of normal numbers, relative to its size, at that many bits


def _allowed(part: PartSpec) -> float:
    bits = int(part.facts["bits"])
    return KEPT.get(bits, 2.0 ** (1 - bits))


def _weights(net: nn.Module) -> dict[str, Tensor]:
    """Weight matrices of the linear layers, as used in the forward pass."""
    layers: dict[str, Any] = dict(targets_of(net, ("linear",)))
    return {name: layer.weight.detach().clone() for name, layer in layers.items()}


def test_matrices_stay_near(part: PartSpec) -> None:
    net = tiny_models.model(part)
    before = _weights(net)
    sample_parts.made(part).apply(net)
    for name, now in _weights(net).items():
        weight = before[name]
        error = float((now - weight).norm() / weight.norm())
        assert error <= _allowed(part), f"{checks.label(part)}: {name} is off by {error:.3f} of its size"
        assert now.shape == weight.shape and now.dtype == weight.dtype


def test_takes_as_few_bytes_as_it_says(part: PartSpec) -> None:
    """In a layer large enough that scales weigh little."""
    layer = nn.Sequential(nn.Linear(512, 512, bias=False))
    sample_parts.made(part).apply(layer)
    held = sum(t.numel() * t.element_size() for t in (*layer.parameters(), *layer.buffers()))
    bits = 8 * held / 512**2
    assert bits <= 1.15 * part.facts["bits"], f"{checks.label(part)}: a weight takes {bits:.2f} bits"


def test_gradients_pass_through(part: PartSpec) -> None:
    """As through the rounded matrix; none reaches the codes, and the base is not changed by a backward pass."""
    layer = nn.Sequential(nn.Linear(48, 40))
    sample_parts.made(part, {"activations": False} if part.knob("activations") else None).apply(layer)
    x = torch.randn(2, 3, 48, requires_grad=True)
    g = torch.randn(2, 3, 40)
    layer(x).backward(g)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, g @ _weights(layer)["0"], rtol=1e-5, atol=1e-5)


def test_no_token_feels_a_later_one(part: PartSpec) -> None:
    net = tiny_models.model(part)
    sample_parts.made(part).apply(net)
    tokens = tiny_models.tokens()
    other = torch.cat([tokens[:, :12], tiny_models.tokens(seed=9)[:, 12:]], dim=1)
    with torch.no_grad():
        apart = (net.eval()(tokens) - net(other))[:, :12].abs().max()
    assert apart == 0, f"{checks.label(part)}: later tokens change the logits by {apart:g}"


def test_comes_back(part: PartSpec) -> None:
    """Restored from its state, and dequantized to plain matrices with the same values."""
    nets = [tiny_models.model(part, seed=seed) for seed in (0, 1)]
    tiny_models.quantize(nets[0], sample_parts.made(part))
    sample_parts.made(part).apply(nets[1])  # its weights are loaded, so it is not calibrated
    nets[1].load_state_dict(nets[0].state_dict())
    tokens = tiny_models.tokens()
    with torch.no_grad():
        assert torch.equal(nets[0].eval()(tokens), nets[1].eval()(tokens))
        weights = _weights(nets[0])
        dequantize(nets[0])
    assert not any(isinstance(m, Coded) for m in nets[0].modules())
    assert all(torch.equal(weight, weights[name]) for name, weight in _weights(nets[0]).items())


def test_learns_to_stand_its_rounding(part: PartSpec) -> None:
    if part.knob("qat") is None:
        pytest.skip("it has no quantization-aware training (no knob `qat`)")
    net = tiny_models.model(part)
    sample_parts.made(part, {"qat": True}).apply(net)
    losses = tiny_models.run(net, tiny_models.adamw(net), 30)
    assert losses[-1] < losses[0] - 0.3, f"{checks.label(part)}: 30 steps go from {losses[0]:.3f} to {losses[-1]:.3f}"
    scored = float(tiny_models.mean_loss(net.eval(), tiny_models.example()).detach())
    sample_parts.made(part).apply(net)
    after = float(tiny_models.mean_loss(net.eval(), tiny_models.example()).detach())
    assert abs(after - scored) < 1e-4, f"{checks.label(part)}: rounded for good, {scored:.4f} becomes {after:.4f}"
