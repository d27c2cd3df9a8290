"""arms.tex: its numbers against scipy and statsmodels' definitions, its cells against any arm name."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.report_attacks import attacked
from helpers.scored_studies import Given, Scored, write_scored
from helpers.studies import ACTIVATIONS, MIXED, Fake, write_study
from scipy import stats

from ablatio.report.analysis.findings import find
from ablatio.report.latex import arms_latex
from ablatio.report.read.table import read_table

INTERVAL = re.compile(r"\$\[([+-][\d.]+), ([+-][\d.]+)\](?:\^\{\*\})?\$")


def tables(text: str) -> list[list[list[str]]]:
    """Rows of cells of each table, the head first; what is no row of a table is checked to be known LaTeX."""
    found: list[list[list[str]]] = []
    for line in text.splitlines():
        if line.startswith(r"\begin{tabular}"):
            found.append([])
        elif line.startswith(r"\multicolumn"):
            assert re.match(rf"\\multicolumn\{{{len(found[-1][0])}\}}\{{l\}}\{{\\footnotesize .*\}} \\\\$", line), line
        elif line.endswith(r" \\"):
            found[-1].append(re.split(r" & ", line[:-3]))
        else:
            assert line in ("", r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}") or line[0] == "%", line
    assert all(len(row) == len(table[0]) for table in found for row in table)
    return found


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
    assert r"$^{1}$ against the baseline: +7.0\% training FLOPs, +7.0\% parameters" in text and "near$^{1}$" in text


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
