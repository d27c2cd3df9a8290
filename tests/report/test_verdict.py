"""Verdict sentences and headlines for each outcome, in both languages."""

import math
import string

import numpy as np
import pytest

from ablatio.report.analysis.verdict import TEXTS, ArmFacts, verdict
from ablatio.report.statistics import compare

SEEDS = range(1, 6)
SPREAD = dict(zip(SEEDS, (0.004, -0.006, 0.001, 0.005, -0.004), strict=True))


def arm(mean: float, spread: float = 1.0) -> dict[int, float]:
    """Scores by seed: `mean`, a shift per seed shared by all arms, and `spread` times noise of this arm alone."""
    return {s: mean + 0.1 * s + spread * SPREAD[s] for s in SEEDS}


def test_sentences_for_resolved_and_unresolved_pairs() -> None:
    found = verdict(compare({"gelu": arm(2.0, 0.0), "swiglu": arm(1.979), "geglu": arm(2.001, -1.0)}, "gelu"))
    first, second = found.sentences
    assert first.text == "swiglu beats gelu by 0.021 nats [0.015, 0.027], Holm p = 0.001, n = 5" and first.fair
    assert found.headline == first.text
    pair = second.pair
    assert second.text == (
        f"geglu and gelu: not resolved (+0.001 nats [-0.005, +0.007], Holm p = {pair.p:.2f}, n = 5), "
        f"about {pair.more_seeds} more seeds needed"
    )
    assert second.kind == "not resolved" and not second.fair


def test_winner_depends_on_better_direction() -> None:
    found = verdict(compare({"a": arm(0.5, 0.0), "b": arm(0.6)}, "a", better="high"), unit="points", language="zh")
    assert found.headline.startswith("b 优于 a，相差 0.100 points [0.094, 0.106]，Holm p < 0.001，n = 5")
    worse = verdict(compare({"a": arm(0.5, 0.0), "b": arm(0.6)}, "a"))
    assert worse.sentences[0].text.startswith("a beats b by 0.100") and worse.headline.startswith(
        "No arm beats a: 1 worse"
    )


def test_unmatched_or_diverged_wins_are_marked_unfair() -> None:
    values = {"small": arm(2.0, 0.0), "large": arm(1.9)}
    facts = {"small": ArmFacts(1000, False), "large": ArmFacts(1125, False)}
    found = verdict(compare(values, "small"), facts=facts)
    assert found.headline.endswith("; unmatched: large has 12.5 % more parameters") and not found.sentences[0].fair
    assert any("not tuned for any arm" in n for n in found.notes)
    near = verdict(compare(values, "small"), facts={"small": ArmFacts(1000, True), "large": ArmFacts(1009, False)})
    assert near.sentences[0].fair and any("not tuned for large" in n for n in near.notes)
    values["large"][3] = math.nan
    wild = verdict(compare(values, "small"))
    assert "large diverged in 1 of 5 runs" in wild.headline and "lacks their seed: 1" in wild.headline
    assert not wild.sentences[0].fair and len(wild.notes) == 1 and TEXTS["en"]["interval"] in wild.notes[0]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (arm(2.0, 0.0), "identical numbers in all 5 seeds"),
        ({1: 2.0}, "only one shared seed (-0.100 nats), no test possible"),
        ({9: 2.0}, "they share no finished seed"),
        (dict.fromkeys(SEEDS, math.nan), "all 5 runs of other diverged"),
        ({}, "other has no finished run"),
        ({s: 2.3 + 0.1 * s for s in SEEDS}, "exactly +0.300 nats in each of 5 seeds"),
        (arm(2.0 + 1e-7), "more than 1000 more seeds needed"),
    ],
)
def test_sentences_when_no_test_is_possible(other: dict[int, float], words: str) -> None:
    comparison = compare({"base": arm(2.0, 0.0), "other": other}, "base")
    found = verdict(comparison)
    assert words in found.sentences[0].text and found.sentences[0].kind != "resolved"
    assert "other" in verdict(comparison, language="zh").sentences[0].text


def test_headline_for_each_kind_of_study() -> None:
    three = {"a": arm(2.0, 0.0), "b": arm(1.9), "c": arm(1.8, -0.5)}
    assert verdict(compare(three, "a")).headline.startswith("2 of 2 arms beat a. Largest difference: c beats a")
    assert verdict(compare(three)).headline == "c beats each of the other 2 arms."
    three["c"] = arm(1.9, 0.5)
    assert verdict(compare(three)).headline.startswith("2 of 3 pairs resolved. Largest difference: ")
    assert verdict(compare({"a": arm(2.0, 0.0), "b": arm(2.0)})).headline.startswith("a and b: not resolved")
    assert verdict(compare({x: arm(2.0, i) for i, x in enumerate("abc")})).headline == "None of 3 pairs is resolved."
    assert verdict(compare({"a": {1: 1.0}, "b": {1: 2.0}})).headline.startswith("No test possible")
    assert verdict(compare({"a": arm(1.0)})).headline.startswith("Only one arm")


def test_languages_have_the_same_sentences_and_fields() -> None:
    fields = {
        language: {key: {f for _, f, _, _ in string.Formatter().parse(text) if f} for key, text in words.items()}
        for language, words in TEXTS.items()
    }
    assert fields["en"] == fields["zh"]


def test_labels_with_format_characters_are_kept_verbatim() -> None:
    rng = np.random.default_rng(0)
    values = {
        "<script>{0}": dict(enumerate(rng.normal(0, 1, 4))),
        "=HYPERLINK(%s)": dict(enumerate(rng.normal(9, 1, 4))),
    }
    text = verdict(compare(values)).sentences[0].text
    assert "<script>{0}" in text and "=HYPERLINK(%s)" in text
