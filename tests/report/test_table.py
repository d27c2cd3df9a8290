"""Reading result folders: studies, single runs, several at once; damage is reported and never fatal."""

import itertools
import json
import random
import shutil
from pathlib import Path

import pytest
from helpers.studies import ACTIVATIONS, MIXED, Fake, write_study

from ablatio.errors import UserError
from ablatio.report.analysis.arms import Arm, _name, shortest_key
from ablatio.report.analysis.findings import find
from ablatio.report.html.render import page_text
from ablatio.report.read.table import read_table
from ablatio.report.terminal.arm_table import results_csv
from ablatio.sweep.ledger import Ledger
from ablatio.sweep.study import LEDGER, Refused, label_of

SMALL = Fake(axes={"norm": ["rmsnorm", "layernorm"]}, seeds=(1, 2), steps=100, baseline={"norm": "rmsnorm"})


def run_of(folder: Path, norm: str, seed: int) -> Path:
    runs = read_table([folder]).runs
    found = next(r for r in runs if r.arm["norm"] == norm and r.seed == seed)
    return folder / "runs" / found.id


def test_runs_keep_the_order_of_the_design(tmp_path: Path):
    table = read_table([write_study(tmp_path / "s", SMALL)])
    assert [(r.arm["norm"], r.seed) for r in table.runs] == [
        ("rmsnorm", 1), ("rmsnorm", 2), ("layernorm", 1), ("layernorm", 2),
    ]  # fmt: skip
    assert table.count() == {"done": 4}


def test_run_fields_match_its_files(tmp_path: Path):
    run = read_table([write_study(tmp_path / "s", SMALL)]).runs[0]
    summary = json.loads((run.folder / "summary.json").read_text())
    assert run.scores["val/loss"] == summary["val/loss"]
    assert run.size["flops_per_token"] == summary["train_flops"] / summary["tokens"]
    assert run.by_position[0] == summary["after"]["position/1"] and len(run.by_position) == 16
    assert run.rate == 0.003 and run.data == SMALL.data and run.tokenizer == "bpe 2048"
    steps, clock = run.curves["seconds"]
    assert run.cost["step_seconds"] == pytest.approx((clock[-1] - clock[0]) / (steps[-1] - steps[0]), rel=0.1)


def test_unfinished_runs_are_excluded_from_means(tmp_path: Path):
    """A diverged or interrupted run has intermediate validation scores, which are not its final score."""
    states = {("norm=layernorm", 1): "diverged", ("norm=rmsnorm", 2): "preempted"}
    folder = write_study(tmp_path / "s", Fake(**{**vars(SMALL), "seeds": (1, 2, 3), "states": states}))
    for run in (run_of(folder, "layernorm", 1), run_of(folder, "rmsnorm", 2)):
        path = run / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"val/loss": 0.001}))
    found = find(read_table([folder]))
    rows = {row.arm.name: row for row in found.rows}
    assert [rows[n].n for n in ("rmsnorm", "layernorm")] == [2, 2]
    assert all(row.mean is not None and row.mean > 3 for row in found.rows)
    assert found.comparison is not None and found.comparison.arm("layernorm").diverged == (1,)


