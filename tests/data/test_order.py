"""Order of windows: each once per epoch, depending on seed and row only."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablatio.data.order import DocumentOrder, RowPlan, WindowOrder
from ablatio.errors import UserError

SIZES = st.integers(1, 40).flatmap(lambda length: st.tuples(st.integers(length + 1, 600), st.just(length)))


@settings(max_examples=200, deadline=None)
@given(SIZES, st.integers(0, 2**64), st.integers(0, 5))
def test_each_epoch_contains_each_target_once(size: tuple[int, int], seed: int, epoch: int) -> None:
    n_tokens, length = size
    order = WindowOrder(n_tokens, length, seed)
    starts = np.sort(order.starts(order.windows * epoch + np.arange(order.windows)))
    assert starts[0] < length and starts[-1] + length < n_tokens
    assert (np.diff(starts) == length).all()
    assert n_tokens - order.windows * length < 2 * length + 1  # only the offset and one incomplete window are left


def test_epochs_differ_in_order_and_offset() -> None:
    order = WindowOrder(1000, 10, 3)
    offsets = [order.epoch(e)[0] for e in range(20)]
    assert len(set(offsets)) > 5
    assert not (order.epoch(0)[1] == order.epoch(1)[1]).all()
    assert not (order.epoch(0)[1] == WindowOrder(1000, 10, 4).epoch(0)[1]).all()


def test_order_does_not_depend_on_batch_ranks_or_access_history() -> None:
    order = WindowOrder(500, 7, 0)
    rows = np.arange(360)
    expected = WindowOrder(500, 7, 0).starts(rows)
    for batch in (1, 3, 8, 72, 180):
        got = np.concatenate([order.starts(order.rows(s * batch, batch)) for s in range(360 // batch)])
        assert (got == expected).all()
    for step in (14, 0, 9):
        ranks = [order.starts(order.rows(step * 24, 24, rank, 4)) for rank in range(4)]
        assert (np.concatenate(ranks) == expected[step * 24 : step * 24 + 24]).all()


def test_order_of_a_seed_is_fixed() -> None:
    """A change here changes the data order of every run: increase ablatio's version and announce it."""
    order = WindowOrder(1000, 10, 7)
    assert order.windows == 99
    assert order.starts(np.array([0, 1, 2, 98, 99, 100, 990])).tolist() == [889, 429, 269, 419, 828, 28, 828]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 40), st.integers(0, 3))
def test_rows_of_documents_start_at_each_document_once(sizes: list[int], length: int, epoch: int) -> None:
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    total = sum(sizes)
    whole = [s for s in starts.tolist() if s + length + 1 <= total]
    if not whole:
        with pytest.raises(UserError, match="tokens"):
            DocumentOrder(starts, total, length, 3)
        return
    order = DocumentOrder(starts, total, length, 3)
    assert order.windows == len(whole)
    rows = order.starts(epoch * len(whole) + np.arange(len(whole)))
    assert sorted(rows.tolist()) == whole


@pytest.mark.parametrize(
    ("n_tokens", "length", "seed", "match"),
    [
        (10, 10, 0, "10 tokens.*one window needs 10"),
        (0, 4, 0, "0 tokens"),
        (9, 0, 0, "length >= 1"),
        (9, 2, -1, "seed"),
    ],
)
def test_invalid_order_is_refused(n_tokens: int, length: int, seed: int, match: str) -> None:
    with pytest.raises(UserError, match=match):
        WindowOrder(n_tokens, length, seed)


def test_batch_not_divisible_by_ranks_is_refused() -> None:
    with pytest.raises(UserError, match=r"10 rows.*4 ranks"):
        WindowOrder(100, 5, 0).rows(0, 10, 0, 4)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_ramp_uses_each_row_once_and_ends_with_full_batches(accumulate: int) -> None:
    plan = RowPlan(16, accumulate, lambda step, tokens: (round(16 * min(1.0, 0.1 + tokens / 7 / 200)), 7))
    flat = [row for number in range(90) for first, count in [plan.batch(number)] for row in range(first, first + count)]
    assert flat == list(range(len(flat)))
    sizes = [plan.step(s)[1] for s in range(90 // accumulate)]
    assert sizes == sorted(sizes) and sizes[0] == 2 and sizes[-1] == 16
    fresh = RowPlan(16, accumulate, plan.shape)
    assert fresh.batch(47) == plan.batch(47)  # whatever was asked before
    assert RowPlan(16, accumulate).batch(5) == (80, 16)


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(0, 2**32), st.integers(0, 3))
def test_coprime_strides_visit_each_window_once(size: tuple[int, int], seed: int, epoch: int) -> None:
    order = WindowOrder(*size, seed, "coprime")
    _, windows = order.epoch(epoch)
    assert sorted(windows) == [*range(order.windows)]
    assert len({int(step) % order.windows for step in np.diff(windows)}) <= 1  # one stride, around the end of the text


def test_coprime_strides_differ_between_epochs_and_hold_for_documents() -> None:
    order = WindowOrder(5000, 10, 3, "coprime")
    strides = {int(np.diff(order.epoch(e)[1])[0]) % order.windows for e in range(12)}
    assert len(strides) > 8 and order.of_length(20).by == "coprime"
    documents = DocumentOrder(np.arange(0, 900, 30), 1000, 10, 3, "coprime")
    assert sorted(documents.starts(np.arange(30))) == [*range(0, 900, 30)]
    assert len({int(step) % 900 for step in np.diff(documents.starts(np.arange(30)))}) == 1
