"""`ablatio.train`: the command line's numbers and errors, in a process that stays as it was."""

import os
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import ablatio as command
from helpers.runs import metrics, summary
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from safetensors.torch import load_file

import ablatio
from ablatio.api.training_runs import _resumed_settings
from ablatio.errors import Preempted


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints/step-00000012.model.safetensors")


def same_digits(a: Path, b: Path) -> None:
    """Every logged number and every weight of two runs is the same."""
    assert metrics(a) == metrics(b)
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_two_runs_after_one_another_have_the_digits_of_two_commands(settings: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(123)  # whatever the process did before
    for norm in ("layernorm", "rmsnorm"):
        run = ablatio.train(*settings, f"norm={norm}", "model.dropout=0.1", name=norm, out=tmp_path / "api", quiet=True)
        assert run.folder == tmp_path / "api" / norm and run.summary["status"] == "done"
        words = ["train", *settings, f"norm={norm}", "model.dropout=0.1", f"name={norm}", f"out={tmp_path / 'cli'}"]
        done = command(words, tmp_path / "log")
        assert done.code == 0, done.err
        same_digits(run.folder, tmp_path / "cli" / norm)


def test_a_run_in_a_thread_has_the_same_digits(
    run: "ablatio.RunFolder", settings: tuple[str, ...], tmp_path: Path
) -> None:
    made: list[ablatio.RunFolder] = []

    def train(name: str) -> None:
        made.append(ablatio.train(*settings, name=name, out=tmp_path, quiet=True))

    threads = [threading.Thread(target=train, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    for other in made:
        same_digits(run.folder, other.folder)


def test_the_process_is_as_it_was(settings: tuple[str, ...], tmp_path: Path) -> None:
    def state() -> dict[str, Any]:
        signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
        return {
            "signals": signals, "environment": dict(os.environ), "folder": Path.cwd(),
            "filters": list(warnings.filters),
            "threads": torch.get_num_threads(), "precision": torch.get_float32_matmul_precision(),
            "random": torch.get_rng_state().tolist(),
        }  # fmt: skip

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    try:
        before = state()
        ablatio.train(*settings, "model.d_model=128", "train.steps=2", name="run", out=tmp_path, quiet=True)
        after = state()
    finally:
        torch.set_num_threads(threads)
    assert all(after[what] == before[what] for what in before), [w for w in before if after[w] != before[w]]


def test_hydra_of_the_caller_stays(settings: tuple[str, ...], tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/mine.yaml").write_text("answer: 42\n")
    with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        ablatio.build_model(*settings)
        assert compose("mine").answer == 42


def test_quiet_prints_nothing_and_else_it_says_what_the_command_says(
    settings: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ablatio.train(*settings, "train.steps=1", name="quiet", out=tmp_path, quiet=True)
    assert capfd.readouterr() == ("", "")
    ablatio.train(*settings, "train.steps=1", name="loud", out=tmp_path)
    out = capfd.readouterr().out
    assert "rmsnorm" in out and "bits per byte" in out


@pytest.mark.parametrize(
    "words",
    [
        ("norm=rmsnrom",),
        ("norm.eps=many", "train.steps=-1"),
        ("norm=layernorm,rmsnorm",),
        ("no.such=1",),
        ("model.n_heads=5",),
        ("just a word",),
        ("resume=nowhere",),
        ("recipe=nothing",),
    ],
)
def test_wrong_settings_raise_the_error_of_the_command_line(words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ablatio.UserError) as raised:
        ablatio.train(*words, quiet=True)
    done = command(["train", *words], tmp_path)
    assert done.code == raised.value.exit_code == 2
    assert done.err == f"ablatio: {raised.value}\n"


def test_what_is_no_setting_is_refused_with_a_call_that_works(settings: tuple[str, ...]) -> None:
    with pytest.raises(ablatio.UserError, match=r'(?s)flag -m.*ablatio\.run_study\("norm='):
        ablatio.train("-m", "norm=layernorm,rmsnorm")
    with pytest.raises(ablatio.UserError, match=r"settings are text"):
        ablatio.train({"norm": "rmsnorm"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seed"):
        ablatio.train(seed=1)  # type: ignore[call-arg]


def test_a_place_with_spaces_and_a_second_run_there(settings: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "runs of é, mine"
    run = ablatio.train(*settings, "train.steps=1", name="one", out=out, quiet=True)
    assert run.folder == out / "one"
    with pytest.raises(ablatio.UserError, match="holds a run already"):
        ablatio.train(*settings, "train.steps=1", name="one", out=out, quiet=True)


class Watching(Callback):
    """Sees each step, draws numbers, keeps a state, and may end the run."""

    def __init__(self, stop_at: int = 0) -> None:
        self.stop_at, self.steps = stop_at, 0

    def on_train_batch_start(self, *args: Any) -> None:
        torch.rand(3)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.steps += 1
        torch.rand(5)
        trainer.should_stop = self.steps == self.stop_at

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def test_a_callback_sees_each_step_and_changes_no_number(
    run: "ablatio.RunFolder", settings: tuple[str, ...], tmp_path: Path
) -> None:
    mine = Watching()
    watched = ablatio.train(*settings, name="watched", out=tmp_path, callbacks=[mine], quiet=True)
    assert mine.steps == 12
    same_digits(run.folder, watched.folder)
    assert watched.manifest["callbacks"] == [f"{__name__}.Watching"] and "callbacks" not in run.manifest


def test_a_callback_that_stops_pauses_the_run_and_resume_ends_it(
    run: "ablatio.RunFolder", settings: tuple[str, ...], tmp_path: Path
) -> None:
    paused = ablatio.train(*settings, name="paused", out=tmp_path, callbacks=[Watching(stop_at=5)], quiet=True)
    assert paused.summary["status"] == "paused" and paused.summary["steps"] == 5 and paused.summary["after"]
    mine = Watching()
    whole = ablatio.resume_run(paused.folder, callbacks=[mine], quiet=True)
    assert mine.steps == 12 and whole.summary["status"] == "done"  # its state came from the checkpoint
    first, second = weights(run.folder), weights(whole.folder)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.summary["after"] == run.summary["after"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (ModelCheckpoint(), "writes its own checkpoints"),
        (TQDMProgressBar(), "shows its own progress"),
        (Watching, "contains the class Watching"),
        (print, "expected objects of lightning.pytorch.Callback"),
    ],
)
def test_what_is_no_callback_of_a_run_is_refused_before_its_folder_is_made(
    wrong: Any, said: str, settings: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ablatio.UserError, match=said):
        ablatio.train(*settings, out=tmp_path, callbacks=[wrong], quiet=True)
    assert not list(tmp_path.iterdir())


class Interrupting(Callback):
    """Sends Ctrl-C at step 5, as a notebook's stop button does."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_leaves_a_checkpoint_and_resume_gives_the_same_digits(
    run: "ablatio.RunFolder", settings: tuple[str, ...], tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Preempted, match="SIGINT came at step 5"):
        ablatio.train(*settings, name="cut", out=tmp_path, callbacks=[Interrupting()], quiet=True)
    assert signal.getsignal(signal.SIGINT) is before
    assert ablatio.open_run(tmp_path / "cut").summary["status"] == "preempted"
    ablatio.train(f"resume={tmp_path / 'cut'}", quiet=True)
    same_digits(run.folder, tmp_path / "cut")
    assert summary(tmp_path / "cut")["status"] == "done"


def test_a_finished_run_is_not_trained_again(run: "ablatio.RunFolder") -> None:
    stamp = (run.folder / "metrics.csv").stat().st_mtime_ns
    assert ablatio.resume_run(run.folder, quiet=True).summary == run.summary
    assert (run.folder / "metrics.csv").stat().st_mtime_ns == stamp
    with pytest.raises(ablatio.UserError, match="a resumed run keeps its settings"):
        ablatio.resume_run(run.folder, "optimizer.lr=1")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("trainer.timeout=900.5", 900.5),
        ("trainer.threads=2", 2),
        ("trainer.compile=true", True),
        ("trainer.precision=32", "32"),
        ("trainer.device='cpu'", "cpu"),
    ],
)
def test_a_resumed_run_reads_values_as_every_command_does(run: "ablatio.RunFolder", setting: str, value: Any) -> None:
    key = setting.partition("=")[0].removeprefix("trainer.")
    assert _resumed_settings(run.folder, [setting])["trainer"][key] == value


@pytest.mark.parametrize(
    "word", ["trainer.", "trainer.device", "trainer.threads=\u00b2", "trainer.threads=1,2", "trainer.no=1", "strategy="]
)
def test_what_a_resumed_run_cannot_take_is_refused(run: "ablatio.RunFolder", word: str) -> None:
    with pytest.raises(ablatio.UserError):
        ablatio.resume_run(run.folder, word, quiet=True)
