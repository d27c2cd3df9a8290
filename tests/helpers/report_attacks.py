"""A study whose names are injection attacks on HTML, CSV, Markdown and terminals."""

from pathlib import Path

from helpers.studies import Fake, write_study

from ablatio.sweep.study import Refused

ATTACKS = [
    "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", '=HYPERLINK("http://evil.example","x")',
    "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1+1", "\x1b[2J\x1b]0;owned\x07", "a|b|c", "[x](javascript:alert(1))",
    "`x`", "line\nbreak", "[red]x[/]", "\u202etxt.exe", "\u2028", "<!--", "]]>", "\ud800", "${oc.env:HOME}", "'; --",
]  # fmt: skip


def attacked(folder: Path) -> Path:
    arms = [{"norm": "rmsnorm"}, *({"norm": text} for text in ATTACKS if "\ud800" not in text)]
    fake = Fake(
        axes={"norm": [a["norm"] for a in arms]}, arms=arms, seeds=(1, 2), steps=60, baseline={"norm": "rmsnorm"},
        question="<script>alert('q')</script> | =1+1", refused=[Refused({"norm": "</script>"}, "why\x1b[2J <b>|")],
        states={(f"norm={ATTACKS[2]}", 1): "diverged"},
        samples=[{"prompt": text, text: "x", "before": text, "after": f"{text}\n{text}"} for text in ATTACKS],
    )  # fmt: skip
    return write_study(folder, fake)
