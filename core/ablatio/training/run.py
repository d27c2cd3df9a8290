"""Train one run from a checked config: write its folder with checkpoints, metrics, summary and provenance."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console

from ablatio.errors import AblatioError, EnvironmentFault, UserError
from ablatio.model.builder import PartChoice
from ablatio.model.ranks import Ranks, ranks, using
from ablatio.registry import kinds, parts_file
from ablatio.registry.consumers import without_effect
from ablatio.registry.kinds.devices import sharing
from ablatio.storage.atomic_write import write_text
from ablatio.storage.checkpoints import Checkpoint, Checkpoints, write_json
from ablatio.storage.collector import collect_in_training
from ablatio.storage.early_stop import training
from ablatio.storage.json_files import read_object
from ablatio.storage.paths import shell_word
from ablatio.storage.secrets import redact
from ablatio.training import provenance
from ablatio.training.budget import settled
from ablatio.training.device import Machine
from ablatio.training.estimate import check_memory
from ablatio.training.evaluation.evaluation import evaluation_of
from ablatio.training.evaluation.prompting import refuse_unused
from ablatio.training.extension import extension_of
from ablatio.training.loggers import make_loggers
from ablatio.training.loop import TrainingLoop
from ablatio.training.machine_history import MachineHistory
from ablatio.training.prepare import PreparedRun, needs_start, prepare_run
from ablatio.training.rank_environment import from_environment, several_devices
from ablatio.training.reference import digest_of, refuse_a_lost_one, refuse_another
from ablatio.training.run_folder import CHECKPOINTS, DATA, TOKENIZER, id_in, owned
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

    resume     continue from the newest valid checkpoint in `folder`, if there is one
    until      pause at this step of the run's schedule, with a score and a checkpoint; resume=True continues from there
    callbacks  Lightning callbacks of the caller; the manifest records their classes

    Raises UserError if another process trains in `folder`, EnvironmentFault if memory does not suffice, Diverged, or
    Preempted after a stop signal.  For an error during training, summary.json gets its status and message.
    """
    quiet_libraries()
    collect_in_training()
    training(ended=False)
    spec = settled(spec)
    if from_environment() is None and several_devices(spec.config["trainer"]):
        return _train_on_ranks(spec, folder, console, resume=resume, until=until, callbacks=callbacks)
    with ExitStack() as stack:
        if stack.enter_context(among_ranks(spec.config)).first:
            stack.enter_context(owned(folder, resume=resume))
        summary = _train(spec, folder, console, resume=resume, until=until, callbacks=callbacks)
        ranks().wait()  # the summary is written when a rank returns
        training(ended=True)
        return summary


@contextmanager
def among_ranks(config: Mapping[str, Any]) -> Iterator[Ranks]:
    """Context in which `ranks()` are those of the run of this config, as the environment of this process says.

    torch.distributed is used for several of them only.  Raises UserError if the environment and the config differ in
    their number, EnvironmentFault if a rank does not come.
    """
    place = from_environment()
    if place is None or ranks().world > 1:  # alone, or joined before
        yield ranks()
        return
    from ablatio.training.process_group import joined, refuse_mismatch

    trainer = config["trainer"]
    refuse_mismatch(place, trainer)
    device = torch.device(Machine.choose(trainer).device)
    if device.type == "cuda":
        torch.cuda.set_device(place.local)
    strategy = config["strategy"]
    facts = kinds.strategies[strategy["name"]].facts
    same_rows = sharing(facts, strategy, place.world)
    with joined(place, device, trainer["timeout"], facts["splits"], same_rows) as own, using(own):
        yield own


def _train_on_ranks(
    spec: RunSpec, folder: Path, console: Console, *, resume: bool, until: int | None, callbacks: Sequence[pl.Callback]
) -> dict[str, Any]:
    """Train on the devices of this machine, a process for each; arguments as for `train`."""
    from ablatio.training.gang import train_on_ranks

    if callbacks:
        raise UserError(
            "callbacks= came with trainer.devices > 1: the ranks of a run are processes of their own, and the objects "
            "of this one do not reach them\n    try: trainer.devices=1 strategy=single"
        )
    machine = {"trainer": dict(spec.config["trainer"]), "strategy": dict(spec.config["strategy"])}
    request = {"config": {**spec.written, **machine}, "folder": str(folder), "resume": resume, "until": until}
    train_on_ranks(spec.config, request | {"quiet": console.quiet})
    training(ended=True)
    return read_object(folder / "summary.json")


