"""Verdict sentences and headlines for each outcome, in both languages."""

import math

import numpy as np
import pytest

from ablatio.report.analysis.verdict import ArmFacts, Sentence, verdict
from ablatio.report.statistics import compare, compare_with_best, smallest_difference

SEEDS = range(1, 6)
SPREAD = dict(zip(SEEDS, (0.004, -0.006, 0.001, 0.005, -0.004), strict=True))


def arm(mean: float, spread: float = 1.0) -> dict[int, float]:
    """Scores by seed: `mean`, a shift per seed shared by all arms, and `spread` times noise of this arm alone."""
    return {s: mean + 0.1 * s + spread * SPREAD[s] for s in SEEDS}


def test_sentences_for_resolved_and_unresolved_pairs() -> None:
    found = verdict(compare({"gelu": arm(2.0, 0.0), "swiglu": arm(1.979), "geglu": arm(2.001, -1.0)}, "gelu"))
    first, second = found.sentences
    assert first.text == "swiglu beats gelu by 0.021 nats [0.015, 0.027], Holm p = 0.001, n = 5" and first.fair
    assert found.headline.startswith("swiglu beats gelu by 0.021 nats, Holm p = 0.001, n = 5 (picked because")
    pair = second.pair
    assert second.text == (
        f"geglu and gelu: not resolved (+0.001 nats [-0.005, +0.007], Holm p = {pair.p:.2f}, n = 5); "
        "a difference above 0.01 nats would have been seen in 4 of 5 studies"
    )
    assert pair.detectable == pytest.approx(smallest_difference(5, pair.difference.sd, 3))
    assert second.kind == "not resolved" and not second.fair


def test_winner_depends_on_better_direction() -> None:
    found = verdict(compare({"a": arm(0.5, 0.0), "b": arm(0.6)}, "a", better="high"), unit="points", language="zh")
    assert found.headline.startswith("b 优于 a，相差 0.100 points [0.094, 0.106]，Holm p < 0.001，n = 5")
    worse = verdict(compare({"a": arm(0.5, 0.0), "b": arm(0.6)}, "a"))
    assert worse.headline == worse.sentences[0].text and worse.headline.startswith("a beats b by 0.100")


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
    assert wild.headline == f"{wild.outcomes[0]}. No arm beats small: 1 not resolved."
    assert wild.outcomes[0].startswith("large diverged in 1 of 5 runs, small in 0 of 5 (Fisher's exact test, Holm p = ")
    assert "no verdict on the mean" in wild.sentences[0].text and not wild.sentences[0].fair


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (arm(2.0, 0.0), "identical numbers in all 5 seeds"),
        ({1: 2.0}, "only one shared seed (-0.100 nats), no test possible"),
        ({9: 2.0}, "they share no finished seed"),
        (dict.fromkeys(SEEDS, math.nan), "all 5 runs of other diverged"),
        ({}, "other has no finished run"),
        ({s: 2.3 + 0.1 * s for s in SEEDS}, "exactly +0.300 nats in each of 5 seeds"),
        (arm(2.0 + 1e-7), "would have been seen in 4 of 5 studies"),
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
    alike = {"a": arm(2.0), "b": arm(2.0), "c": arm(2.0, 2.0), "d": {1: 2.0}}
    assert verdict(compare(alike)).headline == "None of 2 pairs is resolved (1 equal, 3 not testable)."
    assert verdict(compare(alike, "a")).headline == "No arm beats a: 1 not resolved, 1 equal, 1 not testable."
    assert verdict(compare({"a": {1: 1.0}, "b": {1: 2.0}})).headline.startswith("No test possible")
    assert verdict(compare({"a": arm(1.0)})).headline.startswith("Only one arm")


