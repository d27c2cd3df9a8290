"""Layers divided over devices: which stage has what, auxiliary losses, and what more than one stage would need."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ablatio.errors import UserError
from ablatio.model.example import Example, Loss
from ablatio.model.language_model import LanguageModel
from ablatio.model.stages import Stage, forget_others, held_by_stages, layer_ranges, microbatches_of
from ablatio.model.strategy import Pass
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import tiny_models, two_stages


def own_loss(model: Any, example: Example) -> Loss:
    loss: Loss = model.loss(example)
    return loss


@given(st.integers(1, 40), st.integers(1, 40))
def test_ranges_are_all_layers_once(layers: int, stages: int) -> None:
    found = layer_ranges(layers, stages)
    assert [i for own in found for i in own] == [*range(layers)]
    sizes = [len(own) for own in found]
    assert len(found) == stages and max(sizes) - min(sizes) <= 1
    assert stages > layers or sizes[-1] == min(sizes)


def test_balance_losses_reach_the_routers_of_each_stage() -> None:
    """With a balance loss that outweighs all else, its gradient on the first stage is that of one device."""
    part = REGISTRIES["mlp"]["moe"]
    net = tiny_models.model(part, {"jitter": 0.0, "balance": 50.0}).double().train()
    example = tiny_models.example(2, 12)
    example.weights = (torch.arange(12) % 3 > 0).double().expand(2, -1).contiguous()
    found = two_stages.gradients(net, example, own_loss)
    loss = net.loss(example).total
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found["loss"].double(), loss.detach(), rtol=1e-9, atol=0)
    plain = tiny_models.model(part, {"jitter": 0.0, "balance": 0.0}).double().train()
    plain.load_state_dict(net.state_dict())
    plain.loss(example).total.backward()  # type: ignore[no-untyped-call]
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.router.weight"
        whole, without = (model.get_parameter(name).grad for model in (net, plain))
        assert isinstance(whole, Tensor) and isinstance(without, Tensor)
        assert (whole - without).norm() > without.norm()
        torch.testing.assert_close(found[name], whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
def test_each_tensor_is_somewhere_and_no_stage_has_all(tied: bool) -> None:
    nets = [tiny_models.model(tied=tied, n_layers=3) for _ in range(2)]
    names = {name for name, _ in nets[0].named_parameters(remove_duplicate=False)}
    whole = sum(p.numel() for p in nets[0].parameters())
    for number, net in enumerate(nets):
        forget_others(held_by_stages(net, 2), number)
    real = [{name for name, p in net.named_parameters(remove_duplicate=False) if not p.is_meta} for net in nets]
    assert real[0] | real[1] == names
    shared = {"model.embed_tokens.weight", "lm_head.weight"}
    assert real[0] & real[1] == (shared if tied else set())
    assert {n.split(".")[2] for n in real[0] if ".layers." in n} == {"0", "1"}
    for net in nets:
        assert sum(p.numel() for p in net.parameters() if not p.is_meta) < whole
        net.double()  # moving and converting the model leaves what has no numbers as it is
        kinds = {p.dtype for p in net.parameters() if not p.is_meta}
        assert kinds == {torch.float64} and any(p.is_meta for p in net.parameters())


def test_a_part_that_hands_on_values_is_refused_if_it_does_not_say_so() -> None:
    net = tiny_models.model(REGISTRIES["attention"]["value_residual"]).eval()
    with pytest.raises(UserError, match=r"splits_layers[\s\S]*try: "):
        two_stages.gradients(net, tiny_models.example(2, 12), own_loss)


def test_a_loss_of_two_passes_is_refused() -> None:
    def twice(model: LanguageModel, example: Example) -> Loss:
        first, second = model.loss(example), model.loss(example)
        return Loss(first.total + second.total, first.weight, {})

    with pytest.raises(UserError, match=r"more than one pass[\s\S]*try: "):
        two_stages.gradients(tiny_models.model().eval(), tiny_models.example(2, 12), twice)


def test_joined_rows_of_parts_have_one_length() -> None:
    """The padding of source and inputs is cut off for the whole batch, so that all parts have states of one shape."""
    source, inputs = torch.ones(4, 6, dtype=torch.long), torch.ones(4, 5, dtype=torch.long)
    kept = torch.arange(6) < torch.tensor([[6], [2], [1], [1]])
    segments = torch.where(kept, 0, -1)
    example = Example(inputs, inputs, None, torch.zeros_like(inputs), source, segments)
    net = tiny_models.model().eval()
    stage = Stage(Pass(net, own_loss), 0, 2)
    shapes = {stage.states_like(part).shape for part in microbatches_of(example, 4)}
    assert shapes == {torch.Size([1, 11, tiny_models.SIZES["d_model"]])}
