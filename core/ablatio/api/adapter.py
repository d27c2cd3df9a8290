"""The only module through which the API composes, trains, restores and sweeps runs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatio.config.compose import Composed, compose_run
from ablatio.errors import ConfigError, DamagedFile, EnvironmentFault, UserError
from ablatio.storage.checkpoints import Checkpoints

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lightning.pytorch import Callback
    from rich.console import Console
    from torch import nn

    from ablatio.model.ranks import Ranks
    from ablatio.training.evaluation.evaluation import Evaluation
    from ablatio.training.prepare import PreparedRun

MEASURES = ("eval", "metric", "decode", "prompt")  # kinds that choose what is measured, and how a model is asked
SWEEPING = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper")


def composed(overrides: Sequence[str]) -> Composed:
    """Checked config of one run; raises ConfigError with all problems at once, UserError for a sweep's launcher."""
    if sweeping := [text for text in overrides if text.lstrip("+~").startswith(SWEEPING)]:
        raise UserError(
            f"{sweeping[0]}: only a sweep has a launcher, and this is one run\n    try: ablatio train -m ..."
        )
    found = compose_run(overrides)  # before torch is imported: a config that cannot run is refused at once
    from ablatio.training.budget import with_steps

    return with_steps(found)


def train_in(
    folder: Path,
    config: Mapping[str, Any],
    public: Mapping[str, Any],
    console: "Console",
    *,
    resume: bool = False,
    callbacks: "Sequence[Callback]" = (),
) -> dict[str, Any]:
    """Train in `folder`, or continue the run there, and return its summary.

    public: the config as it may be written to files
    """
    from ablatio.training.run import train
    from ablatio.training.run_spec import RunSpec

    check_callbacks(callbacks)
    try:
        return train(RunSpec(config, public), folder, console, resume=resume, callbacks=list(callbacks))
    # What the operating system refuses (a full disk, a lost mount) is no fault of the program.
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename or folder}: {error.strerror or error}\n    try: ablatio doctor"
        ) from error


def joined_ranks(config: Mapping[str, Any]) -> "AbstractContextManager[Ranks]":
    """Context in which this process is one of the ranks of a run of `config`."""
    from ablatio.training.run import among_ranks

    return among_ranks(config)


def check_callbacks(callbacks: "Sequence[Callback]") -> None:
    """Raise UserError for objects that are not callbacks, and for callbacks whose work a run already does."""
    if not callbacks:
        return
    from lightning.pytorch import Callback
    from lightning.pytorch.callbacks import Checkpoint, ProgressBar

    own = {Checkpoint: "writes its own checkpoints: train.checkpoint_every=100 train.keep=3",
           ProgressBar: "shows its own progress: trainer.progress=false hides it"}  # fmt: skip
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, type) or not isinstance(callback, Callback):
            got = f"the class {callback.__name__}" if isinstance(callback, type) else f"a {name}"
            raise UserError(f"callbacks contains {got}; expected objects of lightning.pytorch.Callback\n"
                            "    try: ablatio.train(callbacks=[MyCallback()])")  # fmt: skip
        for kind, why in own.items():
            if isinstance(callback, kind):
                setting = why.partition(": ")
                raise UserError(f"callbacks contains a {name}, but a run {setting[0]}\n    try: {setting[2]}")


def restored(folder: Path, step: int | None = None, *, scored: bool = False) -> "tuple[PreparedRun, int]":
    """The run in `folder` with the weights of a checkpoint, and the checkpoint's step."""
    from ablatio.training.load import load_run

    return load_run(folder, step, scored=scored)


