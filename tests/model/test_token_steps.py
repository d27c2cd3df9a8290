"""Decoding by replayed steps gives what a growing cache gives: capture, replay, rows that leave, refusals."""

import itertools
import logging
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.conversions import Conversions
from helpers.taped_graphs import TapedGraph, taped
from torch import Tensor

import ablatio.model.decoding.token_steps as token_steps
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.decoding.cuda_graph import CudaGraph
from ablatio.model.decoding.job import Continuation, DecodingJob, Ending
from ablatio.model.decoding.logits import LogitsProcessors
from ablatio.model.decoding.rollout import Rollout, sample_rollouts, streams
from ablatio.model.decoding.steps import chooser, token_by_token
from ablatio.model.decoding.token_steps import TokenSteps
from ablatio.model.kv_cache import KVCache
from ablatio.model.static_cache import StaticCache
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import tiny_models

Graphs = type[TapedGraph]
PROMPTS = [[1, 2, 3], [4, 5], [6]]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """Graphs on this CPU, by a list of operations."""
    made = taped()
    monkeypatch.setattr(token_steps, "graphs_for", lambda device: made)
    return made


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_steps, "graphs_for", lambda device: None)


def net(attention: str = "mha", **parts: str) -> Any:
    config = tiny_models.config(REGISTRIES["attention"][attention], max_len=96)
    for kind, name in parts.items():
        config[kind] = {"name": name, **REGISTRIES[kind][name].defaults}
    return build_model(config, tiny_models.VOCAB, seed=1).eval()


def rollout(model: Any, *, stop: int | None = 5, new_tokens: int = 50, greedy: bool = False) -> Rollout:
    """Three prompts of different lengths, four answers each."""
    draws = None if greedy else streams(0, 0, 12, new_tokens)
    temperature = 1.0 if greedy else 2.0
    return sample_rollouts(model, PROMPTS, draws, stop=stop, new_tokens=new_tokens, group=4, temperature=temperature)


def assert_same(found: Rollout, expected: Rollout, exact: float = 1e-5) -> None:
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.logps, expected.logps, rtol=exact, atol=exact)


