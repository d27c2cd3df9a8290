"""Numbers as text: one form for tables, one for sentences, and the page's own beside them."""

import json
import math
import re
import shutil
import subprocess
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablatio.report.numbers import number, p_cell, p_said, short
from ablatio.sweep.durations import duration

VALUES = [0.0004, 0.05, 0.999, 1, 12.34, 93, 119.9, 121, 3600, 7199, 7260, 86400, 172799, 9e5]


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1))
def test_a_printed_p_is_on_the_same_side_of_a_small_level_as_p(p: float) -> None:
    """No digit is made up, and nothing below 0.001 is printed as a number."""
    for text in (p_cell(p), p_said(p)):
        value = float(re.sub(r"[<= ]", "", text))
        assert ("<" in text) == (p < 0.001) and (p < 0.001 or abs(value - p) <= (5.1e-3 if p >= 0.1 else 5.1e-4))


def test_what_is_not_known_is_empty() -> None:
    assert [p_cell(None), p_cell(math.nan), number(math.nan), short(None), duration(None)] == [""] * 5
    assert (number(-0.5), short(360689172480), short(950), short(12345678, 3)) == (
        "\u22120.5000", "360.7 G", "950", "12.3 M"
    )  # fmt: skip
    assert (duration(113, 2), duration(0.0123), short(999.9, 3)) == ("110 s", "12.3 ms", "1000")


@pytest.mark.skipif(shutil.which("node") is None, reason="no JavaScript here")
def test_the_page_writes_durations_and_p_as_the_files_do() -> None:
    """draw.js in node, against Python, up to the digits that JavaScript leaves out at the end."""
    source = (files("ablatio.report.html") / "assets" / "draw.js").read_text(encoding="utf-8")
    code = source.split("- numbers\n")[1].split("// ----")[0]  # the rest draws
    code += f"\nconst x = {json.dumps(VALUES)};\n"
    code += "console.log(JSON.stringify([x.map((v) => duration(v)), x.map(pText)]));"
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True, timeout=60)
    times, probabilities = json.loads(done.stdout)
    assert [(float(t.split()[0]), t.split()[1]) for t in times] == [
        (float(duration(v).split()[0]), duration(v).split()[1]) for v in VALUES
    ]
    assert probabilities == [p_cell(v) for v in VALUES]