def test_budgets_that_differ_are_named_with_the_arm_that_has_more() -> None:
    """The largest two of different kinds; what follows from the tokens is not named beside them."""
    values = {"8": arm(1.9), "4": arm(2.0, 0.0)}
    small = {"tokens": 1000.0, "bytes": 3000.0, "epochs": 0.1, "flops": 6e9, "steps": 10, "seconds": 60.0}
    twice = {key: 2 * v for key, v in small.items()} | {"steps": 10}

    def said(first: dict[str, float], second: dict[str, float], parameters: float = 1000) -> Sentence:
        facts = {"8": ArmFacts(parameters, True, first), "4": ArmFacts(1000, True, second)}
        return verdict(compare(values, "4"), facts=facts).sentences[0]

    assert said(twice, small).text.endswith("; unmatched: 8 has twice the tokens and twice the wall time")
    assert said(small, twice).text.endswith("; unmatched: 4 has twice the tokens and twice the wall time")
    assert not said(small, twice).fair and not said(twice, small).fair
    slow = said(small | {"seconds": 90.0}, small)
    assert slow.text.endswith("; unmatched: 8 has 50 % more wall time") and slow.fair
    assert "unmatched" not in said(small | {"seconds": 65.0, "tokens": 1009.0}, small).text
    both = said(small | {"flops": 6.6e9}, small, 900).text
    assert both.endswith("; unmatched: 8 has 10 % more training FLOPs, 4 has 11.1 % more parameters")
    other_tokenizer = said(small | {"bytes": 9000.0}, small).text
    assert other_tokenizer.endswith("; unmatched: 8 has 3 times the bytes of text")
    fewer_steps = said(small | {"steps": 5}, small)
    assert fewer_steps.text.endswith("; unmatched: 4 has twice the steps") and not fewer_steps.fair


def test_many_arms_are_compared_with_the_best() -> None:
    rng = np.random.default_rng(2)

    def study(gap: dict[int, float], arms: int = 10) -> dict[str, dict[int, float]]:
        return {f"a{i}": {s: gap.get(i, 0.3) + 0.1 * s + 0.01 * rng.normal() for s in range(4)} for i in range(arms)}

    one = verdict(compare_with_best(study({3: 0.0})))
    assert one.headline.startswith("a3 is the best of 10 arms, ahead of the next by 0.")
    assert len(one.sentences) == 9 and all(
        s.kind == "resolved" and "worse than the best" in s.text for s in one.sentences
    )
    three = verdict(compare_with_best(study({1: 0.0, 2: 0.0, 5: 0.0})))
    assert three.headline.endswith("are not told apart from the best; the other 7 are worse.")
    assert set(three.headline.split(" are not")[0].split(", ")) == {"a1", "a2", "a5"}
    none = verdict(compare_with_best(study(dict.fromkeys(range(10), 0.0))))
    assert none.headline.startswith("None of 10 arms is told apart from the best; a")
    high = verdict(compare_with_best(study({3: 0.9}), better="high"))
    assert high.headline.startswith("a3 is the best of 10 arms, ahead of the next by 0.5")
    lost = study({3: 0.0}) | {"gone": {}, "wild": {0: 0.2, 1: math.nan, 2: 0.2, 3: 0.2}}
    found = verdict(compare_with_best(lost))
    assert "a3 is the best of the 10 arms that could be compared" in found.headline
    assert found.headline.startswith("wild diverged in 1 of 4 runs, the other arms together in 0 of 40")
    assert [s.kind for s in found.sentences].count("not testable") == 2


def test_a_sequential_study_says_the_state_of_each_comparison() -> None:
    values = {"a": arm(2.0, 0.0), "b": arm(1.9), "c": arm(2.001), "d": {1: 2.0}}
    looks = {"b": "after look 1 of 3", "c": "undecided after look 2 of 3", "d": "before the first of 3 looks"}
    found = verdict(compare(values, "a"), looks=looks)
    assert found.headline.startswith("b beats a by 0.100") and found.headline.endswith("; after look 1 of 3")
    assert found.sentences[1].text.startswith("c and a: undecided after look 2 of 3 (+0.001 nats [")
    assert found.sentences[2].text.startswith("d and a: before the first of 3 looks")


def test_an_arm_that_diverged_more_often_never_wins() -> None:
    base = {s: 2.0 + 0.1 * s for s in range(20)}
    better = {s: v - 0.5 - 0.01 * (s % 3) for s, v in base.items()} | {4: math.nan}
    found = verdict(compare({"base": base, "wild": better}, "base"))
    assert found.sentences[0].pair.p < 0.05 and found.sentences[0].kind == "not resolved"
    assert "No arm beats base" in found.headline
    turned = verdict(compare({"base": better, "tame": base}, "base"))  # tame has the higher loss in 19 of 20 seeds
    assert turned.sentences[0].kind == "not resolved" or turned.sentences[0].pair.better == "base"


