"""The progress bar fits the terminal: one line, nothing cut, from 50 columns on."""

import io
import re

import pytest
from rich.console import Console

from ablatio.training.progress_bar import RunProgress


@pytest.mark.parametrize("width", [50, 60, 70, 80, 100, 160])
@pytest.mark.parametrize(("total", "score"), [(2400, "3.1234 nats/token"), (100_000, "0.4321 answers right"), (9, "")])
def test_every_line_is_whole(width: int, total: int, score: str) -> None:
    console = Console(width=width, force_terminal=True, file=io.StringIO(), color_system=None, legacy_windows=False)
    bar = RunProgress(console, total, lambda n: n * 20)
    with bar:
        for step in (1, total // 2, total):
            bar.update(step, 3.456, score)
            bar.draw()
        bar.describe("validating")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())  # type: ignore[attr-defined]
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert len(lines) > 3
    for line in lines:
        assert len(line) <= width and "…" not in line, line
        assert re.search(r"(\d:\d\d:\d\d|-:--:--)\s*$", line), line
    assert lines[-1].count("━") >= 8 or width < 60, "a bar is left"
    assert f"{total}/{total} loss 3.456" in text
    if width >= 80:
        assert "val " in text or not score
    if width >= 100 and total < 10_000:
        assert score in text and "tokens/s" in text
