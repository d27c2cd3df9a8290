"""The report's table of evaluations: differences paired by item over the seeds, and answers side by side."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from ablatio.report.analysis.evaluations import answer_rows, evaluation_rows
from ablatio.training.evaluation.items_file import write_items

COLUMN, PART = "eval/quiz/accuracy", "eval/quiz/accuracy/probability"


def run(folder: Path, seed: int, values, answer: str = "") -> SimpleNamespace:
    folder.mkdir()
    rows = [
        {"step": 1, "eval": "quiz", "id": str(i), "item": f"q{i}", "cluster": "", "prompt": f"q{i}?", "target": "yes",
         "values": {COLUMN: float(v), PART: 0.5}} | ({"answer": f"{answer} {i // 2}"} if answer else {})
        for i, v in enumerate(values)
    ]  # fmt: skip
    write_items(folder, rows)
    value = {"value": float(np.mean(values)), "error": 0.1, "items": len(values), "better": "higher"}
    measured = {COLUMN: value, PART: value | {"value": 0.5}}
    return SimpleNamespace(folder=folder, seed=seed, group="", done=True, measured=measured)


def study(tmp_path: Path, *, marked: bool = True):
    rng = np.random.default_rng(0)
    values = {(a, s): (rng.random(30) < p).astype(float) for a, p in (("plain", 0.3), ("new", 0.7)) for s in (1, 2)}
    arms = [
        SimpleNamespace(
            name=a, baseline=marked and a == "plain",
            runs=[run(tmp_path / f"{a}{s}", s, values[a, s], f"{a} says") for s in (1, 2)],
        )
        for a in ("new", "plain")
    ]  # fmt: skip
    return SimpleNamespace(rows=[SimpleNamespace(arm=arm) for arm in arms]), values


def test_differences_are_paired_by_item_over_the_seeds(tmp_path: Path) -> None:
    found, values = study(tmp_path)
    new, plain = evaluation_rows(found)  # the main value alone
    apart = np.mean([values["new", s] - values["plain", s] for s in (1, 2)], axis=0)
    expected = stats.ttest_1samp(apart, 0.0)
    low, high = expected.confidence_interval()
    assert (new.measure, new.arm, new.items) == (COLUMN, "new", 30)
    assert (new.difference, new.low, new.high, new.p) == pytest.approx((apart.mean(), low, high, expected.pvalue))
    assert new.value == pytest.approx(np.mean([values["new", s] for s in (1, 2)])) and new.error == 0.1
    assert plain.cells[3:6] == ("reference", "", "") and new.cells[3].startswith("+0.")


def test_without_a_baseline_the_first_arm_is_the_reference(tmp_path: Path) -> None:
    found, _ = study(tmp_path, marked=False)
    assert [row.reference for row in evaluation_rows(found)] == [True, False]


def test_answers_stand_side_by_side_where_they_differ(tmp_path: Path) -> None:
    found, _ = study(tmp_path)
    head, *rows = answer_rows(found)
    assert head == ("item", "prompt", "expected", "new", "plain")
    assert rows[0] == ("quiz 0", "q0?", "yes", "new says 0", "plain says 0") and len(rows) == 3


def test_a_missing_file_of_items_leaves_the_values(tmp_path: Path) -> None:
    found, _ = study(tmp_path)
    (tmp_path / "new1" / "items.jsonl").unlink()
    (tmp_path / "new2" / "items.jsonl").write_text("{broken\n")
    new = evaluation_rows(found)[0]
    assert new.cells[3:6] == ("", "", "") and new.value > 0
    assert answer_rows(found) == []
