"""CSV, Markdown, HTML and terminal output: deterministic, and safe for any arm name."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from helpers.report_attacks import ATTACKS, attacked
from helpers.studies import ACTIVATIONS, MIXED, Fake, plackett_burman, write_study
from rich.console import Console

from ablatio.cli.main import main
from ablatio.report.analysis.findings import find
from ablatio.report.escape import cell, markdown, script_json, terminal, visible
from ablatio.report.html.render import page_text
from ablatio.report.markdown import markdown_text
from ablatio.report.read.table import read_table
from ablatio.report.terminal import arm_table
from ablatio.sweep.durations import duration


def test_results_csv_ignores_timing_and_folder_name(tmp_path: Path):
    """A resumed sweep differs in its times and folder name only, so results.csv must be identical, costs.csv not."""
    one, two = write_study(tmp_path / "one", MIXED), tmp_path / "two"
    shutil.copytree(one, two)
    for path in two.glob("runs/*/summary.json"):
        again = json.loads(path.read_text()) | {"seconds": 99.5, "tokens_per_second": 3, "memory": 5}
        path.write_text(json.dumps(again))
    for path in two.glob("runs/*/metrics.csv"):
        path.write_text(path.read_text().replace(",20000,", ",19999,"))
    first, second = read_table([one]), read_table([two])
    assert arm_table.results_csv(first) == arm_table.results_csv(second)
    assert arm_table.costs_csv(first) != arm_table.costs_csv(second)


def test_results_csv_has_one_complete_row_per_run(tmp_path: Path):
    table = read_table([write_study(tmp_path / "s", MIXED)])
    rows = list(csv.DictReader(io.StringIO(arm_table.results_csv(table))))
    assert len(rows) == 27
    for row, run in zip(rows, table.runs, strict=True):
        assert (row["norm"], row["position"], row["seed"]) == (run.arm["norm"], run.arm["position"], str(run.seed))
        assert row["val/loss"] == (repr(run.scores["val/loss"]) if run.done else "")
        assert row["command"].startswith("ablatio train norm=")
    assert {row["state"] for row in rows} == {"done", "diverged"}


def test_csv_cells_are_not_spreadsheet_formulas(tmp_path: Path):
    table = read_table([attacked(tmp_path / "s")])
    for made in (arm_table.results_csv(table), arm_table.costs_csv(table)):
        cells = [c for row in csv.reader(io.StringIO(made)) for c in row]
        assert not [
            c for c in cells if c.startswith(("=", "+", "@", "\t", "\r")) or (c.startswith("-") and not _number(c))
        ]
        assert "\x1b" not in made and "\u202e" not in made


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("value", [*ATTACKS, "  =1"])
def test_csv_cell_escaping_keeps_the_text(value: str):
    made = cell(value)
    assert made in (visible(value), "'" + visible(value))
    assert made != visible(value) or not visible(value).lstrip().startswith(("=", "+", "-", "@"))
    assert cell(-1.5) == "-1.5" and cell(None) == ""


def test_terminal_output_escapes_control_codes_and_markup(tmp_path: Path):
    out = io.StringIO()
    arm_table.show(Console(file=out, width=300, force_terminal=False), find(read_table([attacked(tmp_path / "s")])))
    shown = out.getvalue()
    assert "\x1b" not in shown and "\x07" not in shown and "\u202e" not in shown
    assert r"\x1b[2J" in shown and "[red]x[/]" in shown
    assert "\\[red]" in terminal("[red]")


def test_markdown_escapes_html_links_and_cell_separators(tmp_path: Path):
    made = markdown_text(find(read_table([attacked(tmp_path / "s")])))
    for part in made.split("## Which score"):  # one table each
        table = [line for line in part.splitlines() if line.startswith("| ")]
        assert len({line.replace("\\\\", "").replace("\\|", "").count("|") for line in table}) == 1
    prose = made.split("## Again")[0]  # the rest is an indented code block, where text is literal
    assert "<script" not in prose and "<img" not in prose and "](javascript" not in prose.replace("\\]", "")
    assert markdown("a|b`c") == "a\\|b\\`c"


def test_page_data_cannot_close_its_script_element(tmp_path: Path):
    page = page_text(find(read_table([attacked(tmp_path / "s")])))
    assert page.count("<script") == 3 and page.count("</script") == 3
    assert "alert(1)</script" not in page and "<img" not in page and "\u2028" not in page
    assert json.loads(script_json(ATTACKS[0])) == ATTACKS[0]
    assert "<title>&lt;script&gt;" in page


def test_page_content_security_policy_allows_only_own_code(tmp_path: Path):
    page = page_text(find(read_table([write_study(tmp_path / "s", ACTIVATIONS)])))
    policy = page.split('Content-Security-Policy" content="')[1].split('"')[0]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert 'src="' not in page and "@import" not in page and "url(" not in page.replace("`url(#${id})`", "")


def test_report_command_writes_all_files_and_prints_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_study(tmp_path / "s", ACTIVATIONS)
    assert main(["report", str(folder)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "swiglu beats gelu by 0.026 nats" in out and "silu and gelu: not resolved" in out
    files = {"report.html", "report.md", "results.csv", "costs.csv", "arms.tex", "shrunk.csv"}
    assert {p.name for p in (folder / "report").iterdir()} == files
    assert "| swiglu | 5 |" in (folder / "report" / "report.md").read_text()


def test_screening_design_is_summarized_by_settings(tmp_path: Path):
    found = find(read_table([write_study(tmp_path / "s", plackett_burman())]))
    headline, *sentences = found.said()
    assert headline == "2 of 7 settings stand out, each aliased with interactions: norm, activation."
    assert sentences[0].startswith("norm, from rmsnorm to layernorm: +0.0") and "cannot tell it from" in sentences[0]
    assert sentences[1].startswith("activation, from swiglu to gelu: +0.0")
    assert "position" in next(s for s in sentences if s.startswith("Not resolved"))


def test_study_without_results_has_a_report(tmp_path: Path):
    fake = Fake(axes={"norm": ["a", "b"]}, states={("norm=a", None): "planned", ("norm=b", None): "running"})
    found = find(read_table([write_study(tmp_path / "s", fake)]))
    assert "planned" in markdown_text(found) and page_text(found)


@pytest.mark.slow
def test_report_of_a_thousand_runs_is_fast_and_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import time

    axes = {k: [f"{k}{i}" for i in range(n)] for k, n in (("norm", 10), ("position", 10), ("activation", 5))}
    base = {k: v[0] for k, v in axes.items()}
    folder = write_study(tmp_path / "s", Fake(axes=axes, seeds=(1, 2), baseline=base, steps=2000))
    start = time.process_time()
    assert main(["report", str(folder)]) == 0
    assert time.process_time() - start < 10
    assert (folder / "report" / "report.html").stat().st_size < 2e6
    assert "more in the files" in capsys.readouterr().out


def test_markdown_contains_the_details_of_the_page(tmp_path: Path):
    """Sizes, learning rate and whether it was tuned, divergences, size matching, noise, hashes, rerun command."""
    folder = write_study(tmp_path / "s", MIXED)
    path = folder / "study.json"
    made = {"set": {"model.d_ff": "301"}, "what": "params", "residual": 0.0004}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"matched": {"norm=none position=rope": made}}))
    report_text = markdown_text(find(read_table([folder])))
    assert (
        "| learning rate | diverged | memory | step | time |" in report_text
        and "0.003 untuned | 1 of 3 |" in report_text
    )
    assert (
        "none rope: model.d\\_ff=301, params +0.04%" in report_text and "norm = rmsnorm, layernorm, none" in report_text
    )
    assert "rmsnorm rope over 3 seeds: val/loss" in report_text and "4 of 5 studies from" in report_text
    assert f"data: {MIXED.data}" in report_text and "- code: c3d3" in report_text and "- plugin std" in report_text
    assert "ablatio train -m norm=rmsnorm position=rope trainer.threads=1 seed=1,2,3" in report_text


def test_report_of_failed_runs_gives_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fake = Fake(
        axes={"norm": ["rmsnorm", "layernorm"]},
        states={("norm=rmsnorm", None): "failed", ("norm=layernorm", None): "failed"},
    )
    assert main(["report", str(write_study(tmp_path / "s", fake))]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "failed: 6 runs, such as norm=rmsnorm seed=1: it was failed at step 740" in out
    assert "No run is done yet" in out


def test_report_correction_and_interval_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_study(tmp_path / "s", ACTIVATIONS)
    for correction, words in (("dunnett", "Dunnett p"), ("bh", "Benjamini-Hochberg p"), ("none", "p is not corrected")):
        assert main(["report", str(folder), "--correction", correction]) == 0
        assert words in " ".join(capsys.readouterr().out.split())
    assert main(["report", str(folder), "--interval", "bootstrap"]) == 0
    assert "Bootstrap intervals are too narrow" in " ".join(capsys.readouterr().out.split())
    table = read_table([folder])
    pair = {m: find(table, method=m).comparison.pairs[0].difference for m in ("t", "bootstrap", "permutation")}
    assert pair["bootstrap"].high - pair["bootstrap"].low < pair["t"].high - pair["t"].low
    assert pair["permutation"].p >= 2 ** (1 - 5)
    plain = write_study(tmp_path / "p", Fake(axes={"norm": ["rmsnorm", "layernorm"]}))
    assert main(["report", str(plain), "--correction", "dunnett"]) == 2
    assert "try: --baseline norm=rmsnorm" in capsys.readouterr().err


def test_significance_level_comes_from_the_study(tmp_path: Path):
    """A smaller planned alpha gives fewer winners and a larger smallest visible difference."""
    folder = write_study(tmp_path / "s", ACTIVATIONS)
    path = folder / "study.json"
    won = sum(pair.better is not None for pair in find(read_table([folder])).comparison.pairs)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": {"alpha": 1e-4}}))
    found = find(read_table([folder]))
    assert won > sum(pair.better is not None for pair in found.comparison.pairs)
    assert found.smallest_visible()[5] > 0.01


def test_report_counts_runs_by_state_and_what_they_cost(tmp_path: Path):
    fake = Fake(axes={"norm": ["rmsnorm", "layernorm", "dyt"]}, states={("norm=dyt", None): "failed"})
    table = read_table([write_study(tmp_path / "s", fake)])
    text = markdown_text(find(table))
    section = text.split("## Cost")[1].split("## ")[0]
    seconds = sum(run.cost.get("seconds", 0) for run in table.runs)
    states = [run.state for run in table.runs]
    assert f"{len(states)} runs planned: {states.count('done')} done, {states.count('failed')} failed" in section
    assert f"{duration(seconds)} of computing, " in section and " tokens, " in section and "FLOP" in section