def test_labels_with_format_characters_are_kept_verbatim() -> None:
    rng = np.random.default_rng(0)
    values = {
        "<script>{0}": dict(enumerate(rng.normal(0, 1, 4))),
        "=HYPERLINK(%s)": dict(enumerate(rng.normal(9, 1, 4))),
    }
    text = verdict(compare(values)).sentences[0].text
    assert "<script>{0}" in text and "=HYPERLINK(%s)" in text


def test_no_interval_without_zero_beside_not_resolved() -> None:
    """200 studies of 4 arms: the pair's own interval contains 0, or the one for all comparisons stands beside it and
    does, or the sentence calls the interval uncorrected; all occur."""
    rng, corrected, uncorrected = np.random.default_rng(0), 0, 0
    for i in range(200):
        drawn = rng.normal(size=(4, 5)) + rng.normal(size=(4, 1)) * 1.2
        values = {name: dict(zip(SEEDS, map(float, row), strict=True)) for name, row in zip("abcd", drawn, strict=True)}
        method = ("t", "moderated", "permutation", "t")[i % 4]
        comparison = compare(values, "a", method=method, correction="dunnett" if i % 4 == 3 else "holm")  # type: ignore
        for sentence in verdict(comparison).sentences:
            if sentence.kind != "not resolved":
                assert sentence.pair.corrected is None
                continue
            own, wide = sentence.pair.difference, sentence.pair.corrected
            if not (own.low > 0 or own.high < 0):
                assert wide is None and f" [{own.low:+.3f}, {own.high:+.3f}], " in sentence.text
            elif wide is None:
                assert f"[{own.low:+.3f}, {own.high:+.3f}], an interval without that correction" in sentence.text
                uncorrected += 1
            else:
                low, high = wide
                assert low <= 0 <= high and low < own.low and high > own.high
                together = f"[{own.low:+.3f}, {own.high:+.3f}] for this pair alone, [{low:+.3f}, {high:+.3f}] for all 3"
                assert together in sentence.text
                corrected += 1
    assert corrected > 20 and uncorrected > 0


def test_corrected_interval_is_that_of_the_t_test_at_the_corrected_level() -> None:
    from scipy import stats

    rng = np.random.default_rng(1)
    for _ in range(100):
        drawn = rng.normal(size=(3, 6)) + np.array([[0.0], [0.0], [1.4]])
        values = {n: dict(enumerate(map(float, row))) for n, row in zip("abc", drawn, strict=True)}
        for pair in (p for p in compare(values, "a").pairs if p.corrected):
            gaps = [values[pair.a][s] - values["a"][s] for s in range(6)]
            theirs = stats.ttest_1samp(gaps, 0).confidence_interval(1 - 0.05 / 2)
            assert pair.corrected == pytest.approx(tuple(theirs))
            assert 0.05 / 2 < pair.difference.p <= 0.05
            return
    pytest.fail("no study had a corrected interval")


def test_a_level_below_five_percent_has_its_interval_beside_the_usual_one() -> None:
    """p = 0.03 at alpha 0.01: the 95 % interval lies to one side of 0, that of 99 % does not."""
    from scipy import stats

    gaps = [0.02, 0.05, 0.01, 0.06, 0.03, 0.005, 0.04, -0.01]
    base = {s: 3 + 0.1 * s for s in range(len(gaps))}
    values = {"base": base, "a": {s: base[s] + gap for s, gap in enumerate(gaps)}}
    assert 0.01 < stats.ttest_1samp(gaps, 0).pvalue < 0.05
    text = verdict(compare(values, "base", alpha=0.01)).sentences[0].text
    usual, wide = (stats.ttest_1samp(gaps, 0).confidence_interval(level) for level in (0.95, 0.99))
    assert f"[{usual.low:+.3f}, {usual.high:+.3f}] at 95 %, [{wide.low:+.3f}, {wide.high:+.3f}] at 99 %" in text
    values["b"] = {s: v + 1e-3 * (s % 2) for s, v in base.items()}
    text = next(s.text for s in verdict(compare(values, "base", alpha=0.01)).sentences if s.pair.a == "a")
    assert "for this pair alone at 95 %" in text and "for all 2 comparisons together at 99 %" in text
    chinese = verdict(compare(values, "base", alpha=0.01), language="zh").sentences
    assert any("对全部 2 组比较同时成立的 99 % 区间为" in s.text for s in chinese)
