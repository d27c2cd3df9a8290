"""Metrics: finite values within their bounds, for each item by itself, whatever the order of the items."""

import math

import pytest

from ablatio.data.items import Generation, Likelihood
from ablatio.model.evaluation.measure import Measure
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks
from ablatio.testing import sample_evaluations as samples

KINDS = ("metric",)
NEAR = 1e-6


def _values(measure: Measure) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """(values of each item, values of all items)."""
    found = samples.scored(measure)
    return {s.item.id: dict(s.values) for s in found}, measure.summary(found)


def test_says_what_it_gives(part: PartSpec) -> None:
    measure = samples.metric(part)
    by_item, found = _values(measure)
    assert part.facts["better"] in ("lower", "higher"), f"{checks.label(part)}: better={part.facts['better']!r}"
    missing = [name for name in measure.names if name not in found]
    assert not missing, f"{checks.label(part)}: `scores` names {missing}, which the summary does not give"
    main = measure.names[0]
    lacking = [id for id, values in by_item.items() if main not in values]
    assert not lacking, f"{checks.label(part)}: item {lacking[0]} has no value `{main}`, by which runs are compared"
    low, high = part.facts["bounds"]
    for name, value in found.items():
        assert math.isfinite(value), f"{checks.label(part)}: {name} is {value}"
    inside = (low is None or found[main] >= low - NEAR) and (high is None or found[main] <= high + NEAR)
    assert inside, f"{checks.label(part)}: {main}={found[main]} is outside its bounds {low} ... {high}"


def test_same_twice(part: PartSpec) -> None:
    first, second = (_values(samples.metric(part)) for _ in range(2))
    assert first == second, f"{checks.label(part)}: built twice, it gives different values"


def test_order_of_the_items_does_not_matter(part: PartSpec) -> None:
    forth, back = samples.metric(part), samples.metric(part, of=samples.items()[::-1])
    if part.facts["runs_code"]:
        pytest.skip("its sample is one item")
    (items, whole), (other_items, other) = _values(forth), _values(back)
    assert items == other_items, f"{checks.label(part)}: the value of an item depends on the items before it"
    for name in forth.names:
        close = math.isclose(whole[name], other[name], rel_tol=NEAR, abs_tol=NEAR)
        assert close, f"{checks.label(part)}: {name} depends on the order of the items: {whole[name]} and {other[name]}"


def test_an_item_is_scored_by_itself(part: PartSpec) -> None:
    together, _ = _values(samples.metric(part))
    for item in samples.items()[: len(together)]:
        alone, _ = _values(samples.metric(part, of=[item]))
        assert alone[item.id] == together[item.id], f"{checks.label(part)}: item {item.id} has another value alone"


def test_needs_no_other_labels(part: PartSpec) -> None:
    """Items with the labels that it names, and no others, can be scored."""
    named = [*part.facts["labels"], *(["entry_point"] if part.facts["runs_code"] else [])]
    if not part.facts["labels"]:
        named = ["target"]
    measure = samples.metric(part, of=[samples.without(item, named) for item in samples.items()])
    measure.check_labels()
    _values(measure)


def test_requests_can_be_shared(part: PartSpec) -> None:
    """Equal requests of several metrics are answered once, so they must be comparable values."""
    measure = samples.metric(part)
    for item in measure.items:
        first, second = (list(measure.metric.requests(item)) for _ in range(2))
        assert first == second and hash(tuple(first)) == hash(tuple(second)), f"{checks.label(part)}: other requests"
        known = all(isinstance(r, Likelihood | Generation) for r in first)
        assert known, f"{checks.label(part)}: asks for {first!r:.80}; expected Likelihood or Generation"
