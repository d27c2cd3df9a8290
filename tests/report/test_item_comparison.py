"""Comparisons by item: against scipy and statsmodels, against the truth in simulated studies, and bad files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ablatio.model.evaluation.item_errors import clustered_error, jackknife_error
from ablatio.report.analysis.item_comparison import compare_items, item_difference
from ablatio.report.statistics.mcnemar import mcnemar
from ablatio.training.evaluation.items_file import write_items

COLUMN = "eval/quiz/accuracy"


def written(folder: Path, values, clusters=None, column: str = COLUMN, **more) -> Path:
    """A run folder with the values of items."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"step": 1, "eval": "quiz", "id": str(i), "item": f"q{i}", "cluster": clusters[i] if clusters else "",
         "prompt": f"question {i}", "target": "yes", "values": {column: float(v)}} | {k: v[i] for k, v in more.items()}
        for i, v in enumerate(values)
    ]  # fmt: skip
    write_items(folder, rows)
    return folder


def compared(a, b, clusters=None, column: str = COLUMN):
    rows = [
        [
            {"id": str(i), "cluster": clusters[i] if clusters else "", "values": {column: float(v)}}
            for i, v in enumerate(x)
        ]
        for x in (a, b)
    ]
    return item_difference(column, list(zip(*rows, strict=True)))


def test_one_item_per_cluster_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=40), rng.normal(0.3, size=40)
    found = compared(a, b, column="eval/quiz/perplexity")
    expected = stats.ttest_rel(b, a)
    low, high = expected.confidence_interval()
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, low, high))
    assert found.difference == pytest.approx(b.mean() - a.mean())


def test_clustered_errors_are_those_of_a_regression_on_a_constant() -> None:
    import statsmodels.api as sm

    rng = np.random.default_rng(1)
    groups = rng.integers(12, size=90)
    values = rng.normal(size=90) + rng.normal(size=12)[groups]
    fit = sm.OLS(values, np.ones(90)).fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})
    count = len({*groups.tolist()})
    assert clustered_error(values, groups.tolist()) == pytest.approx(fit.bse[0] * math.sqrt(count / (count - 1)))
    assert clustered_error(values, range(90)) == pytest.approx(values.std(ddof=1) / math.sqrt(90))
    assert math.isnan(clustered_error([1.0, 2.0], ["a", "a"]))


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(2).normal(size=20)
    found = jackknife_error(lambda kept: float(values[list(kept)].mean()), range(20))
    assert found == pytest.approx(values.std(ddof=1) / math.sqrt(20))


def test_mcnemar_is_the_mid_p_of_statsmodels_exact_test() -> None:
    from statsmodels.stats.contingency_tables import mcnemar as exact

    for first, second in ((3, 9), (10, 2), (5, 5), (30, 14)):
        p = exact([[0, first], [second, 0]], exact=True).pvalue
        half = stats.binom.pmf(min(first, second), first + second, 0.5)
        assert mcnemar(first, second).p == pytest.approx(min(1.0, p - half), abs=1e-9) or first == second
    assert mcnemar(5, 5).p == 1.0 and mcnemar(0, 0).p == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
def test_the_sentences_hold_in_simulated_comparisons(clustered: bool) -> None:
    """Without a true difference at most 5 % claim one; intervals cover the true difference; a large one is found."""
    rng, items, studies = np.random.default_rng(3), 120, 300
    clusters = [f"c{i // 4}" for i in range(items)] if clustered else None
    claims, covered, found_it = 0, 0, 0
    for _ in range(studies):
        hard = rng.normal(size=items)
        if clustered:  # questions about one passage are alike, also in how the two models differ on them
            hard += np.repeat(rng.normal(size=items // 4), 4)
        gap = np.repeat(rng.normal(size=items // 4), 4) if clustered else 0.0
        answers = [(hard + rng.normal(size=items) + s * gap > 0).astype(float) for s in (-0.5, 0.5)]
        same = compared(*answers, clusters)
        claims += "no difference is shown" not in same.sentence()
        covered += same.low <= 0.0 <= same.high
        better = compared(answers[0], (hard + rng.normal(size=items) + 0.9 > 0).astype(float), clusters)
        found_it += "the second is higher" in better.sentence()
    assert claims / studies < 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / studies)
    assert covered / studies > 0.95 - 2.6 * math.sqrt(0.05 * 0.95 / studies)
    assert found_it / studies > 0.9


def test_sentence() -> None:
    a, b = [1.0] * 8 + [0.0] * 32, [1.0] * 6 + [0.0] * 2 + [1.0] * 14 + [0.0] * 18
    assert compared(a, b).sentence() == (
        "eval/quiz/accuracy: 0.2 and 0.5 on the same 40 items; the second is higher: second - first = +0.3, 95 % "
        "interval +0.1197 to +0.4803, p = 0.002; of the correct items, 2 only in the first, 14 only in the second"
    )
    one = compared([1.0, 0.0], [0.0, 0.0], ["p", "p"])
    assert one.sentence().endswith("on the same 2 items; one cluster of items: no test")


def test_only_the_same_items_are_compared(tmp_path: Path) -> None:
    a = written(tmp_path / "a", [1, 0, 1, 1], answer=["x", "y", "same", "z"])
    b = written(tmp_path / "b", [1, 1, 1], answer=["other", "y", "same"])
    rows = [json.loads(line) for line in (b / "items.jsonl").read_text().splitlines()]
    rows[1]["item"] = "another question"
    write_items(b, rows)
    found = compare_items(a, b)
    assert found.differences[0].items == 2
    assert found.notes == ["eval quiz: 2 items are the same, of 4 and 3; only these are compared"]
    assert found.answers == [{"prompt": "question 0", "first": "x", "second": "other", "expected": "yes"}]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", [1, 0]), written(tmp_path / "b", [1, 1])
    (b / "items.jsonl").write_text("{not json\n")
    found = compare_items(a, b)
    assert not found.differences and "line 1 of" in found.notes[0]
    assert compare_items(a, tmp_path / "none").differences == ()
