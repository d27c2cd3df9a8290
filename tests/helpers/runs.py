"""Runs for tests: the real command line in a forked child process, so that torch is imported only once."""

import csv
import functools
import json
import multiprocessing as mp
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.as_own_process import leave_pytest

TINY = (
    "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_len=16", "tokenizer=bytes",
    "source=text", "source.separator='\\n\\n'", "data.val_fraction=0.2", "data.val_tokens=256", "train.batch_size=4",
    "train.log_every=2", "train.val_every=6", "train.checkpoint_every=4", "train.steps=12", "trainer.threads=1",
    "trainer.progress=false",
)  # fmt: skip
# A recipe of three stages that takes seconds, and a sweep axis of its last stage.
KL = "stages.ppo.alignment.kl_coef=0.05,0.2"
SMALL_RECIPE = (
    "recipe=instructgpt", "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_len=256",
    "tokenizer=bytes", "source.size=40", "data.val_fraction=0.3", "train.batch_size=4", "train.log_every=2",
    "train.val_every=null", "train.checkpoint_every=2", "train.steps=6", "trainer.threads=1", "trainer.progress=false",
    "stages.sft.task.share=0", "stages.ppo.train.steps=4", "stages.ppo.task.answer_tokens=8", "name=r",
)  # fmt: skip


@dataclass
class Finished:
    """Exit code, standard output and standard error of a finished command."""

    code: int
    out: str
    err: str


def _child(arguments: Sequence[str], folder: str) -> None:
    from helpers import warm_ranks

    from ablatio.cli.main import main

    leave_pytest()
    warm_ranks.fork()
    sys.stdout = Path(folder, "out").open("w", encoding="utf-8")  # noqa: SIM115 (open until the process ends)
    sys.stderr = Path(folder, "err").open("w", encoding="utf-8")  # noqa: SIM115
    code = main(list(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@functools.cache
def _compose_once() -> None:
    """Do once for all tests what a first composition does: import the command line, fill Hydra's caches of grammar."""
    import ablatio.training.run  # noqa: F401
    from ablatio.config.compose import compose_run

    compose_run(TINY)


def begin(arguments: Sequence[str], folder: Path) -> mp.process.BaseProcess:
    """Start `ablatio ARGUMENTS` in a forked child, whose output goes to `folder`/out and `folder`/err."""
    _compose_once()
    folder.mkdir(parents=True, exist_ok=True)
    process = mp.get_context("fork").Process(target=_child, args=(arguments, str(folder)))
    process.start()
    return process


def ablatio(
    arguments: Sequence[str],
    folder: Path,
    kill_when: Path | None = None,
    number: int = signal.SIGKILL,
    seconds: float = 120.0,
) -> Finished:
    """Run `ablatio ARGUMENTS` in a forked child; send it signal `number` as soon as the file `kill_when` exists.

    seconds: the run must end within this time
    """
    process = begin(arguments, folder)
    deadline = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < deadline:
        if kill_when is not None and kill_when.exists():
            assert process.pid
            os.kill(process.pid, number)
            kill_when = None
        process.join(0.002)
    if process.is_alive():
        process.kill()  # else pytest waits for it at its own end
        raise AssertionError(f"the run did not end within {seconds:g} s")
    out, err = (folder / "out").read_text(), (folder / "err").read_text()
    return Finished(process.exitcode or 0, out, err)


def cut_and_resumed(settings: Sequence[str], out: Path, at: int = 4) -> Path:
    """Train the run `cut` in `out`, kill it at the checkpoint of step `at`, and resume it to its end."""
    cut = out / "cut"
    mark = cut / f"checkpoints/step-{at:08d}.json"
    killed = ablatio(["train", *settings, "name=cut"], out / "log", kill_when=mark)
    assert killed.code == -signal.SIGKILL
    resumed = ablatio(["train", f"resume={cut}"], out / "log")
    assert resumed.code == 0, resumed.err
    return cut


def summary(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "summary.json").read_text()))


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without the columns that depend on the clock."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]
