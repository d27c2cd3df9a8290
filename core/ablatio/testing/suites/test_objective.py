"""Objectives: rows of tokens (B, T + 1) -> inputs, targets, weights, mask."""

import pytest
import torch
from torch import Tensor

from ablatio.model.example import Example, joined
from ablatio.model.parameter_roles import named_generator
from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing import checks, sample_parts, tiny_models
from ablatio.testing.digest import digest

KINDS = ("objective",)


def _made(part: PartSpec, segments: bool, seed: int = 0) -> Example:
    rows, documents = sample_parts.token_rows()
    return sample_parts.objective(part)(rows, documents if segments else None, named_generator(seed, "objective"))  # type: ignore[no-any-return]


def test_example_is_whole(part: PartSpec) -> None:
    for segments in (False, True):
        got = _made(part, segments)
        assert isinstance(got, Example), f"{checks.label(part)}: gives {type(got).__name__}; expected an Example"
        for name in ("inputs", "targets", "source", "further"):
            if getattr(got, name) is not None:
                _check_tokens(part, name, getattr(got, name))
        rows, shape = sample_parts.token_rows()[0].shape[0], tuple(got.inputs.shape)
        assert shape[0] == rows, f"{checks.label(part)}: {rows} rows went in, {shape[0]} came out"
        for name in ("targets", "weights", "segments"):
            value = getattr(got, name)
            came = None if value is None else tuple(value.shape)
            assert came in (None, shape), f"{checks.label(part)}: {name} is {came}, inputs are {shape}"
        ahead = int(getattr(sample_parts.objective(part), "ahead", 1))
        for name in ("further", "further_weights") if ahead > 1 else ():
            came = None if getattr(got, name) is None else tuple(getattr(got, name).shape)
            expected = (*shape, ahead - 1)
            assert came == expected, f"{checks.label(part)}: {name} is {came}; expected {expected}"
        if got.source_segments is not None:
            same = got.source is not None and got.source_segments.shape == got.source.shape
            assert same, f"{checks.label(part)}: source_segments do not have the shape of source"
        if segments:
            assert got.segments is not None, f"{checks.label(part)}: documents came and `segments` is None"


def _check_tokens(part: PartSpec, name: str, ids: Tensor) -> None:
    assert ids.dtype is torch.long, f"{checks.label(part)}: {name} is {ids.dtype}; expected torch.long"
    low, high, size = int(ids.min()), int(ids.max()), tiny_models.VOCAB + extra(part)
    assert low >= 0 and high < size, f"{checks.label(part)}: {name} has ids {low} ... {high}, 0 ... {size - 1} expected"


def extra(part: PartSpec) -> int:
    """Number of special token ids that the objective adds."""
    return int(getattr(sample_parts.objective(part), "extra_tokens", 0))


def test_weights(part: PartSpec) -> None:
    weights = _made(part, segments=True).weights
    if weights is None:
        pytest.skip("all its targets have the weight 1 (weights = None)")
    checks.finite(part, weights.double(), "in the weights")
    low, total = float(weights.min()), float(weights.sum())
    assert low >= 0 and total > 0, f"{checks.label(part)}: weights from {low}, sum {total}; expected >= 0 and > 0"


def test_some_architecture_takes_it(part: PartSpec) -> None:
    """The objective produces what it declares, and some architecture accepts that."""
    gives = part.facts["produces"]
    takers = [e.name for e in REGISTRIES["architecture"] if gives in e.facts["accepts"]]
    assert takers, f"{checks.label(part)}: gives {gives!r}, and no architecture takes that"
    has_source = _made(part, segments=False).source is not None
    says_source = gives == "source and target"
    assert has_source == says_source, (
        f"{checks.label(part)}: gives {gives!r}, and its examples have {'a' if has_source else 'no'} source"
    )


def test_fits_the_model(part: PartSpec) -> None:
    """A decoder-only model reads source and inputs in one row, which must fit its position tables."""
    for segments in (False, True):
        got = _made(part, segments)
        length = joined(got).tokens.shape[1]
        assert length <= 32, f"{checks.label(part)}: a row of 32 tokens becomes one of {length}; max_len is 32"


def test_follows_the_generator_alone(part: PartSpec) -> None:
    with checks.draws_nothing(part, "although it receives a generator"):
        a, b = (digest(_made(part, segments=True, seed=3)) for _ in range(2))
    assert a == b, f"{checks.label(part)}: equal generators give different examples"


def test_leaves_tokens_alone(part: PartSpec) -> None:
    rows, documents = sample_parts.token_rows()
    with checks.unchanged(part, rows, documents):
        sample_parts.objective(part)(rows, documents, named_generator(0, "objective"))


def test_an_own_loss_teaches_the_model_alone(part: PartSpec) -> None:
    """A custom loss is a sum over the targets, with gradients for the model and none for a teacher."""
    objective = sample_parts.objective(part)
    if not hasattr(objective, "loss"):
        pytest.skip("it has no loss of its own: cross-entropy is used")
    net = tiny_models.model(part)
    total, count, measures = objective.loss(net, _made(part, segments=True))
    total.backward()
    checks.finite(part, total.detach(), "in its loss")
    targets = _made(part, segments=True).targets.numel()
    assert float(count) == targets, f"{checks.label(part)}: counts {float(count)} targets of {targets}"
    unknown = sorted(measures.keys() - set(part.facts["metrics"]))
    assert not unknown, f"{checks.label(part)}: its loss gives {unknown}, which `metrics` does not name"
    lost = checks.without_gradient(net)
    assert not lost, f"{checks.label(part)}: no gradient of its loss reaches {', '.join(lost)}"
