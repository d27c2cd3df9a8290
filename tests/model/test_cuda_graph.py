"""The calls by which a step is captured and replayed, with fakes in place of torch's graph and streams."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from ablatio.model.decoding import cuda_graph
from ablatio.model.decoding.cuda_graph import CudaGraph


class FakeStream:
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def wait_stream(self, other: "FakeStream") -> None:
        self.calls.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is called, in order; `stream` is the present one."""
    made: list[str] = []
    present = [FakeStream("current", made)]

    class FakeGraph:
        def capture_begin(self, *, capture_error_mode: str) -> None:
            made.append(f"begin on {present[-1].name}, {capture_error_mode}")

        def capture_end(self) -> None:
            made.append("end")

        def replay(self) -> None:
            made.append(f"replay on {present[-1].name}")

    @contextmanager
    def stream(one: FakeStream) -> Iterator[None]:
        present.append(one)
        yield
        present.pop()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("beside", made))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: present[-1])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    cuda_graph._stream.cache_clear()
    yield made
    cuda_graph._stream.cache_clear()


def test_a_step_is_captured_beside_and_replayed_on_the_present_stream(calls: list[str]) -> None:
    def step(tokens: Tensor) -> Tensor:
        calls.append("step")
        return tokens * 2.0

    tokens = torch.tensor([[1], [2]])
    assert CudaGraph.eager(step, tokens).tolist() == [[2], [4]]
    assert calls == ["beside waits for current", "step", "current waits for beside"]
    calls.clear()
    graph = CudaGraph(step, tokens)
    assert calls == [
        "beside waits for current", "begin on beside, thread_local", "step", "end", "current waits for beside",
    ]  # fmt: skip
    calls.clear()
    found = graph(torch.tensor([[5], [6]]))
    assert calls == ["replay on current"] and graph.tokens.tolist() == [[5], [6]]
    graph.logits.zero_()
    assert found.tolist() == [[2], [4]], "a later replay writes over the result"


def test_a_step_that_fails_ends_its_capture(calls: list[str]) -> None:
    def step(tokens: Tensor) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        CudaGraph(step, torch.zeros(1, 1))
    assert calls[-1] == "end"
