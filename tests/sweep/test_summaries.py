"""Run summaries: reading them, also when missing or damaged, and formatting numbers."""

from pathlib import Path

import pytest

from ablatio.sweep.study import is_done, run_folder, summary_of
from ablatio.training.run_summary import _digits


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", '"done"', "[]"])
def test_missing_or_damaged_summary_is_empty_and_not_done(tmp_path: Path, text: str) -> None:
    run = run_folder(tmp_path, "job")
    run.mkdir(parents=True)
    assert summary_of(run) == {} and not is_done(tmp_path, "job") and not is_done(None, "job")
    (run / "summary.json").write_text(text)
    assert summary_of(run) == {} and not is_done(tmp_path, "job")
    (run / "summary.json").write_text('{"status": "done"}')
    assert is_done(tmp_path, "job")


def test_numbers_are_formatted_with_three_digits() -> None:
    assert [_digits(x) for x in (0.01614, 1.05, 19.41, 999.4, 999.7, 1234.5)] == [
        "0.0161", "1.05", "19.4", "999", "1,000", "1,234",
    ]  # fmt: skip
