"""Filters: what is kept depends on the texts alone, and a kept text is unchanged unless the filter says otherwise."""

from typing import Any

import pytest

from ablatio.data.filters import Verdict, verdicts
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts, sample_texts

KINDS = ("filter",)


def _verdicts(part: PartSpec, texts: list[str], workers: int = 0) -> list[Verdict]:
    return list(verdicts(sample_parts.filter_part(part), texts, sample_texts.held_out(), workers))


def test_says_what_it_does(part: PartSpec) -> None:
    texts = sample_texts.training()
    found = _verdicts(part, texts)
    assert len(found) == len(texts), f"{checks.label(part)}: {len(found)} verdicts on {len(texts)} texts"
    for verdict in found:
        assert isinstance(verdict, Verdict), f"{checks.label(part)}: judge gives {verdict!r:.60}; expected a Verdict"
        told = verdict.text is not None or verdict.reason
        assert told, f"{checks.label(part)}: drops a document without a reason"
    kept = [v for v in found if v.text and v.text.strip()]
    assert kept, f"{checks.label(part)}: keeps none of the sample texts"


def test_changes_no_text_unless_it_says_so(part: PartSpec) -> None:
    texts = sample_texts.training()
    pairs = [(text, v.text) for text, v in zip(texts, _verdicts(part, texts), strict=True) if v.text is not None]
    changed = [(text, kept) for text, kept in pairs if text != kept]
    if not part.facts["changes_text"]:
        assert not changed, (
            f"{checks.label(part)}: changes {changed[0][0]!r:.60} to {changed[0][1]!r:.60}; a filter that changes kept "
            "texts declares `changes_text = True`"
        )
    else:
        assert changed, f"{checks.label(part)}: declares `changes_text`, and changes none of the sample texts"
    for _, kept in pairs:
        kept.encode("utf-8")  # half of a surrogate pair would stop the tokenizer


def test_deterministic(part: PartSpec) -> None:
    texts = sample_texts.training()
    with checks.draws_nothing(part, "although results must depend on the texts alone"):
        first = _verdicts(part, texts)
    assert first == _verdicts(part, texts), f"{checks.label(part)}: built again, it decides otherwise"


def test_order_of_the_documents(part: PartSpec) -> None:
    """With the fact `order_independent`, the same texts are kept in any order."""
    texts = sample_texts.training()
    forth, back = _verdicts(part, texts), _verdicts(part, texts[::-1])[::-1]
    if part.facts["order_independent"]:
        other = next((t for t, a, b in zip(texts, forth, back, strict=True) if a.text != b.text), None)
        assert other is None, (
            f"{checks.label(part)}: decides about {other!r:.60} by the order of the documents; declare "
            "`order_independent = False`"
        )
    else:
        assert forth != back, f"{checks.label(part)}: declares `order_independent = False`, and the order has no effect"


def test_fitted_on_training_text_alone(part: PartSpec) -> None:
    """Held-out text reaches a filter through `avoid` only, and `fitted` tells whether it learns."""
    made = sample_parts.filter_part(part)
    assert hasattr(made, "fit") == part.facts["fitted"], (
        f"{checks.label(part)}: fitted={part.facts['fitted']}, and it {'has' if hasattr(made, 'fit') else 'has no'} fit"
    )
    if hasattr(made, "avoid"):
        pytest.skip("held-out text is what it avoids")
    texts = sample_texts.training()
    again: Any = list(verdicts(sample_parts.filter_part(part), texts, ["Another held-out text."]))
    assert again == _verdicts(part, texts), f"{checks.label(part)}: depends on held-out text without `avoid`"


def test_measures_are_sent(part: PartSpec) -> None:
    """Measures are made in other processes: the filter and its measures support pickle."""
    from multiprocessing.reduction import ForkingPickler

    made = sample_parts.filter_part(part)
    if hasattr(made, "fit"):
        made.fit(sample_texts.training())
    if hasattr(made, "measure"):
        ForkingPickler.dumps((made.measure, made.measure(sample_texts.prose(1))))
