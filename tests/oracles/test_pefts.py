"""PEFT against the library peft: its own layers with copied weights, forward, gradients and merged matrices."""

import math
import warnings
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from ablatio import pefts
from ablatio.model.adapters import Adapter, attach, merge

OUT, IN, RANK = 24, 16, 4


def ours(name: str, bias: bool = True, **knobs: Any) -> tuple[nn.Sequential, nn.Sequential]:
    """Two copies of a model of one linear layer in float64: with our adapter, and plain."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(IN, OUT, bias=bias)).double()
    plain = nn.Sequential(nn.Linear(IN, OUT, bias=bias)).double()
    plain.load_state_dict(base.state_dict())
    pefts.build(name, {"targets": ("linear",), **knobs}).apply(base, 0)
    return base, plain


def theirs(plain: nn.Module, config: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: nn.Module = peft.inject_adapter_in_model(config(target_modules=["0"]), plain)
    return found.double()


def parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The learned tensor of peft's layer that holds `name`."""
    found = [p for n, p in model.named_parameters() if name in n and p.requires_grad]
    assert len(found) == 1, (name, [n for n, _ in model.named_parameters()])
    return found[0]


def same(model: nn.Module, other: nn.Module, pairs: dict[str, str]) -> None:
    """Random weights on both sides; then outputs, gradients of inputs and of weights, and the merged matrix agree.

    pairs: our parameter -> peft's; peft's may be shaped otherwise, and is filled in the same order
    """
    adapter: Adapter = model[0].adapter
    generator = torch.Generator().manual_seed(1)
    for name in pairs:
        p = adapter.get_parameter(name)
        p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    mates = {name: parameter(other, mate) for name, mate in pairs.items()}
    for name, mate in mates.items():
        mate.data = adapter.get_parameter(name).detach().clone().view_as(mate)
    x = torch.randn(3, 5, IN, generator=generator, dtype=torch.float64)
    g = torch.randn(3, 5, OUT, generator=generator, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [net(i) for net, i in zip((model, other), inputs, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)
    for y in outputs:
        y.backward(g)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-6, atol=1e-6)
    for name, mate in mates.items():
        mine = adapter.get_parameter(name).grad
        assert mine is not None and mine.abs().max() > 0, name
        torch.testing.assert_close(mine.view_as(mate), mate.grad, rtol=1e-6, atol=1e-6)
    merge(model)
    torch.testing.assert_close(model(x), outputs[0], rtol=1e-6, atol=1e-6)
    other[0].merge()
    torch.testing.assert_close(model[0].weight, other[0].get_base_layer().weight, rtol=1e-6, atol=1e-6)


LORA = {"lora_A": "lora_A", "lora_B": "lora_B"}


def lora_config(**settings: Any) -> Any:
    return lambda **targets: peft.LoraConfig(r=RANK, lora_alpha=12, **settings, **targets)


@pytest.mark.oracle("peft=lora", "peft")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stabilized", [False, True])
def test_lora(bias: bool, stabilized: bool) -> None:
    model, plain = ours("lora", bias, rank=RANK, alpha=12.0, rank_stabilized=stabilized)
    same(model, theirs(plain, lora_config(use_rslora=stabilized)), LORA)


@pytest.mark.oracle("peft=dora", "peft")
@pytest.mark.parametrize("bias", [True, False])
def test_dora(bias: bool) -> None:
    model, plain = ours("dora", bias, rank=RANK, alpha=12.0)
    same(model, theirs(plain, lora_config(use_dora=True)), LORA | {"magnitude": "magnitude"})


@pytest.mark.oracle("peft=lora", "peft")
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_starts_out_of_the_weights(init: str) -> None:
    """pissa and olora: the same product, the same rest, and the same answers as the base."""
    model, plain = ours("lora", rank=RANK, alpha=12.0, init=init)
    x = torch.randn(3, IN, dtype=torch.float64)
    before = plain(x)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
    other = theirs(plain.float(), lora_config(init_lora_weights=init))
    products = []
    for a, b in ((model[0].adapter.lora_A, model[0].adapter.lora_B), (parameter(other, "A"), parameter(other, "B"))):
        products.append((b @ a).detach().double())
    torch.testing.assert_close(*products, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[0].weight, other[0].get_base_layer().weight.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.oracle("peft=lora", "autograd's own products, gradcheck")
def test_gradients_of_the_fast_pass() -> None:
    model, _ = ours("lora", rank=3)
    adapter = model[0].adapter
    adapter.lora_B.data.normal_()
    x = torch.randn(2, 3, IN, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"0.adapter.lora_A": a, "0.adapter.lora_B": b}, (x,))

    assert torch.autograd.gradcheck(run, (x, adapter.lora_A, adapter.lora_B))


def test_lora_plus() -> None:
    """B's group has so many times A's rate."""
    from ablatio.model.roles import groups_by_role

    model, _ = ours("lora", lr_ratio=16.0)
    part = pefts.build("lora", {"lr_ratio": 16.0})
    groups = groups_by_role(model, part.rate)
    rates = {id(p): g["rate"] for g in groups for p in g["params"]}
    adapter = model[0].adapter
    assert (rates[id(adapter.lora_A)], rates[id(adapter.lora_B)]) == (1.0, 16.0)


def test_scale_of_rslora() -> None:
    model, _ = ours("lora", rank=9, alpha=6.0, rank_stabilized=True)
    assert math.isclose(model[0].adapter.scale, 2.0)


def test_second_adapter_is_refused() -> None:
    model, _ = ours("lora")
    with pytest.raises(Exception, match="has an adapter already"):
        attach(model[0], model[0].adapter)
