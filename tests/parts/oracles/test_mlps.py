"""mlp=dense against transformers' LLaMA and torch's own layers with the same weights (mixtures: test_moe.py)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from ablatio.registry.kinds import mlps

D, FF = 12, 20


def made(activation, gated, bias, inner_norm=None):
    wiring = {"d_model": D, "d_ff": FF, "dropout": 0.0, "layer": 0, "n_layers": 1}
    part = mlps.build("dense", {}, activation=activation, gated=gated, bias=bias, inner_norm=inner_norm, **wiring)
    for p in part.parameters():
        nn.init.normal_(p, std=0.5)
    return part.double()


def value_and_gradients(function, x, parameters):
    x = x.clone().requires_grad_()
    y = function(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *parameters])]


def assert_same(ours, theirs, x):
    a = value_and_gradients(lambda x: ours(x, None), x, ours.parameters())
    b = value_and_gradients(theirs, x, theirs.parameters())
    for mine, other in zip(a, b, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)


@pytest.mark.oracle("mlp=dense", "transformers LlamaMLP")
@pytest.mark.parametrize("bias", [False, True])
def test_gated_dense_is_llamas(bias):
    ours = made(lambda gate, up: F.silu(gate) * up, True, bias)
    theirs = LlamaMLP(LlamaConfig(hidden_size=D, intermediate_size=FF, num_attention_heads=4, mlp_bias=bias)).double()
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours, theirs, torch.randn(2, 5, D, dtype=torch.float64))


@pytest.mark.oracle("mlp=dense", "torch Linear, GELU, LayerNorm, Linear")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", [None, nn.LayerNorm])
def test_plain_dense_is_a_sequence_of_torchs_layers(bias, norm):
    ours, middle = made(F.gelu, False, bias, norm), [norm(FF)] if norm else []
    theirs = nn.Sequential(nn.Linear(D, FF, bias), nn.GELU(), nn.Linear(FF, D, bias), *middle).double()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.data.copy_(mine)
    up, gelu, down = theirs[:3]
    x = torch.randn(2, 5, D, dtype=torch.float64)
    order = nn.Sequential(up, gelu, *theirs[3:], down)
    torch.testing.assert_close(ours(x, None), order(x), rtol=1e-12, atol=1e-12)
    if not norm:
        assert_same(ours, theirs, x)
