"""A killed or stopped run that is resumed equals the uninterrupted one bit for bit."""

import signal
from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics, summary
from safetensors.torch import load_file

from ablatio.report.read.table import read_table


def weights(run: Path, step: int) -> bytes:
    return (run / "checkpoints" / f"step-{step:08d}.model.safetensors").read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kill_at", [4, 8])
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, text_file: Path, workers: int, dropout: float, kill_at: int
) -> None:
    # 12 steps of 4 rows; the text has about 190 rows in an epoch, so a batch of 60 crosses its end in step 4
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", f"model.dropout={dropout}"]
    settings += ["train.batch_size=60", "train.accumulate=1", f"trainer.workers={workers}"]
    assert ablatio(["train", *settings, "name=whole"], tmp_path / "log").code == 0
    cut = cut_and_resumed(settings, tmp_path, kill_at)
    assert weights(cut, 12) == weights(tmp_path / "whole", 12)
    assert metrics(cut) == metrics(tmp_path / "whole")
    assert summary(cut)["after"] == summary(tmp_path / "whole")["after"]
    states = {run.folder.name: (run.state, run.why) for run in read_table([cut, tmp_path / "whole"]).runs}
    assert states == {"cut": ("done", ""), "whole": ("done", "")}


OBJECTIVES = {
    "fim": ["objective=fim"],
    "span_corruption": ["architecture=encoder_decoder", "objective=span_corruption"],
    "scheduled": ["objective=masked_lm", "architecture=encoder", "objective.rate=linear(0.1,0.6)"],
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "fim" else pytest.mark.long) for n in OBJECTIVES])
def test_examples_made_by_other_processes_are_the_same(tmp_path: Path, text_file: Path, name: str) -> None:
    """With none, one and two of them, and in a run that is killed in its middle and resumed."""
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", *OBJECTIVES[name], "train.accumulate=2"]
    for workers in (0, 1):
        ran = ablatio(["train", *settings, f"trainer.workers={workers}", f"name=with-{workers}"], tmp_path / "log")
        assert ran.code == 0, ran.err
    cut = cut_and_resumed([*settings, "trainer.workers=2"], tmp_path, 8)
    for other in (tmp_path / "with-1", cut):
        assert weights(other, 12) == weights(tmp_path / "with-0", 12)
        assert metrics(other) == metrics(tmp_path / "with-0")


@pytest.mark.matrix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_signal_saves_a_checkpoint_and_exits_with_75(
    tmp_path: Path, text_file: Path, number: int, accumulate: int
) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "model.dropout=0.2", "train.checkpoint_every=30"]
    settings += ["train.steps=120", f"train.accumulate={accumulate}", "train.val_every=3"]
    assert ablatio(["train", *settings, "name=whole"], tmp_path / "log").code == 0
    cut = tmp_path / "cut"
    stopped = ablatio(
        ["train", *settings, "name=cut"],
        tmp_path / "log",
        kill_when=cut / "checkpoints/step-00000030.json",
        number=number,
    )
    assert stopped.code == 75, stopped.out[-300:] + stopped.err
    assert f"resume={cut}" in stopped.err
    assert summary(cut)["status"] == "preempted"
    assert ablatio(["train", f"resume={cut}"], tmp_path / "log").code == 0
    assert weights(cut, 120) == weights(tmp_path / "whole", 120)
    assert metrics(cut) == metrics(tmp_path / "whole")


def test_finished_run_is_unchanged_and_keeps_its_settings(tmp_path: Path, text_file: Path) -> None:
    run = tmp_path / "run"
    assert (
        ablatio(["train", *TINY, f"source.path={text_file}", f"out={tmp_path}", "name=run"], tmp_path / "log").code == 0
    )
    before = weights(run, 12)
    again = ablatio(["train", f"resume={run}"], tmp_path / "log")
    assert again.code == 0 and "finished" in again.out
    assert weights(run, 12) == before
    changed = ablatio(["train", f"resume={run}", "optimizer.lr=1"], tmp_path / "log")
    assert changed.code == 2 and "keeps its settings" in changed.err
    assert load_file(run / "checkpoints/step-00000012.model.safetensors")  # any tool can open the weights
    second = ablatio(["train", *TINY, f"source.path={text_file}", f"out={tmp_path}", "name=run"], tmp_path / "log")
    assert second.code == 2 and "holds a run already" in second.err


def test_damaged_checkpoint_falls_back_to_the_previous_one(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}"]
    assert ablatio(["train", *settings, "name=whole"], tmp_path / "log").code == 0
    cut = tmp_path / "cut"
    ablatio(["train", *settings, "name=cut"], tmp_path / "log", kill_when=cut / "checkpoints/step-00000008.json")
    newest = cut / "checkpoints/step-00000008.model.safetensors"
    data = bytearray(newest.read_bytes())
    data[-9] ^= 4
    newest.write_bytes(data)
    resumed = ablatio(["train", f"resume={cut}"], tmp_path / "log")
    assert resumed.code == 0, resumed.err
    assert "step-00000008" in resumed.out
    assert weights(cut, 12) == weights(tmp_path / "whole", 12)
