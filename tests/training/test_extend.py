"""`extend=RUN`: a finished run goes on with a longer budget; nothing but the schedule is new."""

import csv
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from helpers.runs import TINY
from safetensors.torch import load_file

import ablatio
from ablatio.config.compose import compose_run
from ablatio.config.extend import may_change, settings_of
from ablatio.errors import ConfigError, UserError
from ablatio.sweep import request
from ablatio.training.extension import extension_of
from ablatio.training.run_folder import read_run, run_id

OTHER = ["optimizer=lion", "stabilizer=[clip,ema]", "stabilizer.ema.decay=0.9", "norm=layernorm", "freeze=[vector]"]


def settings(text_file: Path, out: Path, *more: str) -> list[str]:
    return [*(w for w in TINY if not w.startswith("train.steps")), f"source.path={text_file}", f"out={out}", *more]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(f"{n} the quick brown fox {n * n} jumps over {n} lazy dogs" for n in range(200)))
    return path


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    flat = ["schedule=constant", "schedule.warmup=0"]
    return ablatio.train(*settings(text, out, *OTHER, *flat, "train.steps=6", "name=a"), quiet=True).folder


class Stop(pl.Callback):
    """Pauses the run after step 9."""

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: object) -> None:
        trainer.should_stop = trainer.global_step >= 9


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoints/step-{step:08}.model.safetensors")


def rows(folder: Path) -> Sequence[dict[str, str]]:
    timed = ("seconds", "tokens_per_second")
    lines = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in timed} for row in lines]


def test_with_a_schedule_that_does_not_change_it_equals_the_longer_run(
    finished: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The oracle is a run that was planned with 12 steps: same weights bit for bit, same metrics."""
    longer = ablatio.train(f"extend={finished}", "train.steps=12", f"out={tmp_path}", "name=b")
    assert "the schedule gives the same rates" in " ".join(capsys.readouterr().out.split())
    flat = ["schedule=constant", "schedule.warmup=0", "train.steps=12", "name=c"]
    planned = ablatio.train(*settings(text, tmp_path, *OTHER, *flat), quiet=True)
    ours, theirs = weights(longer.folder, 12), weights(planned.folder, 12)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert rows(longer.folder) == rows(planned.folder)
    for key in ("before", "after", "tokens", "train_flops", "trainable_parameters"):
        assert longer.summary[key] == planned.summary[key]


def test_a_new_schedule_is_said_and_the_run_can_be_resumed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"extend={finished}", "train.steps=14", "schedule=linear", "train.checkpoint_every=2"]
    whole = ablatio.train(*words, f"out={tmp_path}", "name=whole")
    said = " ".join(capsys.readouterr().out.split())
    assert "computed anew for 14 steps: the rate goes from 1 to" in said
    assert whole.manifest["extends"]["step"] == 6
    rates = {int(row["step"]): float(row["train/lr"]) for row in rows(whole.folder) if row["train/lr"]}
    assert rates[6] > rates[8] > rates[14]  # that of step 6 is the finished run's

    paused = ablatio.train(*words, f"out={tmp_path}", "name=paused", callbacks=[Stop()], quiet=True)
    assert paused.summary["status"] == "paused"
    ablatio.resume_run(paused.folder, quiet=True)
    ours, theirs = weights(paused.folder, 14), weights(whole.folder, 14)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


CHANGING = [
    "train.batch_size=linear(2,4)", "data.length=stages(8@0,16@0.5)", "model.dropout=linear(0,0.2)",
    "attention=sliding", "attention.window=steps(4,8,12)", "optimizer.weight_decay=cosine(0.5,0)",
    "roles.frozen=stages([embedding]@0,[]@0.4)", "model.n_layers=2",
    "layers.attention=[{sliding: {window: 5}},sliding]", "layers.at.mlp={1: none}",
    "train.accumulate=2", "schedule=constant", "schedule.warmup=0",
]  # fmt: skip
# The same with places in steps of a run of 6: step number 5 is its last.
IN_STEPS = [
    "train.batch_size=linear(2,4,until=5steps)", "data.length=stages(8@0,16@2.5steps)",
    "model.dropout=linear(0,0.2,until=5steps)", "attention.window=stages(4@0,8@1.6667steps,12@3.3333steps)",
    "optimizer.weight_decay=cosine(0.5,0,until=5steps)", "roles.frozen=stages([embedding]@0,[]@2steps)",
]  # fmt: skip


def test_settings_that_change_keep_their_course(text: Path, tmp_path: Path) -> None:
    """The oracle is a run that was planned with 10 steps and has its places in steps: weights, metrics, counts."""
    short = ablatio.train(*settings(text, tmp_path, *CHANGING, "train.steps=6", "name=a"), quiet=True)
    longer = ablatio.train(f"extend={short.folder}", "train.steps=10", f"out={tmp_path}", "name=b", quiet=True)
    words = [*CHANGING, *IN_STEPS, "train.steps=10", "name=c"]
    planned = ablatio.train(*settings(text, tmp_path, *words), quiet=True)
    torch.testing.assert_close(weights(longer.folder, 10), weights(planned.folder, 10), rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(rows(longer.folder), rows(planned.folder), strict=True):
        assert {k: float(v) for k, v in ours.items() if v} == pytest.approx(
            {k: float(v) for k, v in theirs.items() if v}, rel=1e-4
        )
    assert [longer.summary[k] for k in ("tokens", "train_flops")] == [
        planned.summary[k] for k in ("tokens", "train_flops")
    ]
    counted = [int(row["tokens"]) for row in rows(longer.folder)]
    assert counted == sorted(counted)


def test_its_settings_are_those_of_the_run_and_its_id_is_another(finished: Path) -> None:
    old, new = read_run(finished), compose_run([f"extend={finished}", "train.steps=12"]).config
    for key in old:
        if key not in ("train", "extend", "out", "name", "trainer", "logger"):
            assert new[key] == old[key], key
    assert run_id(new) not in (run_id(old), run_id({**new, "extend": None}))
    assert compose_run([f"extend={finished}", "train.tokens=640"]).config["train"]["steps"] == 10


@pytest.mark.parametrize("key", ["optimizer.lr", "model.d_model", "seed", "norm", "freeze", "train.batch_size", "task"])
def test_what_determines_the_numbers_so_far_cannot_change(key: str, finished: Path) -> None:
    assert not may_change(key)
    with pytest.raises(UserError, match="came with extend="):
        settings_of(str(finished), [f"extend={finished}", "train.steps=12", f"{key}=1"])


def test_a_run_that_cannot_be_extended_is_refused(finished: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="came without a budget"):
        compose_run([f"extend={finished}"])
    with pytest.raises(UserError, match="is no run folder"):
        compose_run([f"extend={tmp_path}", "train.steps=12"])
    with pytest.raises(UserError, match="has 6 steps already"):
        extension_of(compose_run([f"extend={finished}", "train.steps=6"]).config)
    with pytest.raises((UserError, ConfigError), match="continues one run"):
        request.read([f"extend={finished}", "train.steps=12", "seed=1,2"])