def _train(
    spec: RunSpec,
    folder: Path,
    console: Console,
    *,
    resume: bool,
    until: int | None,
    callbacks: Sequence[pl.Callback],
) -> dict[str, Any]:
    """Train in a folder that this process owns; arguments as for `train`."""
    config = spec.config
    checkpoints = Checkpoints(folder / CHECKPOINTS, config["train"]["keep"], run=id_in(folder, spec.given))
    newest = ranks().told(checkpoints.latest) if resume else None
    resumes = newest is not None
    if resumes:
        refuse_a_lost_one(config, folder)
    # On resume the tokenizer is read from the run folder, because the files it was trained on may be gone.
    run_spec = spec.with_own_tokenizer(folder) if resumes else spec
    check_memory(run_spec)
    loggers = make_loggers(config, spec.written, folder) if ranks().first else {}
    extension = None if resumes else extension_of(config)
    found = _load(checkpoints) if resumes else extension.checkpoint if extension else None
    for reason in found.skipped if found else ():
        console.print(f"[yellow]checkpoint skipped:[/] {reason}", highlight=False)
    run = prepare_run(run_spec, fresh=not found or needs_start(config))
    recorded = extension.manifest if extension else _recorded(folder / "manifest.json") if found else {}
    refuse_another(run, str(recorded.get("reference", "")), folder)
    teacher = attach_teacher(run, recorded.get("teacher"))
    evaluation = evaluation_of(config)
    if not kinds.tasks[config["task"]["name"]].facts["trains"]:
        refuse_unused(config, evaluation.measures if evaluation else ())
    if not resumes:
        for said in without_effect(config):
            console.print(f"warning: {said}", highlight=False, markup=False, soft_wrap=True)
        if run.origin:
            console.print(redact(str(run.origin)), highlight=False)
        origins = {"teacher": teacher, "reference": digest_of(run), "extends": extension and extension.to_json()}
        models = {key: mark for key, mark in origins.items() if mark}
        if ranks().first:
            digest = write_json(folder / "config.json", spec.written)
            file = _keep_parts_file(config, folder)
            write_json(folder / TOKENIZER, _tokenizer(run))
            if run.setup.pipeline:
                write_json(folder / DATA, run.setup.pipeline)
            more = {"config": digest} | file | models | _class_names(callbacks)
            write_json(folder / "manifest.json", _manifest(run) | more)
            if extension:
                extension.copy_records(folder)
                console.print(redact(extension.sentence(config)), highlight=False)
    run.begin()
    loop = TrainingLoop(run, folder, console, checkpoints, found, loggers, until, callbacks, evaluation)
    loop.extends = extension is not None
    loop.machines = MachineHistory.of(found.state if found else {}, recorded.get("machine", {}))
    if said := loop.machines.proceed(run.machine, loop.start):
        console.print(f"[yellow]precision:[/] {said}", highlight=False)
    try:
        return loop.train()
    except AblatioError as error:
        status = {4: "diverged", 75: "preempted"}.get(error.exit_code, "failed")
        if ranks().first:
            write_json(folder / "summary.json", loop.summary(status) | {"error": str(error)})
        loop.file.finish(status)
        raise


def _load(checkpoints: Checkpoints) -> Checkpoint:
    """Load the newest valid checkpoint: all ranks that which rank 0 finds."""
    own = checkpoints.load() if ranks().first else None
    step = ranks().told(lambda: own.step if own else 0)
    return own or checkpoints.load(step)


def _keep_parts_file(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Copy the file of parts that the run uses into its folder; returns its entry of the manifest."""
    record, file = provenance.parts_file(config), parts_file.current()
    if not record or file is None:
        return {}
    write_text(folder / parts_file.COPY, file.text)
    return {parts_file.RECORD: record}


def quiet_libraries() -> None:
    """Silence messages and warnings of Lightning that do not apply to these runs."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        # Only if needed: setting a level clears the caches of all loggers.
        if (logger := logging.getLogger(name)).level != logging.ERROR:
            logger.setLevel(logging.ERROR)
    # Advice on workers and loggers, and that the loader cannot be resumed (it can, from a batch number).
    warnings.filterwarnings("ignore", module=r"lightning\..*")


def _recorded(path: Path) -> dict[str, Any]:
    """Read the manifest of the run that is resumed."""
    try:
        return read_object(path)
    except FileNotFoundError:
        raise EnvironmentFault(
            f"{path} is missing, which a run writes at its beginning\n"
            f"    try: ablatio train model=run model.path={shell_word(path.parent)}, a new run from its weights"
        ) from None


def _class_names(callbacks: Sequence[Any]) -> dict[str, Any]:
    """Manifest entry with the classes of the caller's callbacks; empty without callbacks."""
    names = [f"{type(callback).__module__}.{type(callback).__qualname__}" for callback in callbacks]
    return {"callbacks": names} if names else {}


def _tokenizer(run: PreparedRun) -> dict[str, Any]:
    """Content of tokenizer.json: name, knobs and trained state, from which other runs load the same tokenizer."""
    choice = PartChoice.of(run.config["tokenizer"])
    origin = getattr(run.tokenizer, "made_as", {"name": choice.name, "knobs": dict(choice.knobs)})
    return {**origin, "state": run.tokenizer.state()}


def _manifest(run: PreparedRun) -> dict[str, Any]:
    """Content of manifest.json: id, versions, hashes of code and data, seeds, sizes, machine settings."""
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
