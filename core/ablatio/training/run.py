"""One run from a checked config to its folder: training, scores, and what it was made of."""

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console

from ablatio.errors import AblatioError, EnvironmentFault
from ablatio.model.builder import PartChoice
from ablatio.storage.checkpoints import Checkpoints, write_json
from ablatio.training import provenance
from ablatio.training.estimate import check_memory
from ablatio.training.loggers import make_loggers
from ablatio.training.loop import TrainingLoop
from ablatio.training.prepare import PreparedRun, needs_start, prepare_run
from ablatio.training.reference import digest_of, refuse_a_lost_one, refuse_another
from ablatio.training.run_folder import CHECKPOINTS, TOKENIZER
from ablatio.training.run_spec import RunSpec
from ablatio.training.teacher import attach_teacher


def train(
    spec: RunSpec,
    folder: Path,
    console: Console,
    *,
    resume: bool = False,
    until: int | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> dict[str, Any]:
    """Train the run of `spec` in `folder` and return its summary.

    until: pause at this step of the run's own schedule, with a score and a checkpoint; resume=True goes on from there
    callbacks: Lightning callbacks of the caller's own; the manifest names their classes
    """
    quiet_libraries()
    config = spec.config
    checkpoints = Checkpoints(folder / CHECKPOINTS, config["train"]["keep"], run=spec.id)
    goes_on = resume and checkpoints.latest() is not None
    if goes_on:
        refuse_a_lost_one(config, folder)
    made = spec.with_own_tokenizer(folder) if goes_on else spec
    check_memory(made)
    loggers = make_loggers(config, spec.written, folder)
    found = checkpoints.load() if goes_on else None
    for sentence in found.skipped if found else ():
        console.print(f"[yellow]checkpoint left out:[/] {sentence}", highlight=False)
    run = prepare_run(made, fresh=not found or needs_start(config))
    recorded = _recorded(folder / "manifest.json") if found else {}
    refuse_another(run, str(recorded.get("reference", "")), folder)
    teacher = attach_teacher(run, recorded.get("teacher"))
    if not found:
        if run.origin:
            console.print(str(run.origin), highlight=False)
        told = {key: text for key, text in (("teacher", teacher), ("reference", digest_of(run))) if text}
        write_json(folder / "config.json", spec.written)
        write_json(folder / TOKENIZER, _tokenizer(run))
        write_json(folder / "manifest.json", _manifest(run) | told | _named(callbacks))
    run.begin()
    session = TrainingLoop(run, folder, console, checkpoints, found, loggers, until, callbacks)
    try:
        return session.train()
    except AblatioError as error:
        status = {4: "diverged", 75: "preempted"}.get(error.exit_code, "failed")
        write_json(folder / "summary.json", session.summary(status) | {"error": str(error)})
        session.file.finish(status)
        raise


def quiet_libraries() -> None:
    """Silence advice that does not apply here."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        if (logger := logging.getLogger(name)).level != logging.ERROR:  # setting it goes through all loggers there are
            logger.setLevel(logging.ERROR)
    # Lightning's advice on workers and loggers, and that our loader cannot be resumed (it can: by its first number).
    warnings.filterwarnings("ignore", module=r"lightning\..*")


def _recorded(path: Path) -> dict[str, Any]:
    """The manifest of a run that is resumed."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"{path} cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}


def _named(callbacks: Sequence[Any]) -> dict[str, Any]:
    """The classes of the caller's callbacks; a run without any says nothing of them."""
    names = [f"{type(callback).__module__}.{type(callback).__qualname__}" for callback in callbacks]
    return {"callbacks": names} if names else {}


def _tokenizer(run: PreparedRun) -> dict[str, Any]:
    """The tokenizer with what it has learnt: other runs and tasks start from it, whatever they read."""
    choice = PartChoice.of(run.config["tokenizer"])
    made = getattr(run.tokenizer, "made_as", {"name": choice.name, "knobs": dict(choice.knobs)})
    return {**made, "state": run.tokenizer.state()}


def _manifest(run: PreparedRun) -> dict[str, Any]:
    size, seeds = run.spec.size, run.setup.seeds
    return {
        "run": run.spec.id,
        "versions": provenance.versions(),
        "code": provenance.code(run.config),
        "data": run.task.content,
        "seeds": {"init": seeds.init, "data": seeds.data, "dropout": seeds.dropout},
        "size": asdict(size) | {"non_embedding": size.non_embedding, "vocab_size": run.tokenizer.vocab_size},
        "tuning": run.tuning.to_json(),
        "machine": asdict(run.machine),
    } | ({"origin": asdict(run.origin)} if run.origin else {})
