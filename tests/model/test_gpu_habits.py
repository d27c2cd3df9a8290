"""What a GPU run does differently gives the same numbers: grouped products of experts, pinned copies, known lengths."""

from typing import Any

import pytest
import torch
from torch import Tensor

import ablatio.model.decoding.rollout as rollout_module
import ablatio_std.mlps.experts as experts_module
from ablatio.model.build import build_model
from ablatio.model.example import PADDING, Example, joined
from ablatio.model.on_meta import meta_copy
from ablatio.model.transfer import constants, to_device
from ablatio.registry.registry import REGISTRIES
from ablatio.storage.safetensors_io import suspicious
from ablatio.testing import tiny_models
from ablatio.testing.device_waits import WaitsForDevice, meta_as_gpu


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["moe", "deepseek_moe"])
def test_grouped_experts_are_those_of_the_loop(name: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of a training step; the CPU has the grouped product as well."""
    found = []
    for grouped in (False, True):
        monkeypatch.setattr(experts_module.Experts, "_takes_groups", lambda self, rows, grouped=grouped: grouped)
        config = tiny_models.config(REGISTRIES["mlp"][name], bias=bias, d_ff=96) | {"match": "none"}
        net = build_model(config, tiny_models.VOCAB).train()
        torch.manual_seed(1)  # the router's noise
        loss = tiny_models.mean_loss(net, tiny_models.example())
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in net.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-6)
    for parameter, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][parameter], gradient, rtol=1e-4, atol=1e-6, msg=parameter)


def test_an_expert_without_tokens_has_no_gradient_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts_module.Experts, "_takes_groups", lambda self, rows: True)
    layer = experts_module.Experts(4, 8, 16, torch.nn.functional.silu, False, True, None)
    rows, chosen = torch.randn(5, 8), torch.tensor([2, 0, 2, 2, 0])
    layer.each(rows, chosen).square().sum().backward()
    used = layer.up_proj.weight.grad.flatten(1).any(1)
    assert used[0] and used[2] and not used[1] and torch.isfinite(layer.up_proj.weight.grad).all()


@pytest.mark.parametrize("name", ["moe", "deepseek_moe"])
def test_experts_in_bfloat16_wait_for_nothing(name: str) -> None:
    config = tiny_models.config(REGISTRIES["mlp"][name], d_ff=96) | {"match": "none"}
    net = meta_copy(build_model(config, tiny_models.VOCAB)).to(torch.bfloat16).train()
    with meta_as_gpu():
        tiny_models.mean_loss(net, tiny_models.example().to("meta")).backward()


def test_the_watch_sees_each_way_of_waiting() -> None:
    there, here = torch.zeros(3, device="meta"), torch.zeros(3)
    waits = [
        lambda: there.sum().item(), lambda: bool(there.any()), lambda: int(there[0]), lambda: there.tolist(),
        lambda: there.nonzero(), lambda: there[there > 0], lambda: there.new_tensor([1.0]), lambda: there.cpu(),
        lambda: torch.tensor([1.0], device="meta"), lambda: here.to("meta"), lambda: torch.unique(there),
        lambda: there.repeat_interleave(there.long()),
    ]  # fmt: skip
    with meta_as_gpu():
        for wait in waits:
            with pytest.raises(WaitsForDevice):
                wait()
        there.new_full((), 3.0)
        to_device(here, "meta")
        constants((1.0, 2.0), there)
        torch.where(there > 0, there, 0.0)
        assert float(here.sum()) == 0 and here.tolist() == [0.0] * 3, "the CPU's own tensors may be read"


def test_copies_to_a_gpu_are_pinned_and_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def pin(self: Tensor) -> Tensor:
        seen.append("pinned")
        return self

    def move(self: Tensor, device: Any, non_blocking: bool = False) -> Tensor:
        seen.append((str(device), non_blocking))
        return self

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", move)
    Example(torch.zeros(2, 3), torch.zeros(2, 3)).to("cuda")
    assert seen == ["pinned", ("cuda", True)] * 2


@pytest.mark.parametrize("padded", [False, True])
def test_lengths_read_before_the_copy_give_the_same_rows(padded: bool) -> None:
    end = PADDING if padded else 0
    segments = torch.tensor([[0, 0, 0, end], [0, 0, end, end]])
    example = Example(
        torch.arange(8).view(2, 4), torch.arange(8).view(2, 4), segments=segments,
        source=torch.arange(6).view(2, 3), source_segments=torch.tensor([[0, 0, end], [0, 0, 0]]),
    )  # fmt: skip
    plain, moved = joined(example), joined(example.to("cpu"))
    assert example.to("cpu").joined_length == (5 if padded else 0)
    for name in ("tokens", "segments", "opened", "places"):
        a, b = getattr(plain, name), getattr(moved, name)
        assert (a is None and b is None) or torch.equal(a, b)
    with meta_as_gpu():
        assert joined(example.to("meta")).tokens.shape == plain.tokens.shape


def test_looking_seldom_at_rollouts_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that end early, with and without a look at each token."""
    net = tiny_models.model().eval()
    prompts, draws = [[1, 2, 3], [4, 5], [6]], rollout_module.streams(0, 0, 12, 20)
    found = []
    for every in (1, 16, 7):
        monkeypatch.setattr(rollout_module, "look_every", lambda device, every=every: every)
        found.append(
            rollout_module.sample_rollouts(net, prompts, draws, stop=5, new_tokens=20, group=4, temperature=3.0)
        )
    assert 0 < found[0].mask.mean() < 1, "no answer ended early"
    for other in found[1:]:
        assert torch.equal(other.tokens, found[0].tokens) and torch.equal(other.mask, found[0].mask)
        torch.testing.assert_close(other.logps, found[0].logps, rtol=1e-5, atol=1e-6)


def test_tensors_of_a_device_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = torch.ones(2), torch.ones(3, device="meta")
    monkeypatch.setattr(Tensor, "__bool__", lambda self: True)
    assert set(suspicious({"a": here, "b": there})) == {"a"}
    monkeypatch.setattr(Tensor, "__bool__", lambda self: False)
    assert set(suspicious({"a": here, "b": there})) == {"a", "b"}
