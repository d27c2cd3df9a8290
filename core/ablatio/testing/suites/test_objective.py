"""Objectives: rows of tokens (B, T + 1) -> inputs, targets, weights, mask."""

import torch
from torch import Tensor

from ablatio.model.example import Example, joined
from ablatio.model.roles import named_generator
from ablatio.registry import REGISTRIES, Entry
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
        for name in ("inputs", "targets", "source", "further"):
            if getattr(got, name) is not None:
                _check_tokens(part, name, getattr(got, name))
        rows, shape = samples.token_rows()[0].shape[0], tuple(got.inputs.shape)
        assert shape[0] == rows, f"{probe.label(part)}: {rows} rows went in, {shape[0]} came out"
        for name in ("targets", "weights", "segments"):
            value = getattr(got, name)
            came = None if value is None else tuple(value.shape)
            assert came in (None, shape), f"{probe.label(part)}: {name} is {came}, inputs are {shape}"
        ahead = int(getattr(samples.objective(part), "ahead", 1))
        for name in ("further", "further_weights") if ahead > 1 else ():
            came = None if getattr(got, name) is None else tuple(getattr(got, name).shape)
            expected = (*shape, ahead - 1)
            assert came == expected, f"{probe.label(part)}: {name} is {came}, {expected} was expected"
        if got.source_segments is not None:
            same = got.source is not None and got.source_segments.shape == got.source.shape
            assert same, f"{probe.label(part)}: source_segments do not have the shape of source"
        if segments:
            assert got.segments is not None, f"{probe.label(part)}: documents came and `segments` is None"


def _check_tokens(part: Entry, name: str, ids: Tensor) -> None:
    assert ids.dtype is torch.long, f"{probe.label(part)}: {name} is {ids.dtype}, torch.long was expected"
    low, high, size = int(ids.min()), int(ids.max()), tiny.VOCAB + extra(part)
    assert low >= 0 and high < size, f"{probe.label(part)}: {name} has ids {low} ... {high}, 0 ... {size - 1} expected"


def extra(part: Entry) -> int:
    return int(getattr(samples.objective(part), "extra_tokens", 0))


def test_weights(part: Entry) -> None:
    weights = _made(part, segments=True).weights
    if weights is not None:
        probe.finite(part, weights.double(), "in the weights")
        low, total = float(weights.min()), float(weights.sum())
        assert low >= 0 and total > 0, f"{probe.label(part)}: weights from {low}, sum {total}; expected >= 0 and > 0"


def test_some_architecture_takes_it(part: Entry) -> None:
    """What it gives is what it says, and there is a model that learns from it."""
    gives = part.facts["gives"]
    takers = [e.name for e in REGISTRIES["architecture"] if gives in e.facts["takes"]]
    assert takers, f"{probe.label(part)}: gives {gives!r}, and no architecture takes that"
    has_source = _made(part, segments=False).source is not None
    says_source = gives == "source and target"
    assert has_source == says_source, (
        f"{probe.label(part)}: gives {gives!r}, and its examples have {'a' if has_source else 'no'} source"
    )


def test_fits_the_model(part: Entry) -> None:
    """A decoder alone reads source and inputs in one row, which its position tables must hold."""
    for segments in (False, True):
        got = _made(part, segments)
        length = joined(got).tokens.shape[1]
        assert length <= 32, f"{probe.label(part)}: a row of 32 tokens becomes one of {length}; max_len is 32"


def test_follows_the_generator_alone(part: Entry) -> None:
    with probe.draws_nothing(part, "although it is handed a generator"):
        a, b = (digest(_made(part, segments=True, seed=3)) for _ in range(2))
    assert a == b, f"{probe.label(part)}: equal generators give different examples"


def test_leaves_tokens_alone(part: Entry) -> None:
    rows, documents = samples.token_rows()
    with probe.unchanged(part, rows, documents):
        samples.objective(part)(rows, documents, named_generator(0, "objective"))


def test_an_own_loss_teaches_the_model_alone(part: Entry) -> None:
    """A sum over the targets, with gradients for the model and none for a teacher."""
    objective = samples.objective(part)
    if not hasattr(objective, "loss"):
        return
    net = tiny.model()
    total, count, measures = objective.loss(net, _made(part, segments=True))
    total.backward()
    probe.finite(part, total.detach(), "in its loss")
    targets = _made(part, segments=True).targets.numel()
    assert float(count) == targets, f"{probe.label(part)}: counts {float(count)} targets of {targets}"
    unknown = sorted(measures.keys() - set(part.facts["metrics"]))
    assert not unknown, f"{probe.label(part)}: its loss gives {unknown}, which `metrics` does not name"
    lost = probe.without_gradient(net)
    assert not lost, f"{probe.label(part)}: no gradient of its loss reaches {', '.join(lost)}"