@pytest.mark.parametrize("architecture", ["causal", "prefix", "encoder_decoder"])
@pytest.mark.parametrize("position", ["rope", "learned", "alibi", "none"])
def test_rollouts_by_graphs_are_those_without(
    architecture: str, position: str, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that end early leave, and each number of rows has a graph of its own."""
    model = net(position=position, architecture=architecture)
    found = rollout(model)
    assert len(graphs.made) > 1 and graphs.made == sorted(graphs.made, reverse=True)
    assert graphs.replays > 30
    without(monkeypatch)
    assert_same(found, rollout(model))


@pytest.mark.parametrize("attention", ["sliding", "gla", "conv_mha", "mla"])
def test_states_and_windows_of_layers_leave_with_their_rows(
    attention: str, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net(attention)
    found = rollout(model)
    assert len(graphs.made) > 1 and graphs.replays > 30
    without(monkeypatch)
    assert_same(found, rollout(model))


def test_most_likely_tokens_are_the_same(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(position="rope").double()
    found = rollout(model, stop=None, greedy=True)
    assert graphs.made == [12] and graphs.replays == 48  # of 49 tokens that are read: the first one is the check
    without(monkeypatch)
    assert_same(found, rollout(model, stop=None, greedy=True), 1e-12)


def test_in_16_bits_each_weight_is_converted_once(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(position="rope")
    shape, found = tuple(model.model.layers[0].mlp.up_proj.weight.shape), []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False), Conversions(shape) as seen:
            found.append(rollout(model, stop=None))
        assert seen.count == 2 * len(model.model.layers)  # gate_proj has the same shape
        assert graphs.replays == 48
        without(monkeypatch)
    assert_same(*found, exact=0.05)


@pytest.mark.parametrize("ending", [{"stop_ids": (5, 9)}, {"strings": ("ab", "b")}, {}], ids=["ids", "strings", "none"])
def test_continuations_by_graphs_are_those_without(
    ending: dict[str, Any], graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts that end by tokens, by strings, and where the context of 96 tokens ends; prompts that occur twice."""
    model, found = net(position="learned"), list[list[Continuation]]()
    if "strings" in ending:
        ending = ending | {"text_of": lambda ids: "".join("abcdefgh"[i % 8] for i in ids)}
    processors = LogitsProcessors(temperature=2.0, repetition=1.2)
    for _ in range(2):
        job = DecodingJob(model, [*PROMPTS, [4, 5]], Ending(40 if ending else 120, **ending), seed=3)
        texts = token_by_token(job, processors, chooser(job, processors))
        found.append([continuation for (continuation,) in texts])
        assert graphs.replays > 5
        without(monkeypatch)
    for one, other in zip(*found, strict=True):
        assert (one.ids, one.tokens, one.finished, one.text) == (other.ids, other.tokens, other.finished, other.text)
        assert one.logprob == pytest.approx(other.logprob, rel=1e-5)


def extended(model: Any, steps: int, room: int, *, rows: int = 3) -> tuple[TokenSteps, list[Tensor]]:
    """Logits after each of `steps` tokens, of which `room` were announced."""
    tokens = tiny_models.tokens(rows, 6 + steps)
    made = TokenSteps(model, KVCache(), room)
    with torch.no_grad():
        model.read(tokens[:, :6], None, made.cache)
        return made, [made.extend(tokens[:, 6 + i]) for i in range(steps)]


def assert_grown(model: Any, steps: int, found: list[Tensor]) -> None:
    """The logits are those of a pass over the whole text."""
    with torch.no_grad():
        expected = model(tiny_models.tokens(3, 6 + steps))[:, 6:].unbind(1)
    torch.testing.assert_close(found, list(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["mha", "sliding", "mamba"])
def test_texts_longer_than_announced_go_on_growing(attention: str, graphs: Graphs) -> None:
    model = net(attention)
    steps, found = extended(model, 50, 20)
    assert graphs.replays == 25, "6 tokens and 20 in room for 32, of which the first one is the check"
    assert not isinstance(steps.cache, StaticCache) and "longer" in steps.refused
    assert_grown(model, 50, found)


@pytest.mark.parametrize("attention", ["mha", "sliding", "mamba"])
def test_room_is_made_by_stretches(attention: str, graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text may end long before the most tokens that it may have, and each step attends to all room."""
    monkeypatch.setattr(token_steps, "STRETCH", 16)
    model = net(attention)
    steps, found = extended(model, 60, 60)
    assert isinstance(steps.cache, StaticCache) and steps.cache.room == 72
    assert graphs.made == [3, 3, 3, 3], "room for 24, 40, 56 and 72 tokens"
    assert_grown(model, 60, found)


@torch.no_grad()
def test_no_step_goes_beyond_the_table_of_positions(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that checks the model: on a GPU an index beyond a table ends the process."""
    model, places = net(position="learned"), list[int]()
    embed = model.model.position.embed
    monkeypatch.setattr(model.model.position, "embed", lambda x, pos: places.append(int(pos.max())) or embed(x, pos))
    monkeypatch.setattr(token_steps, "Operations", lambda device: nullcontext(SimpleNamespace(found=[])))
    for prompt, graph in ((95, False), (94, True)):
        steps = TokenSteps(model, KVCache(), 20)
        model.read(tiny_models.tokens(1, prompt), None, steps.cache)
        for _ in range(prompt, 96):
            steps.extend(torch.ones(1, dtype=torch.long))
        assert isinstance(steps.cache, StaticCache) == graph and max(places) == 95
        with pytest.raises(UserError, match=r"at most model.max_len=96"):
            steps.extend(torch.ones(1, dtype=torch.long))


@pytest.mark.parametrize("room", [0, token_steps.LEAST - 1])
def test_few_tokens_are_not_captured(room: int, graphs: Graphs) -> None:
    steps, _ = extended(net(), 12, room)
    assert not graphs.made and not steps.refused and not isinstance(steps.cache, StaticCache)


def test_a_failed_capture_leaves_the_steps_as_they_are(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: TapedGraph, step: Any, tokens: Tensor) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "__init__", fail)
    model = net("linear")
    with caplog.at_level(logging.WARNING, "ablatio"):
        steps, found = extended(model, 20, 20)
    assert "could not be captured: operation not permitted" in caplog.text and "permitted" in steps.refused
    assert_grown(model, 20, found)


@pytest.mark.parametrize("attention", ["mha", "linear"])
def test_a_graph_that_computes_something_else_is_dropped(
    attention: str, graphs: Graphs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replay = TapedGraph.__call__
    monkeypatch.setattr(graphs, "__call__", lambda self, tokens: replay(self, tokens.flip(0)))
    model = net(attention)
    with caplog.at_level(logging.WARNING, "ablatio"):
        steps, found = extended(model, 20, 20)
    assert "its replay gave other logits" in caplog.text and "replay" in steps.refused and graphs.replays == 1
    assert_grown(model, 20, found)


def odd(model: Any, change: Callable[..., Tensor]) -> None:
    """Let queries, keys and values of the first layer go through `change` before they are mixed."""
    attention, calls = model.model.layers[0].self_attn, itertools.count(1)
    mix = attention.mix
    attention.mix = lambda q, k, v, ctx: mix(*change(q, k, v, ctx, next(calls)), ctx)


ODD: dict[str, tuple[Callable[..., Any], str]] = {
    "reads a value": (lambda q, k, v, ctx, call: (q * float(q.mean() < 9), k, v), "reads values"),
    "shape by values": (lambda q, k, v, ctx, call: (q + q[q > 9].sum(), k, v), "by a mask"),
    "numbers of the host": (lambda q, k, v, ctx, call: (q * torch.tensor([1.0]), k, v), "from the host"),
    "number of tokens": (lambda q, k, v, ctx, call: (q / (ctx.past + 1), k, v), "number of cached tokens"),
    "number of keys": (lambda q, k, v, ctx, call: (q / ctx.key_length, k, v), "number of keys"),
    "size of the buffer": (lambda q, k, v, ctx, call: (q, k, v * k.shape[2]), "logits are others"),
    "tokens to come": (lambda q, k, v, ctx, call: (q, k, v - v.mean(2, keepdim=True)), "still to come"),
    "counts by itself": (lambda q, k, v, ctx, call: (q * call, k, v), "from token to token"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_static_is_refused(name: str, graphs: Graphs) -> None:
    change, reason = ODD[name]
    model = net()
    odd(model, change)
    steps, _ = extended(model, 20, 20)
    assert reason in steps.refused and not graphs.made and not isinstance(steps.cache, StaticCache)


def test_experts_of_a_token_depend_on_values_and_are_refused(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(mlp="moe")
    steps, _ = extended(model, 20, 20)
    assert steps.refused and not graphs.made
    found = rollout(model)
    without(monkeypatch)
    assert_same(found, rollout(model), 0)


def test_compiled_layers_are_refused(graphs: Graphs) -> None:
    model = net()
    model.model.layers[0]._compiled_call_impl = model.model.layers[0].forward
    assert extended(model, 20, 20)[0].refused == "its layers are compiled" and not graphs.made


def test_where_graphs_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert token_steps.graphs_for(cuda) is None  # by default
    token_steps.allow(True)
    try:
        assert token_steps.graphs_for(cpu) is None and token_steps.graphs_for(cuda) is CudaGraph
        monkeypatch.setattr(token_steps, "ranks", lambda: SimpleNamespace(world=2))
        assert token_steps.graphs_for(cuda) is None
    finally:
        token_steps.allow(False)
