"""Rebuild the model of a saved run from its config, with the weights of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ablatio.data.chat import with_special_tokens
from ablatio.data.order import RowPlan
from ablatio.data.types import Tokenizer
from ablatio.model.build import build_model
from ablatio.model.language_model import LanguageModel
from ablatio.model.peft.apply import AppliedPeft, tune
from ablatio.registry import kinds
from ablatio.storage.checkpoints import Checkpoint, Checkpoints
from ablatio.training.run_folder import CHECKPOINTS, id_in, read_run
from ablatio.training.run_spec import RunSpec
from ablatio.training.task_context import TaskContext


@dataclass(frozen=True, slots=True)
class SavedRun:
    """Content of a run folder.

    spec        config of the run, with the tokenizer stored in the folder and, of scheduled settings, the values that
                the checkpoint's last step was trained with
    id          id of the run in its checkpoints, computed from the config as it was trained
    checkpoint  weights and training state
    """

    spec: RunSpec
    id: str
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class RestoredModel:
    """A trained model without its task.

    model      on the CPU, in evaluation mode, with quantization and adapters applied as in training
    tuning     effect of quantization and peft on the model
    tokenizer  with the special tokens of the template if the run's task writes them
    heads      weights of modules that the task had attached (reward_head.weight), which `model` does not have
    id, step   the run, and the optimizer step that its weights come from
    """

    model: LanguageModel
    tuning: AppliedPeft
    tokenizer: Tokenizer
    heads: Mapping[str, Tensor]
    config: Mapping[str, Any]
    id: str
    step: int


def read_checkpoint(folder: Path, step: int | None = None) -> SavedRun:
    """Read a run folder: its checked config and its newest valid checkpoint, or that of `step`.

    Raises UserError if the folder is no run folder, EnvironmentFault if a file is damaged.
    """
    spec = RunSpec(read_run(folder))
    own = id_in(folder, spec.given)
    found = Checkpoints(folder / CHECKPOINTS, run=own).load(step)
    return SavedRun(spec.at(found.step - 1).with_own_tokenizer(folder), own, found)


def restore_model(folder: Path, step: int | None = None) -> RestoredModel:
    """Rebuild the model of the run in `folder` with the weights of its newest valid checkpoint, or of `step`.

    The task is not built, so neither its data nor the model that the run began with has to exist.
    """
    saved = read_checkpoint(folder, step)
    config = saved.spec.config
    tokenizer = tokenizer_of(config)
    model = build_model(config, tokenizer.vocab_size, tokenizer.eos)
    tuning = tune(model, config, 0)
    own = model.state_dict().keys()
    weights = {name: tensor for name, tensor in saved.checkpoint.model.items() if name in own}
    heads = {name: tensor for name, tensor in saved.checkpoint.model.items() if name not in own}
    model.load_state_dict(weights)
    return RestoredModel(model.eval(), tuning, tokenizer, heads, config, saved.id, saved.checkpoint.step)


def tokenizer_of(config: Mapping[str, Any]) -> Tokenizer:
    """Return a run's trained tokenizer, with the template's special tokens if its task writes them."""
    setup = context_of(config)
    tokenizer = setup.tokenizer(setup.source())
    task: Any = kinds.tasks.target(config["task"]["name"])
    return with_special_tokens(tokenizer, setup.template) if task.uses_template(config) else tokenizer


def context_of(config: Mapping[str, Any]) -> TaskContext:
    """Return the context of a run's parts outside of its training."""
    return TaskContext(config, RowPlan(config["train"]["batch_size"], config["train"]["accumulate"]))
