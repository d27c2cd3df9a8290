"""Evaluations: the same items each time, with unique ids, the labels that they declare, and texts of a prompt."""

from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing import checks
from ablatio.testing import sample_evaluations as samples

KINDS = ("eval",)


def test_items_are_the_same_each_time(part: PartSpec) -> None:
    one, other = samples.evaluation(part), samples.evaluation(part)
    first = list(one.items())
    assert first, f"{checks.label(part)}: has no items"
    assert first == list(one.items()), f"{checks.label(part)}: a second pass gives other items"
    assert first == list(other.items()), f"{checks.label(part)}: built twice, it gives other items"
    ids = [item.id for item in first]
    assert len(set(ids)) == len(ids), f"{checks.label(part)}: two items have one id"


def test_items_have_what_it_declares(part: PartSpec) -> None:
    for item in samples.evaluation(part).items():
        lacking = [label for label in part.facts["labels"] if not item.has(label)]
        assert not lacking, f"{checks.label(part)}: item {item.id} has no `{lacking[0]}`, which `labels` declares"
        if item.choices:
            known = item.gold is not None and 0 <= item.gold < len(item.choices)
            assert known, f"{checks.label(part)}: gold={item.gold} of {len(item.choices)} choices"
            distinct = len(set(item.choices)) == len(item.choices)
            assert distinct, f"{checks.label(part)}: item {item.id} has equal choices {item.choices}"
        assert item.correct not in ("", " "), f"{checks.label(part)}: item {item.id} has an empty answer"
        assert item.room > 0, f"{checks.label(part)}: item {item.id} leaves no room for an answer"


def test_its_metrics_apply(part: PartSpec) -> None:
    made = samples.evaluation(part)
    for name in getattr(made, "measured_by", part.facts["measured_by"]):
        measure = samples.metric(REGISTRIES["metric"][name], of=list(made.items()))
        measure.check_labels()
        samples.scored(measure)
