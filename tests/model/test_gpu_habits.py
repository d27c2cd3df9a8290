"""What a GPU run does differently gives the same numbers: grouped products of experts, pinned copies, known lengths."""

from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from helpers.conversions import Conversions
from torch import Tensor, nn

import ablatio.model.decoding.rollout as rollout_module
import ablatio.model.decoding.steps as steps_module
import ablatio_std.mlps.experts as experts_module
from ablatio.model.build import build_model
from ablatio.model.cross_entropy import linear_cross_entropy
from ablatio.model.decoding.job import DecodingJob, Ending
from ablatio.model.decoding.logits import LogitsProcessors
from ablatio.model.example import PADDING, Example, joined
from ablatio.model.kept_copies import Copies, kept_copies
from ablatio.model.kv_cache import KVCache
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


@pytest.mark.parametrize("ending", [{"stop_ids": (5, 9)}, {"strings": ("ab", "b")}, {}], ids=["ids", "strings", "none"])
def test_looking_seldom_at_continuations_changes_none(ending: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that end at different places, by tokens, by strings, and where the context ends; penalties see all."""
    net = tiny_models.model(REGISTRIES["position"]["learned"]).eval()  # its context has an end
    if "strings" in ending:
        ending = ending | {"text_of": lambda ids: "".join("abcdefgh"[i % 8] for i in ids)}
    processors = LogitsProcessors(temperature=2.0, repetition=1.2)
    found = []
    for every in (1, 16, 7):
        monkeypatch.setattr(steps_module, "look_every", lambda device, every=every: every)
        for new_tokens in (20, 60) if not ending else (20,):  # the context has 32
            job = DecodingJob(net, [[1, 2, 3], [4, 5], [6], [7, 8]], Ending(new_tokens, **ending), seed=3)
            found.append(
                [c for (c,) in steps_module.token_by_token(job, processors, steps_module.chooser(job, processors))]
            )
    rounds = len(found) // 3
    for one, others in zip(
        found[:rounds], zip(found[rounds : 2 * rounds], found[2 * rounds :], strict=True), strict=True
    ):
        for other in others:
            assert [(c.ids, c.tokens, c.finished, c.text) for c in one] == [
                (c.ids, c.tokens, c.finished, c.text) for c in other
            ]
            assert [c.logprob for c in one] == pytest.approx([c.logprob for c in other], rel=1e-5)
    assert not ending or len({c.tokens for c in found[0]}) > 2, "the texts end together"


def test_a_cache_of_known_room_is_made_once() -> None:
    """Keys and values do not depend on the room, and no buffer grows or is copied beyond what is filled."""
    torch.manual_seed(0)
    columns = [torch.randn(3, 2, n, 4) for n in (5, 1, 1, 80)]
    held = []
    for room in (0, 87, 40):
        cache, places = KVCache(room), set()
        for i, new in enumerate(columns):
            keys, values = cache.update(0, new, -new)
            cache.advance(new.shape[2])
            if i == 1:
                cache.select(torch.tensor([2, 0, 0]))
                places = {buffer.data_ptr() for buffer in cache._buffers[0]}
        held.append((keys, values, places == {buffer.data_ptr() for buffer in cache._buffers[0]}))
    expected = torch.cat([torch.cat(columns[:2], 2)[[2, 0, 0]], *columns[2:]], dim=2)
    assert all(torch.equal(keys, expected) and torch.equal(values, -expected) for keys, values, _ in held)
    assert [same for *_, same in held] == [False, True, False]


def test_a_rollout_converts_each_weight_once() -> None:
    """Under Lightning's autocast, which converts a weight for each pass; the answers stay, and later losses learn."""
    net = tiny_models.model().eval()
    shape, draws, found = tuple(net.model.layers[0].mlp.up_proj.weight.shape), rollout_module.streams(0, 0, 3, 9), []
    gradients = []
    for kept in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False), Conversions(shape) as seen:
            with (
                nullcontext() if kept else mock.patch.object(rollout_module, "casts_kept", lambda device: nullcontext())
            ):
                found.append(
                    rollout_module.sample_rollouts(net, [[1, 2], [3, 4], [5, 6]], draws, stop=None, new_tokens=9)
                )
            count = seen.count
            tiny_models.mean_loss(net, tiny_models.example()).backward()
            gradients.append(net.model.layers[0].mlp.up_proj.weight.grad.clone())
            net.zero_grad()
        layers = 2 * len(net.model.layers)  # gate_proj has the same shape
        assert count == (layers if kept else 9 * layers)
    assert torch.equal(found[0].tokens, found[1].tokens) and torch.equal(found[0].logps, found[1].logps)
    assert torch.equal(*gradients) and gradients[0].any()


def test_the_head_is_converted_once_while_it_stays() -> None:
    torch.manual_seed(0)
    head, states, targets = nn.Parameter(torch.randn(40, 16)), torch.randn(5, 16), torch.arange(5)
    copies: Copies = {}

    def gradient() -> tuple[Tensor, Tensor]:
        head.grad = None
        loss = linear_cross_entropy(states, head, targets)
        loss.backward()
        return loss.detach(), head.grad

    with torch.autocast("cpu", dtype=torch.bfloat16):
        with Conversions((40, 16)) as plain:
            expected = [gradient() for _ in range(3)]
        with kept_copies(copies), Conversions((40, 16)) as kept:
            found = [gradient() for _ in range(3)]
        with torch.no_grad():
            head.mul_(2)
        with kept_copies(copies), Conversions((40, 16)) as updated:
            changed = gradient()
    assert (plain.count, kept.count, updated.count) == (3, 1, 1)
    pairs = zip(found, expected, strict=True)
    assert all(torch.equal(one[i], two[i]) for one, two in pairs for i in (0, 1))
    assert not torch.equal(changed[0], found[0][0]), "an update of the weights makes a new copy"


def test_tensors_of_a_device_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = torch.ones(2), torch.ones(3, device="meta")
    monkeypatch.setattr(Tensor, "__bool__", lambda self: True)
    assert set(suspicious({"a": here, "b": there})) == {"a"}
    monkeypatch.setattr(Tensor, "__bool__", lambda self: False)
    assert set(suspicious({"a": here, "b": there})) == {"a", "b"}
