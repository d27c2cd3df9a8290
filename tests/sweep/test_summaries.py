"""What a run folder says of its end, also where its summary is damaged."""

from pathlib import Path

import pytest

from ablatio.sweep.study import is_done, run_folder, summary_of
from ablatio.training.run_summary import _digits


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", '"done"', "[]"])
def test_what_is_no_summary_says_nothing(tmp_path: Path, text: str) -> None:
    run = run_folder(tmp_path, "job")
    run.mkdir(parents=True)
    assert summary_of(run) == {} and not is_done(tmp_path, "job") and not is_done(None, "job")
    (run / "summary.json").write_text(text)
    assert summary_of(run) == {} and not is_done(tmp_path, "job")
    (run / "summary.json").write_text('{"status": "done"}')
    assert is_done(tmp_path, "job")


def test_numbers_have_three_digits_and_no_exponent() -> None:
    assert [_digits(x) for x in (0.01614, 1.05, 19.41, 999.4, 999.7, 1234.5)] == [
        "0.0161", "1.05", "19.4", "999", "1,000", "1,234",
    ]  # fmt: skip
