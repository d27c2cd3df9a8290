"""Layers divided over devices: what a wrong declaration does, and what does not divide."""

import pytest
import torch
from torch import nn

from ablatio.errors import UserError
from ablatio.model.attention.softmax_attention import BY_HEADS
from ablatio.model.tensor_parallel import Devices, Divided, parts_of, refuse_what_does_not_divide
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import tiny_models, two_threads


def loss(net: nn.Module) -> torch.Tensor:
    return tiny_models.mean_loss(net, tiny_models.example(2, 12))  # type: ignore[arg-type]


def test_a_wrong_fact_shows_in_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Differential attention pairs heads of both halves: with the facts of plain heads it computes something else."""
    part = REGISTRIES["attention"]["differential"]
    target = REGISTRIES["attention"].target("differential")
    for name, value in zip(("column_parallel", "row_parallel", "replicated"), BY_HEADS, strict=True):
        monkeypatch.setattr(target, name, value, raising=False)
    net = tiny_models.model(part).double().eval()
    found = two_threads.gradients(net, loss)
    assert abs(float(found[0]["loss"] - loss(net).detach())) > 1e-6


def test_a_device_computes_with_its_part_alone() -> None:
    """The weights of other devices are not read: they may be anything."""
    net = tiny_models.model().double().eval()
    whole = loss(net)
    one = Devices(1, 0, lambda x: x, lambda t, axis: t)
    for part in parts_of(net):
        Divided(part, one).attach()
    assert torch.equal(loss(net), whole)
    half = tiny_models.model().double().eval()
    first = Devices(2, 0, lambda x: x, lambda t, axis: t.chunk(2, dim=axis)[0])
    for part in parts_of(half):
        Divided(part, first).attach()
    before = loss(half)
    with torch.no_grad():
        for layer in half.model.layers:
            for weight in (layer.self_attn.q_proj.weight, layer.mlp.up_proj.weight, layer.mlp.down_proj.weight.T):
                weight[len(weight) // 2 :] = float("nan")
    assert torch.equal(loss(half), before)


def test_weights_that_do_not_divide() -> None:
    with pytest.raises(UserError, match=r"do not divide over 3 devices[\s\S]*try: strategy=fsdp"):
        refuse_what_does_not_divide(parts_of(tiny_models.model()), 3)