DAMAGES = {
    "half a summary": ("summary.json", lambda text: text[: len(text) // 2]),
    "an empty summary": ("summary.json", lambda text: ""),
    "a list for a summary": ("summary.json", lambda text: "[1]"),
    "a state of nowhere": ("summary.json", lambda text: text.replace('"done"', '"\x1b[2J<b>"')),
    "text for a number": ("summary.json", lambda text: text.replace('"parameters": 1', '"parameters": "x", "y": 1')),
    "NaN for a number": ("summary.json", lambda text: text.replace('"memory": 3', '"memory": NaN, "z": 3')),
    "half a manifest": ("manifest.json", lambda text: text[: len(text) // 2]),
    "a manifest of lists": (
        "manifest.json",
        lambda text: '{"code": {"parts": {"a": null}}, "size": {"parameters": []}}',
    ),
    "a manifest of numbers": (
        "manifest.json",
        lambda text: '{"code": 1, "data": [2], "size": "x", "machine": 3, "versions": 4}',
    ),
    "half a config": ("config.json", lambda text: text[:9]),
    "half a row of metrics": ("metrics.csv", lambda text: text[:-7]),
    "noise in the metrics": ("metrics.csv", lambda text: text.replace("\n50,", "\nx\0,,,\n50,")),
    "no metrics": ("metrics.csv", lambda text: ""),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_run_stays_in_the_table(tmp_path: Path, what: str):
    folder = write_study(tmp_path / "s", SMALL)
    name, damage = DAMAGES[what]
    path = run_of(folder, "layernorm", 2) / name
    path.write_text(damage(path.read_text()))
    table = read_table([folder])
    assert page_text(find(table)) and results_csv(table)
    assert len(table.runs) == 4
    damaged_run = next(r for r in table.runs if r.folder == path.parent)
    assert damaged_run.state == ("done" if name == "metrics.csv" else "damaged")
    assert name in damaged_run.why or damaged_run.state == "done"


def test_damaged_job_and_study_files_are_reported(tmp_path: Path):
    folder = write_study(tmp_path / "s", SMALL)
    sorted((folder / "jobs").glob("*.json"))[0].write_text("{")
    (folder / "study.json").write_text("{}")
    table = read_table([folder])
    assert table.count()["damaged"] == 1 and table.count()["done"] == 3
    assert "study.json cannot be read" in table.notes[0]


def test_running_study_can_be_read(tmp_path: Path):
    states = {("norm=layernorm", 1): "running", ("norm=layernorm", 2): "planned"}
    table = read_table([write_study(tmp_path / "s", Fake(**{**vars(SMALL), "states": states}))])
    assert table.count() == {"done": 2, "running": 1, "planned": 1}
    running = next(r for r in table.runs if r.state == "running")
    assert running.curves["val/loss"][0][-1] < SMALL.steps
    assert find(table).rows[-1].mean is None


def test_ledger_state_overrides_run_folder(tmp_path: Path):
    """A run folder may hold files of an earlier attempt, or lack those that a killed process did not write."""
    states = {("norm=layernorm", 1): "failed"}
    folder = write_study(tmp_path / "s", Fake(**{**vars(SMALL), "states": states}))
    first, second = run_of(folder, "rmsnorm", 1), run_of(folder, "rmsnorm", 2)
    third, fourth = run_of(folder, "layernorm", 1), run_of(folder, "layernorm", 2)
    ledger = Ledger(folder / LEDGER)
    ledger.plan(r.name for r in (first, second, third, fourth))
    claims = {r: ledger.claim(r.name, ledger.entries[r.name]) for r in (second, third, fourth)}
    assert all(claims.values())
    for run in (second, third):
        ledger.begin(claims[run])
    ledger.end(claims[second], "failed", "timeout", "no step for 60 s")
    ledger.end(claims[fourth], "done")
    (fourth / "summary.json").unlink()
    found = {r.folder: r for r in read_table([folder]).runs}
    assert found[first].state == "planned"
    assert (found[second].state, found[second].why) == ("failed", "no step for 60 s")
    assert found[third].state == "running", "failed in an earlier attempt, now claimed by this process"
    assert found[fourth].state == "damaged" and "holds no result" in found[fourth].why
    text = (folder / LEDGER).read_bytes()
    (folder / LEDGER).write_bytes(text.replace(b"no step", b"No step"))
    assert read_table([folder]).notes == [f"{folder / LEDGER}: damaged lines are left out: 10"]


def test_single_runs_are_arms_named_by_differing_settings(tmp_path: Path):
    folder = write_study(tmp_path / "s", SMALL)
    shutil.move(folder / "runs", tmp_path / "runs")
    table = read_table([tmp_path / "runs"])
    assert {tuple(r.arm.items()) for r in table.runs} == {(("norm", "rmsnorm"),), (("norm", "layernorm"),)}
    one = read_table([next((tmp_path / "runs").iterdir())])
    assert len(one.runs) == 1 and one.runs[0].arm == {}


def test_options_of_a_list_name_single_runs(tmp_path: Path):
    """By the list, as an axis of a sweep would; by a knob only where both have the option."""
    some, fewer = {"low": 0.0, "high": 0.8}, {"low": 0.0, "high": 0.5}
    chosen = {
        "plain": {}, "low": {"perplexity": some}, "high": {"perplexity": fewer},
        "both": {"language": {"keep": "en"}, "perplexity": some},
    }  # fmt: skip
    for name, filters in chosen.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"seed": 1, "norm": {"name": "rmsnorm"}, "filter": filters}))

    def arms(*names: str) -> dict[str, dict[str, str]]:
        return {run.folder.name: dict(run.arm) for run in read_table([tmp_path / name for name in names]).runs}

    assert arms("plain", "both") == {"plain": {"filter": "[]"}, "both": {"filter": "[language,perplexity]"}}
    knob = {"low": {"filter.perplexity.high": "0.8"}, "high": {"filter.perplexity.high": "0.5"}}
    assert arms("low", "high") == knob
    found = arms(*chosen)
    assert found["both"] == {"filter": "[language,perplexity]", "filter.perplexity.high": "0.8"}
    assert found["high"] == {"filter": "[perplexity]", "filter.perplexity.high": "0.5"}


def test_several_folders_are_merged_into_one_study(tmp_path: Path):
    first = write_study(tmp_path / "a", SMALL)
    second = write_study(tmp_path / "b", Fake(**{**vars(SMALL), "seeds": (2, 3)}))
    found = find(read_table([first, second]))
    assert [row.n for row in found.rows] == [3, 3]
    assert any("is there twice" in note for note in found.table.notes)


def test_folders_with_different_data_are_compared_within_each(tmp_path: Path):
    first = write_study(tmp_path / "a", SMALL)
    second = write_study(tmp_path / "b", Fake(**{**vars(SMALL), "data": "cd" * 32, "effects": {"norm=rmsnorm": 2.0}}))
    found = find(read_table([first, second]))
    assert [row.n for row in found.rows] == [4, 4]
    assert any("differ in text" in note for note in found.table.notes)


def test_baseline_and_score_can_be_selected(tmp_path: Path):
    table = read_table([write_study(tmp_path / "s", MIXED)])
    found = find(table, "val/accuracy", "layernorm alibi")
    assert found.better == "high" and found.baseline and found.baseline.arm.name == "layernorm alibi"
    assert found.rows[0].mean == max(r.mean for r in found.rows if r.mean)
    with pytest.raises(UserError, match="names 3 arms"):
        find(table, None, "norm=rmsnorm")
    with pytest.raises(UserError, match="there are val/accuracy, val/bpb, val/loss"):
        find(table, "val/x")


def test_empty_folder_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match="holds no runs"):
        read_table([tmp_path])


def test_refused_arms_are_kept_and_names_are_short(tmp_path: Path):
    found = find(read_table([write_study(tmp_path / "s", MIXED)]))
    assert isinstance(found.table.refused[0], Refused)
    assert {r.arm.name for r in found.rows} >= {"rmsnorm rope", "norm=none alibi", "layernorm position=none"}
    one = find(read_table([write_study(tmp_path / "a", ACTIVATIONS)]))
    assert {r.arm.name for r in one.rows} == set(ACTIVATIONS.axes["activation"])


def test_arm_names_are_the_shortest_that_tell_them_apart() -> None:
    """On drawn designs: names differ, no common setting is in them, and words of a key are left out where they may."""
    keys = ["norm", "optimizer.lr", "stages.sft.optimizer.lr", "stages.dpo.optimizer.lr", "model.path", "model.d_model"]
    assert [shortest_key(k, keys) for k in keys] == ["norm", "optimizer.lr", "sft.optimizer.lr", "dpo.optimizer.lr",
                                                     "path", "d_model"]  # fmt: skip
    rng = random.Random(0)
    for _ in range(200):
        used = rng.sample(keys, rng.randint(1, 4))
        values = {k: rng.sample(["a", "b", "0.1", "/x/one", "/y/one", "/y/two", "none"], 3) for k in used}
        settings = [dict(zip(used, row, strict=True)) for row in itertools.product(*values.values())]
        arms = [Arm(label_of(s), label_of(s), s, []) for s in rng.sample(settings, min(len(settings), 6))]
        _name(arms, False)
        assert len({a.name for a in arms}) == len(arms)
        assert all(len(a.name) <= len(a.label) for a in arms)
        fixed = [k for k in used if len({a.settings[k] for a in arms}) == 1]
        if len(fixed) < len(used):
            assert not any(f"{shortest_key(k, used)}=" in a.name for a in arms for k in fixed if "." in k)


def test_paths_in_names_are_file_names_where_these_differ() -> None:
    arms = [Arm(p, p, {"source.path": p, "seed_of": s}, []) for p, s in (("/x/one.txt", "1"), ("/y/two.txt", "2"))]
    _name(arms, False)
    assert [a.name for a in arms] == ["path=one.txt seed_of=1", "path=two.txt seed_of=2"]
    arms = [Arm(p, p, {"source.path": p}, []) for p in ("/x/one.txt", "/y/one.txt")]
    _name(arms, False)
    assert [a.name for a in arms] == ["path=/x/one.txt", "path=/y/one.txt"]
