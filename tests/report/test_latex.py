"""arms.tex: its numbers against scipy and statsmodels' definitions, its cells against any arm name."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.report_attacks import attacked
from helpers.scored_studies import Given, Scored, write_scored
from helpers.strict_latex import read_tables
from helpers.studies import ACTIVATIONS, MIXED, Fake, write_study
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from ablatio.report.analysis.findings import find
from ablatio.report.effects_table import effects_latex
from ablatio.report.escape import latex, visible
from ablatio.report.latex import arms_latex, tabular
from ablatio.report.read.table import read_table

INTERVAL = re.compile(r"\$\[([+-][\d.]+), ([+-][\d.]+)\](?:\^\{\*\})?\$")
SPECIAL = [
    "a_b 50%",
    "a&b #1 $x$",
    "{x} ~ ^ \\end",
    "--flag ''q'' ,,",
    "[0.9,0.95]",
    "*star|bar`",
    "<b> & <c>",
    "\u4e2d \xe9 \u03b1",
]


def tables(text: str) -> list[list[list[str]]]:
    """Rows of cells of each table, the head first."""
    return [table.rows for table in read_tables(text)]


def test_numbers_of_arms_are_those_of_scipy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = {a: (m + 0.01 * rng.normal(size=5)).tolist() for a, m in (("base", 3.2), ("near", 3.2), ("far", 3.1))}
    rows = {a: dict(enumerate(v, 1)) for a, v in scores.items()}
    given = {"near": Given(parameters=1_070_000)}
    text = arms_latex(find(read_table([write_scored(tmp_path / "s", Scored(rows, baseline="base", given=given))])))
    ((head, *body),) = tables(text)
    assert head[:5] == ["arm", "$n$", "val/loss", "sd", "difference"] and r"\usepackage{booktabs}" in text
    cells = {row[0].split("$")[0]: row[1:] for row in body}
    raw = {a: stats.ttest_rel(scores[a], scores["base"]) for a in ("near", "far")}
    small, large = sorted(raw, key=lambda a: raw[a].pvalue)
    holm = {small: min(1, 2 * raw[small].pvalue), large: max(raw[large].pvalue, 2 * raw[small].pvalue)}
    for arm, test in raw.items():
        n, mean, sd, difference, interval, p = cells[arm]
        assert (n, mean, sd) == ("5", f"${np.mean(scores[arm]):.4f}$", f"${np.std(scores[arm], ddof=1):.4f}$")
        assert difference == f"${np.mean(scores[arm]) - np.mean(scores['base']):+.4f}$"
        low, high = map(float, INTERVAL.fullmatch(interval).groups())  # type: ignore[union-attr]
        limits = test.confidence_interval(0.95)
        assert (low, high) == pytest.approx((limits.low, limits.high), abs=6e-5)
        assert p == (f"${holm[arm]:.3f}$" if holm[arm] >= 0.001 else "$< 0.001$")
    assert cells["base"][3:] == ["", "", ""]
    (note,) = read_tables(text)[0].notes
    assert note == "$^{1}$ against the baseline: +7.0% training FLOPs, +7.0% parameters" and "near$^{1}$" in text


def test_pairs_divergence_and_any_name(tmp_path: Path) -> None:
    three = Fake(axes={"norm": ["rmsnorm", "layernorm", "dyt"]}, effects={"norm=dyt": 0.1})
    arms, pairs = tables(arms_latex(find(read_table([write_study(tmp_path / "pairs", three)]))))
    assert len(arms[0]) == 4 and [row[:2] for row in pairs[1:]] == [
        ["rmsnorm", "layernorm"], ["rmsnorm", "dyt"], ["layernorm", "dyt"]
    ]  # fmt: skip
    text = arms_latex(find(read_table([write_study(tmp_path / "mixed", MIXED)])))
    ((head, *rows),) = tables(text)
    lost = [dict(zip(head, row, strict=True)) for row in rows if row[-1] == "1 of 3"]
    assert len(lost) == 3 and all(r["difference"] == "" and r["$p$"].endswith("^{r}$") for r in lost)
    assert "signed ranks" in text and len(tables(arms_latex(find(read_table([attacked(tmp_path / "a")]))))) == 1
    plain = arms_latex(find(read_table([write_study(tmp_path / "plain", ACTIVATIONS)])))
    assert "signed ranks" not in plain and "diverged" not in plain


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
@example(SPECIAL)
def test_any_text_is_printed_as_it_is(names: list[str]) -> None:
    """What a strict reader prints of a table is the text of its cells, whatever they hold."""
    rows = [[latex(name), "1"] for name in names]
    (table,) = read_tables(tabular(["arm", "$n$"], "lr", rows, [latex(names[0])]))
    assert [row[0] for row in table.rows[1:]] == [visible(name).strip() for name in names]
    assert table.notes == [visible(names[0]).strip()]


@pytest.mark.parametrize(
    "wrong",
    [
        "a & b & c",
        "a_b & 1",
        "50% & 1",
        "a # & 1",
        "{a & 1",
        "a} & 1",
        r"\input x & 1",
        "$a & 1",
        "a",
        "--a & 1",
        r"\& & 1 & ",
    ],
)
def test_the_strict_reader_refuses_what_a_compiler_stops_at(wrong: str) -> None:
    with pytest.raises(AssertionError):
        read_tables(tabular(["arm", "$n$"], "lr", [wrong.split(" & ")]))


def study_of_names(folder: Path, names: list[str]) -> str:
    rng = np.random.default_rng(3)
    rows = {name: dict(enumerate((3 + 0.01 * rng.normal(size=4)).tolist(), 1)) for name in names}
    study = Scored(rows, baseline=names[0], given={names[1]: Given(parameters=1_070_000)})
    return arms_latex(find(read_table([write_scored(folder, study)])))


def test_names_of_arms_are_cells(tmp_path: Path) -> None:
    """Names with every character that LaTeX reads as something else; the others of pdfLaTeX's fonts are named."""
    text = study_of_names(tmp_path / "s", SPECIAL)
    (table,) = read_tables(text)
    printed = {row[0].split("$^")[0] for row in table.rows[1:]}
    assert len(printed) == len(SPECIAL) and all(any(name in cell for cell in printed) for name in SPECIAL)
    assert "% needs XeLaTeX or LuaLaTeX and a font for \u4e2d\u03b1\n" in text
    plain = study_of_names(tmp_path / "plain", ["a_b", "c"])
    assert "XeLaTeX" not in plain


@pytest.mark.long
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here: the strict reader checks the tables")
def test_pdflatex_compiles_the_tables(tmp_path: Path) -> None:
    names = [name for name in SPECIAL if name.isascii()]
    three = Fake(axes={"norm": ["rmsnorm", "layernorm", "dyt"]}, effects={"norm=dyt": 0.1})
    tables = [study_of_names(tmp_path / "names", [*names, "caf\xe9"])]
    for name, study in (("pairs", three), ("mixed", MIXED)):
        found = find(read_table([write_study(tmp_path / name, study)]))
        tables += [arms_latex(found), *([effects_latex(found.factors)] if found.factors else [])]
    head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    (tmp_path / "paper.tex").write_text(head + "\n\n".join(tables) + "\\end{document}\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0 and (tmp_path / "paper.pdf").stat().st_size > 5000, done.stdout[-2000:]
