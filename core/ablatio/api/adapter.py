"""The one place in which the API touches how runs are composed, trained, restored and swept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatio.config.compose import Composed, compose_run
from ablatio.errors import EnvironmentFault, UserError

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from rich.console import Console
    from torch import nn

    from ablatio.training.prepare import PreparedRun


def composed(overrides: Sequence[str]) -> Composed:
    """The checked config of one run; ConfigError with all problems at once."""
    return compose_run(overrides)


def train_in(
    folder: Path,
    config: Mapping[str, Any],
    public: Mapping[str, Any],
    console: "Console",
    *,
    resume: bool = False,
    callbacks: "Sequence[Callback]" = (),
) -> dict[str, Any]:
    """Train in `folder`, or go on with the run there, and return its summary.  public: what may be written down."""
    from ablatio.training.run import train
    from ablatio.training.run_spec import RunSpec

    check_callbacks(callbacks)
    try:
        return train(RunSpec(config, public), folder, console, resume=resume, callbacks=list(callbacks))
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename or folder}: {error.strerror or error}\n    try: ablatio doctor"
        ) from error


def check_callbacks(callbacks: "Sequence[Callback]") -> None:
    """UserError for what is no callback, and for those that do what a run does by itself."""
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
            raise UserError(f"callbacks holds {got}; expected objects of lightning.pytorch.Callback\n"
                            "    try: ablatio.train(callbacks=[MyCallback()])")  # fmt: skip
        for kind, why in own.items():
            if isinstance(callback, kind):
                setting = why.partition(": ")
                raise UserError(f"callbacks holds a {name}, and a run {setting[0]}\n    try: {setting[2]}")


def restored(folder: Path, step: int | None = None, *, scored: bool = False) -> "tuple[PreparedRun, int]":
    """The run in `folder` with the weights of a checkpoint, and the checkpoint's step."""
    from ablatio.training.load import load_run

    return load_run(folder, step, scored=scored)


def needs_reference(config: Mapping[str, Any]) -> bool:
    """True if scores compare the model with the one that it started as."""
    from ablatio.training.prepare import needs_start

    return needs_start(config)


def built(config: Mapping[str, Any]) -> "nn.Module":
    """The model of a config as `train` begins with it; no text is read for it."""
    from ablatio.model.peft.apply import tune
    from ablatio.training.estimate import check_memory
    from ablatio.training.initial_weights import start_model
    from ablatio.training.run_spec import RunSpec, untrained_tokenizer
    from ablatio.training.task_context import Seeds

    check_memory(RunSpec(config))
    seed = Seeds(config).init
    model, _ = start_model(config, untrained_tokenizer(config), seed)
    tune(model, config, seed)
    return model


def sweep(overrides: Sequence[str], *, quiet: bool) -> Path:
    """Plan a study, run what is not done of it, and return its folder."""
    from ablatio.api.multirun import multirun

    return multirun(overrides, quiet=quiet)


def resume_sweep(folder: Path, overrides: Sequence[str], *, quiet: bool) -> Path:
    """Go on with the study in `folder`."""
    from ablatio.api.multirun import resume

    return resume(folder, overrides, quiet=quiet)