@dataclass(frozen=True, slots=True)
class Measures:
    """The evaluations that overrides choose for finished runs, and how the models are asked.

    chosen  config nodes of MEASURES
    code    True if metrics may run programs that the model wrote
    """

    chosen: Mapping[str, Any]
    code: bool = False

    @classmethod
    def of(cls, overrides: Sequence[str], *, code: bool = False) -> "Measures":
        """Compose and check; raises ConfigError for settings that cannot be used, UserError for any other setting."""
        from ablatio.registry.kinds import tasks

        other = [text for text in overrides if text.lstrip("+~").partition("=")[0].split(".")[0] not in MEASURES]
        if other:
            raise UserError(
                f"{other[0]}: only evaluations and metrics can be chosen for a finished run\n    try: eval=[addition]"
            )
        # The settings are checked in the config of a task that reads all of them; which task it is does not matter.
        reading = next(entry.name for entry in tasks if {*entry.facts["reads"]} >= {"decode", "prompt"})
        try:
            config = composed([f"task={reading}", *overrides]).config
        except ConfigError as error:
            # Without the repaired command, which would train.
            raise ConfigError(error.problems) from None
        chosen = {key: config.get(key) for key in MEASURES}
        if not chosen["eval"]:
            raise UserError("no evaluation is chosen\n    try: eval=[addition]; `ablatio list eval` shows all")
        return cls(chosen, code)

    def over(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config of a run with these measures instead of its own."""
        # The run's own `score` may be of an evaluation that is not chosen here, which would be refused.
        return {**config, **self.chosen, "score": None}

    def evaluation(self, config: Mapping[str, Any]) -> "Evaluation":
        """The evaluation of a run with this config; its items are read or made."""
        from ablatio.training.evaluation.evaluation import evaluation_of
        from ablatio.training.evaluation.prompting import refuse_unused

        found = evaluation_of(self.over(config), code=self.code)
        assert found is not None  # `of` has refused to measure nothing
        refuse_unused(self.chosen, found.measures)
        return found

    def mark(self, folder: Path, step: int, evaluation: "Evaluation") -> str:
        """Digest of what the values depend on: settings, sources of the parts, items, weights of the checkpoint."""
        from ablatio.training.provenance import parts
        from ablatio.training.run_folder import CHECKPOINTS

        # The digest of the checkpoint's manifest stands for the weights, which would take long to read.
        weights = Checkpoints(folder / CHECKPOINTS).seal(step)
        told = (self.chosen, parts(self.chosen), evaluation.digest, step, weights)
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def kept(self, folder: Path) -> dict[str, dict[str, Any]] | None:
        """Values of the newest checkpoint that an earlier call has written to the run folder; None if it has to run."""
        from ablatio.training.evaluation.values_file import VALUES, kept_values
        from ablatio.training.run_folder import CHECKPOINTS, read_run

        step = Checkpoints(folder / CHECKPOINTS).latest()
        if step is None or not (folder / VALUES).exists():
            return None
        try:
            return kept_values(folder, self.mark(folder, step, self.evaluation(read_run(folder))))
        except DamagedFile:  # the newest checkpoint or the file of values: measuring says what is wrong
            return None


def measured(run: "PreparedRun", step: int, folder: Path, measures: Measures, *, save: bool) -> dict[str, Any]:
    """Values of evaluations, as in summary.json; `save`: items and values are also written to the run folder."""
    from ablatio.training.evaluation.items_file import write_items
    from ablatio.training.evaluation.values_file import write_values

    evaluation = measures.evaluation(run.config)
    found = run.evaluate(evaluation, asking=measures.over(run.config))
    values = {name: one.to_json() for name, one in found.values.items()}
    if save:
        write_items(folder, [{"step": step, **row} for row in found.rows])
        write_values(folder, values, step, measures.mark(folder, step, evaluation))
    return values


def needs_reference(config: Mapping[str, Any]) -> bool:
    """True if scores compare the model with its initial weights."""
    from ablatio.training.prepare import needs_start

    return needs_start(config)


def built(config: Mapping[str, Any]) -> "nn.Module":
    """The model of a config with its initial weights, as `train` starts with it; no text is read."""
    from ablatio.model.peft.apply import tune
    from ablatio.training.estimate import check_memory
    from ablatio.training.initial_weights import continue_tokens, start_model
    from ablatio.training.run_spec import RunSpec, untrained_tokenizer
    from ablatio.training.task_context import Seeds

    check_memory(RunSpec(config))
    seed = Seeds(config).init
    model, origin = start_model(config, untrained_tokenizer(config), seed)
    tune(model, config, seed)
    continue_tokens(model, config, origin)
    return model


def sweep(overrides: Sequence[str], *, quiet: bool) -> Path:
    """Plan a study, execute its unfinished runs, and return its folder."""
    from ablatio.api.multirun import multirun

    return multirun(overrides, quiet=quiet)


def resume_sweep(folder: Path, overrides: Sequence[str], *, quiet: bool) -> Path:
    """Continue the study in `folder`."""
    from ablatio.api.multirun import resume

    return resume(folder, overrides, quiet=quiet)
