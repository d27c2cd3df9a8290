"""Evaluating the finished runs of a study: as their own `eval=` does, once, and into the report."""

import json
from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, summary

from ablatio import open_study
from ablatio.api.adapter import Measures
from ablatio.errors import ConfigError, UserError
from ablatio.training.evaluation.values_file import VALUES, read_values

EVAL = ("eval=[dyck]", "eval.dyck.items=12")
DYCK = "eval/dyck/likelihood_choice"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms that were evaluated in training."""
    out = tmp_path_factory.mktemp("study")
    (out / "text.txt").write_text("\n\n".join(f"Paragraph {i}: people meet on bridge {i % 7}." for i in range(60)))
    words = [*TINY, f"source.path={out / 'text.txt'}", f"out={out}", "name=norms", *EVAL, "train.steps=3", "workers=1"]
    done = ablatio(["train", "-m", "norm=rmsnorm,layernorm", *words], out / "log")
    assert done.code == 0, done.err
    return out / "norms"


def test_later_values_are_those_of_the_runs_own_evaluation(study: Path, tmp_path: Path) -> None:
    """The oracle is what each run measured at its end, by the loop that trained it."""
    done = ablatio(["evaluate", str(study), *EVAL, "--json"], tmp_path / "log")
    assert done.code == 0, done.err
    rows = json.loads(done.out)["runs"]
    assert [row["state"] for row in rows] == ["measured"] * 2
    assert {row["arm"]["norm"] for row in rows} == {"rmsnorm", "layernorm"}
    for row in rows:
        own = summary(Path(row["run"]))["evaluation"]["values"]  # type: ignore[index]
        assert {c: v["value"] for c, v in row["values"].items()} == pytest.approx(
            {c: v["value"] for c, v in own.items()}
        )


def test_what_was_measured_is_not_measured_again_and_changes_count(study: Path) -> None:
    found = open_study(study)
    task = study / "colors.yaml"
    task.write_text("task: colors\ndataset_path: json\ndataset_kwargs: {data_files: {test: colors.jsonl}}\n"
                    "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: c\n"
                    "doc_to_target: label\n")  # fmt: skip

    def states(question: str) -> list[str]:
        row = {"q": question, "c": ["red", "green"], "label": 1}
        (study / "colors.jsonl").write_text(json.dumps(row) + "\n")
        return [one.state for one in found.evaluate("eval=[task_file]", f"eval.task_file.path={task}")]

    assert states("grass?") == ["measured"] * 2
    assert states("grass?") == ["kept"] * 2
    assert states("snow?") == ["measured"] * 2  # the same settings, and other items
    one = next(study.glob(f"runs/*/{VALUES}"))
    assert "eval/colors/likelihood_choice" in read_values(one.parent)
    one.unlink()
    assert sorted(states("snow?")) == ["kept", "measured"]


def test_the_report_compares_by_a_later_score(study: Path) -> None:
    found = open_study(study)
    found.evaluate("eval=[minimal_pairs]", "eval.minimal_pairs.items=10")
    column = "eval/minimal_pairs/likelihood_choice"
    findings = found.findings(metric=column)
    for row in findings.rows:
        (run,) = row.arm.runs
        assert run.done and row.mean == read_values(run.folder)[column]["value"] == run.measured[column]["value"]
        assert run.measured[DYCK] and findings.better == "high"
    text = found.report(study / "out", metric=column).with_name("report.md").read_text()
    assert "eval/minimal\\_pairs/likelihood\\_choice" in text


def test_a_damaged_file_or_run_stops_no_other(study: Path) -> None:
    found = open_study(study)
    found.evaluate(*EVAL)
    path = next(study.glob(f"runs/*/{VALUES}"))
    whole = path.read_text()
    path.write_text(whole.replace('"items"', '"item"', 1))
    (damaged,) = [run for run in found.findings().table.runs if run.folder == path.parent]
    assert damaged.done and "later evaluations are left out" in damaged.why and DYCK in damaged.scores
    assert sorted(one.state for one in found.evaluate(*EVAL)) == ["failed", "kept"]
    path.write_text(whole)
    with pytest.raises(UserError, match="no evaluation is chosen"):
        found.evaluate("metric=[]")


def test_a_study_is_measured_by_evaluations_alone(study: Path, tmp_path: Path) -> None:
    flags = (["--length", "8"], ["--tokens", "8"], ["--limit", "8"])
    given = [([*flag, *EVAL], f"{flag[0]} has no effect on a study") for flag in flags]
    for words, said in [([], "is measured by evaluations"), *given]:
        done = ablatio(["evaluate", str(study), *words], tmp_path / "log")
        assert done.code == 2 and said in done.err and "try: ablatio evaluate" in done.err


def test_a_measure_that_does_not_exist_is_not_answered_with_a_command_that_trains() -> None:
    with pytest.raises(ConfigError, match="did you mean accuracy") as caught:
        Measures.of(["eval=[dyck]", "metric=[accurcy]"])
    assert "ablatio train" not in str(caught.value)
