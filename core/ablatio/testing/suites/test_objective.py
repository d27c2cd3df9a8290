"""Objectives: rows of tokens (B, T + 1) -> inputs, targets, weights, mask."""

from typing import get_args

import torch
from torch import Tensor

from ablatio.model.context import Example, MaskKind
from ablatio.model.roles import named_generator
from ablatio.registry import Entry
from ablatio.testing import probe, samples, tiny
from ablatio.testing.observe import digest

KINDS = ("objective",)


def _made(part: Entry, segments: bool, seed: int = 0) -> Example:
    rows, documents = samples.token_rows()
    return samples.objective(part)(rows, documents if segments else None, named_generator(seed, "objective"))  # type: ignore[no-any-return]


def test_example_is_whole(part: Entry) -> None:
    for segments in (False, True):
        got = _made(part, segments)
        assert isinstance(got, Example), f"{probe.label(part)}: gives {type(got).__name__}, an Example was expected"
        _check_tokens(part, "inputs", got.inputs)
        _check_tokens(part, "targets", got.targets)
        rows, shape = samples.token_rows()[0].shape[0], tuple(got.inputs.shape)
        assert shape[0] == rows, f"{probe.label(part)}: {rows} rows went in, {shape[0]} came out"
        for name in ("targets", "weights", "segments"):
            value = getattr(got, name)
            came = None if value is None else tuple(value.shape)
            assert came in (None, shape), f"{probe.label(part)}: {name} is {came}, inputs are {shape}"
        if segments:
            assert got.segments is not None, f"{probe.label(part)}: documents came and `segments` is None"


def _check_tokens(part: Entry, name: str, ids: Tensor) -> None:
    assert ids.dtype is torch.long, f"{probe.label(part)}: {name} is {ids.dtype}, torch.long was expected"
    low, high = int(ids.min()), int(ids.max())
    inside = low >= 0 and high < tiny.VOCAB
    assert inside, f"{probe.label(part)}: {name} has ids {low} ... {high}, 0 ... {tiny.VOCAB - 1} were expected"


def test_weights(part: Entry) -> None:
    weights = _made(part, segments=True).weights
    if weights is not None:
        probe.finite(part, weights.double(), "in the weights")
        low, total = float(weights.min()), float(weights.sum())
        assert low >= 0 and total > 0, f"{probe.label(part)}: weights from {low}, sum {total}; expected >= 0 and > 0"


def test_mask_is_one_it_says(part: Entry) -> None:
    legal = get_args(MaskKind)
    wrong = [m for m in part.facts["masks"] if m not in legal]
    assert not wrong, f"{probe.label(part)}: `masks` names {wrong}, any of {legal} was expected"
    mask, said = _made(part, segments=False).mask, part.facts["masks"]
    assert mask in said, f"{probe.label(part)}: the example's mask is {mask!r}, the class says {said}"


def test_follows_the_generator_alone(part: Entry) -> None:
    with probe.draws_nothing(part, "although it is handed a generator"):
        a, b = (digest(_made(part, segments=True, seed=3)) for _ in range(2))
    assert a == b, f"{probe.label(part)}: equal generators give different examples"


def test_leaves_tokens_alone(part: Entry) -> None:
    rows, documents = samples.token_rows()
    with probe.unchanged(part, rows, documents):
        samples.objective(part)(rows, documents, named_generator(0, "objective"))
