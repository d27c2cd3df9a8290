"""Runs whose files do not fit together are damaged and named, and change nothing that the study says of the others."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import TINY, ablatio
from helpers.studies import Fake, write_study
from hypothesis import given, settings
from hypothesis import strategies as st

from ablatio.report.analysis.findings import find
from ablatio.report.html.render import page_text
from ablatio.report.read.table import Table, read_table
from ablatio.sweep.ledger import RESULTS

SMALL = Fake(axes={"norm": ["rmsnorm", "layernorm"]}, seeds=(1, 2, 3), steps=100, baseline={"norm": "rmsnorm"})
Change = Callable[[dict[str, Any]], object]
SCORES: dict[str, Change] = {
    "null": lambda s: s.update({"val/loss": None}),
    "text": lambda s: s.update({"val/loss": "3.1"}),
    "true": lambda s: s.update({"val/loss": True}),
    "a list": lambda s: s.update({"val/loss": [3.1]}),
    "missing": lambda s: s.pop("val/loss"),
    "1e308": lambda s: s.update({"val/loss": 1e308}),
    "a very long number": lambda s: s.update({"val/loss": 10**400}),
    "another number": lambda s: s.update({"val/loss": s["val/loss"] - 1}),
    "another score null": lambda s: s.update({"val/bpb": None}),
    "another score text": lambda s: s.update({"val/bpb": "x"}),
    "a main score of null": lambda s: s.update({"score": {"name": "val/loss", "value": None, "better": "lower"}}),
    "another main score": lambda s: s.update({"score": {"name": "val/loss", "value": 0.1, "better": "lower"}}),
    "a main score of nowhere": lambda s: s.update({"score": {"name": "val/x", "value": 0.1, "better": "lower"}}),
    "no direction": lambda s: s.update({"score": {"name": "val/loss", "value": s["val/loss"], "better": "up"}}),
    "a score of text": lambda s: s.update({"score": "val/loss"}),
    "other steps": lambda s: s.update({"steps": 90}),
    "tokens of text": lambda s: s.update({"tokens": "many"}),
}


def said(table: Table) -> tuple[object, ...]:
    """What the report says, without the state of the damaged run itself."""
    found = find(table)
    assert page_text(found)
    rows = [(row.arm.name, row.n, row.mean, row.sd, row.pair) for row in found.rows]
    return found.metric, found.better, rows, found.verdicts, table.notes


def damaged(table: Table) -> dict[Path, str]:
    return {run.folder: run.why for run in table.runs if run.state == "damaged"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study") / "s", SMALL)


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "s"))


def victim(folder: Path) -> Path:
    return next(r.folder for r in read_table([folder]).runs if r.arm["norm"] == "layernorm" and r.seed == 2)


@pytest.mark.parametrize("what", SCORES)
def test_a_run_without_its_score_is_named_and_changes_nothing_else(copy: Path, what: str) -> None:
    run = victim(copy)
    path = run / "summary.json"
    good = path.read_text()
    path.write_text("{")
    without = said(read_table([copy]))
    summary = json.loads(good)
    SCORES[what](summary)
    path.write_text(json.dumps(summary))
    table = read_table([copy])
    assert list(damaged(table)) == [run] and str(path) in damaged(table)[run]
    assert said(table) == without
    path.write_text(good)
    assert not damaged(read_table([copy]))


def test_nan_is_no_score(copy: Path) -> None:
    path = victim(copy) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"val/loss": float("nan")}))
    (why,) = damaged(read_table([copy])).values()
    assert "NaN" in why and find(read_table([copy])).metric == "val/loss"


@pytest.mark.parametrize("names", [("",), *((name,) for name in RESULTS)])
@pytest.mark.parametrize("pair", [("rmsnorm", 1, "layernorm", 1), ("rmsnorm", 1, "rmsnorm", 2)])
def test_exchanged_folders_and_files_are_noticed_without_a_ledger(
    copy: Path, names: tuple[str, ...], pair: tuple[str, int, str, int]
) -> None:
    """Older ledgers have no digests, but job, config, manifest, metrics and summary disagree."""
    runs = {(r.arm["norm"], r.seed): r.folder for r in read_table([copy]).runs}
    one, other = runs[pair[:2]], runs[pair[2:]]
    exchange(one, other, names)
    assert set(damaged(read_table([copy]))) == {one, other}


def exchange(one: Path, other: Path, names: tuple[str, ...]) -> None:
    """Exchange files of two runs; the name "" stands for the whole folder."""
    for name in names:
        first, second = (one / name, other / name) if name else (one, other)
        aside = one.parent / "aside"
        first.rename(aside)
        second.rename(first)
        aside.rename(second)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_leaf_of_a_summary_may_be_anything(data: st.DataObject, study: Path) -> None:
    """Whatever stands in one summary, the report is written and keeps its metric and the other runs."""
    path = victim(study) / "summary.json"
    good = path.read_text()
    summary = json.loads(good)
    key = data.draw(st.sampled_from(sorted(summary)))
    leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
    summary[key] = data.draw(st.one_of(leaf, st.lists(leaf, max_size=2), st.dictionaries(st.text(max_size=3), leaf)))
    try:
        path.write_text(json.dumps(summary))
        table = read_table([study])
        found = find(table)
        assert found.metric == "val/loss" and page_text(found)
        assert len(table.runs) == 6 and len(table.counted) >= 5
    finally:
        path.write_text(good)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four runs as the command line makes it."""
    out = tmp_path_factory.mktemp("real")
    text = out / "text.txt"
    text.write_text("\n\n".join(f"The people of {n} nations want peace and {n * n} kinds of work." for n in range(60)))
    words = ["norm=rmsnorm,layernorm", "seed=1,2", "table=0", "workers=1", "train.val_every=null", "name=s"]
    ended = ablatio(["train", "-m", *TINY, *words, f"source.path={text}", f"out={out}"], out / "log")
    assert ended.code == 0, ended.err
    return out / "s"


