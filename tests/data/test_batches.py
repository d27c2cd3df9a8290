"""Batches: correct windows and documents, identical from any start and with any number of workers."""

import pickle
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ablatio.data.batches import Batch, TrainBatches, ValidationBatches, segments
from ablatio.data.order import RowPlan, WindowOrder
from ablatio.errors import UserError

EOS = 256


def loader(dataset: Any, start: int, total: int, workers: int = 0) -> Any:
    return DataLoader(dataset, batch_size=None, sampler=range(start, total), num_workers=workers)


def train(corpus: Any, length: int = 96, batch: int = 3, **kwargs: Any) -> TrainBatches:
    order = WindowOrder(len(corpus.train), length, seed=5)
    return TrainBatches(corpus.train, order, RowPlan(batch), eos=corpus.eos, **kwargs)


def same(left: Batch, right: Batch) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def numbered(rows: Tensor) -> list[list[int]]:
    """Segments computed by a loop."""
    result = []
    for row in rows.tolist():
        number, line = 0, []
        for position, token in enumerate(row):
            if position > 0 and token == EOS:
                number += 1
            line.append(number)
        result.append(line)
    return result


def test_windows_are_slices_of_the_stream(corpus: Any) -> None:
    batches, order = train(corpus), WindowOrder(len(corpus.train), 96, 5)
    for step in (0, 1, 30, 1000):
        tokens = batches[step]["tokens"]
        expected = [corpus.train[s : s + 97].tolist() for s in order.starts(order.rows(step * 3, 3))]
        assert tokens.tolist() == expected and tokens.dtype == torch.int64


def test_segments_equal_those_of_a_loop(corpus: Any) -> None:
    batches, seen = train(corpus, length=40, batch=2), {True: 0, False: 0}
    for step in range(80):
        batch = batches[step]
        expected = numbered(batch["tokens"])
        there = any(n for line in expected for n in line)
        seen[there] += 1
        assert ("segments" in batch) == there
        if there:
            assert batch["segments"].tolist() == expected and batch["segments"].dtype == torch.int32
    assert min(seen.values()) > 0


def test_eos_at_the_row_start_opens_no_second_document() -> None:
    assert segments(torch.tensor([[EOS, 1, 2], [3, 4, 5]]), EOS) is None
    assert segments(torch.tensor([[EOS, EOS, 2], [3, 4, EOS]]), EOS).tolist() == [[0, 1, 1], [0, 0, 1]]  # type: ignore[union-attr]


def test_no_segments_without_document_mask(corpus: Any) -> None:
    assert all("segments" not in train(corpus, length=300, document_mask=False)[step] for step in range(10))


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_from_each_step_equals_the_uninterrupted_run(corpus: Any, workers: int) -> None:
    batches = train(corpus, length=256, batch=4)
    total = 3 * batches.order.windows // 4  # three epochs, and batches that straddle their ends
    whole = list(loader(batches, 0, total))
    for start in range(total) if workers == 0 else (0, 1, total // 3, total - 1):
        rest = list(loader(train(corpus, length=256, batch=4), start, total, workers))
        assert len(rest) == total - start
        assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_two_ranks_split_the_batch_of_one(corpus: Any) -> None:
    one = train(corpus, batch=4)
    for step in (0, 7):
        ranks = [train(corpus, batch=4, rank=rank, world=2)[step]["tokens"] for rank in range(2)]
        assert torch.equal(torch.cat(ranks), one[step]["tokens"])


def test_workers_receive_the_path_of_the_stream(corpus: Any) -> None:
    for dataset in (train(corpus), ValidationBatches(corpus.validation, 64, 2, eos=EOS)):
        data = pickle.dumps(dataset)
        assert len(data) < 4000
        assert same(pickle.loads(data)[1], dataset[1])
    part = corpus.train[100:900]  # a view has its file's name and not its content
    batches = TrainBatches(part, WindowOrder(len(part), 20, 0), RowPlan(2), eos=EOS)
    assert same(pickle.loads(pickle.dumps(batches))[3], batches[3])


def test_order_of_another_stream_is_refused(corpus: Any) -> None:
    with pytest.raises(ValueError, match="the order was made for 50 tokens"):
        TrainBatches(corpus.train, WindowOrder(50, 5, 0), RowPlan(2), eos=EOS)


def test_validation_scores_each_target_once(corpus: Any) -> None:
    batches = ValidationBatches(corpus.validation, 50, 4, eos=EOS)
    rows = torch.cat([batch["tokens"] for batch in batches])
    count = (len(corpus.validation) - 1) // 50
    assert len(rows) == count and len(batches) == -(-count // 4)
    assert torch.cat([rows[:1, 0], rows[:, 1:].flatten()]).tolist() == corpus.validation[: count * 50 + 1].tolist()
    assert all(batch["tokens"].shape == (4, 51) for batch in list(batches)[:-1])


@pytest.mark.parametrize("workers", [0, 2])
def test_capped_validation_is_evenly_spaced_and_fixed(corpus: Any, workers: int) -> None:
    every = (len(corpus.validation) - 1) // 50
    batches = ValidationBatches(corpus.validation, 50, 4, eos=EOS, val_tokens=50 * 7 + 20)
    assert len(batches.starts) == 7 and len(set(batches.starts.tolist())) == 7
    assert batches.starts[0] == 0 and batches.starts[-1] > every * 50 * 0.8
    assert [len(batch["tokens"]) for batch in loader(batches, 0, len(batches), workers)] == [4, 3]
    assert len(ValidationBatches(corpus.validation, 50, 4, eos=EOS, val_tokens=10**9).starts) == every
    assert len(ValidationBatches(corpus.validation, 50, 4, eos=EOS, val_tokens=1).starts) == 1
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_split_shorter_than_a_window_is_refused(corpus: Any) -> None:
    with pytest.raises(UserError, match=r"validation split has \d+ tokens, but one window needs 99999 \+ 1"):
        ValidationBatches(corpus.validation, 99_999, 4, eos=EOS)


@pytest.mark.parametrize(("batch", "length", "limit"), [(8, 128, 2e-4), (64, 1024, 2e-3)])
def test_batch_time_is_below_its_limit(batch: int, length: int, limit: float) -> None:
    tokens = np.arange(3_000_000, dtype=np.uint16) % 2000
    batches = TrainBatches(tokens, WindowOrder(len(tokens), length, 0), RowPlan(batch), eos=1999)
    times = []
    for step in range(60):
        begin = time.perf_counter()
        batches[step]
        times.append(time.perf_counter() - begin)
    assert np.median(times) < 3 * limit  # the machine may be busy


def test_validation_windows_start_at_documents() -> None:
    """Each document with enough tokens occurs once; a cap selects evenly."""
    tokens = np.concatenate([[EOS, *range(10 * i, 10 * i + 5 + i)] for i in range(8)]).astype(np.uint16)
    starts = np.flatnonzero(tokens == EOS)
    found = ValidationBatches(tokens, 6, 3, eos=EOS, documents=starts)
    rows = torch.cat([batch["tokens"] for batch in found])
    assert (rows[:, 0] == EOS).all() and rows[:, 1].tolist() == [0, 10, 20, 30, 40, 50, 60, 70]
    capped = ValidationBatches(tokens, 6, 3, eos=EOS, documents=starts, val_tokens=24)
    assert torch.cat([batch["tokens"] for batch in capped])[:, 1].tolist() == [0, 20, 40, 60]
