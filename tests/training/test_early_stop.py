"""A stabilizer may end a run: it is done, its checkpoint is of that step, and resuming does not change the decision."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from helpers.runs import TINY
from safetensors.torch import load_file

import ablatio
from ablatio.config.compose import compose_run
from ablatio.errors import ConfigError
from ablatio.report.read.run import DONE, terms_of
from ablatio.report.read.table import read_table

# With this rate the held-out loss soon rises; 4 validations later the run has ended.
STOPS = ["stabilizer=[clip,early_stop]", "stabilizer.early_stop.patience=2", "optimizer.lr=0.5", "train.steps=60",
         "train.val_every=3", "schedule=constant"]  # fmt: skip


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoints/step-{step:08}.model.safetensors")


def test_the_run_ends_at_the_validation_that_decides_and_counts_as_done(tmp_path: Path, text_file: Path) -> None:
    words = [*(w for w in TINY if not w.startswith(("train.steps", "train.val_every"))), f"source.path={text_file}"]
    run = ablatio.train(*words, *STOPS, f"out={tmp_path}", "name=a", quiet=True)
    step = run.summary["steps"]
    assert run.summary["status"] == "done" and step < 60 and step % 3 == 0
    assert run.summary["stopped"] == {"by": "early_stop", "planned_steps": 60}
    # The oracle: the validations of the same run, which goes on.
    plain = ablatio.train(
        *words,
        *(w for w in STOPS if "patience" not in w),
        "stabilizer.early_stop.patience=999",
        f"out={tmp_path}",
        "name=b",
        quiet=True,
    )
    losses = list(plain.metrics["val/loss"].dropna())
    best, waited, expected = float("inf"), 0, 60
    for number, loss in enumerate(losses):
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited == 2:
            expected = 3 * number
            break
    assert step == expected
    ours = list(run.metrics["val/loss"].dropna())
    assert ours == losses[: len(ours)]

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *rest: object) -> None:
            trainer.should_stop = trainer.global_step >= step - 2

    paused = ablatio.train(*words, *STOPS, f"out={tmp_path}", "name=c", callbacks=[Stop()], quiet=True)
    assert paused.summary["status"] == "paused"
    resumed = ablatio.resume_run(paused.folder, quiet=True)  # the validation at the pause does not count
    assert resumed.summary["steps"] == step and resumed.summary["stopped"] == run.summary["stopped"]

    # Its budget in comparisons is the planned one, so that arms that end at other steps stay comparable.
    table = {r.folder.name: r for r in read_table([tmp_path]).runs}
    assert table["a"].state == table["b"].state == DONE
    assert terms_of(table["a"]) == terms_of(table["b"]) and table["a"].size["steps"] == step


def test_a_run_that_was_killed_after_it_had_been_ended_stays_ended(tmp_path: Path, text_file: Path) -> None:
    words = [*(w for w in TINY if not w.startswith(("train.steps", "train.val_every"))), f"source.path={text_file}"]
    run = ablatio.train(*words, *STOPS, f"out={tmp_path}", "name=a", quiet=True)
    step, before = run.summary["steps"], weights(run.folder, run.summary["steps"])
    (run.folder / "summary.json").unlink()
    resumed = ablatio.resume_run(run.folder, quiet=True)
    assert resumed.summary["steps"] == step and resumed.summary["status"] == "done"
    assert all(torch.equal(weights(run.folder, step)[name], before[name]) for name in before)


def test_without_validations_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs validations during the run"):
        compose_run(["stabilizer=[early_stop]", "train.val_every=null"])
    compose_run(["train.val_every=null"])