@pytest.mark.parametrize("names", [("",), RESULTS, *((name,) for name in RESULTS)])
def test_the_ledger_notices_every_exchanged_file_of_a_real_study(
    real: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    folder = Path(shutil.copytree(real, tmp_path / "s"))
    assert read_table([folder]).count() == {"done": 4}
    one, other = (run.folder for run in read_table([folder]).runs if run.seed == 1)
    exchange(one, other, names)
    found = damaged(read_table([folder]))
    assert set(found) == {one, other}
    assert all("is not the file that the ledger recorded" in why for why in found.values())


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "summary.json", "metrics.csv"])
def test_single_runs_know_their_own_files(real: Path, tmp_path: Path, name: str) -> None:
    runs = sorted((real / "runs").iterdir())[:2]
    one, other = (Path(shutil.copytree(run, tmp_path / "runs" / run.name)) for run in runs)
    assert read_table([tmp_path / "runs"]).count() == {"done": 2}
    exchange(one, other, (name,))
    assert set(damaged(read_table([tmp_path / "runs"]))) == {one, other}


def test_a_job_file_of_another_job_is_damaged(copy: Path) -> None:
    runs = [run.id for run in read_table([copy]).runs][:2]
    exchange(*(copy / "jobs" / f"{run}.json" for run in runs), ("",))  # type: ignore[arg-type]
    table = read_table([copy])
    assert table.count() == {"done": 4, "damaged": 2}
    assert all("it is the job" in run.why for run in table.runs if run.state == "damaged")


def test_a_damaged_run_lends_nothing_to_the_report(copy: Path) -> None:
    path = victim(copy) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"val/loss": None}))
    (run,) = (run for run in read_table([copy]).runs if run.state == "damaged")
    assert not (run.scores or run.curves or run.samples or run.manifest or run.main or run.size)
    assert replace(run, why="", state="planned").command
