"""The model of a run that stands in a folder: rebuilt from its config, with the weights of a checkpoint."""

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
from ablatio.training.run_folder import CHECKPOINTS, read_run
from ablatio.training.run_spec import RunSpec
from ablatio.training.task_context import TaskContext


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run folder that was read: spec, with the run's own tokenizer; id, under which it was trained; checkpoint."""

    spec: RunSpec
    id: str
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class RestoredModel:
    """A trained model without its task.

    model      on the CPU, in evaluation mode, with quantization and adapters applied as in training
    tuning     what quantization and peft made of it
    tokenizer  with the template's special tokens where the run wrote them
    heads      weights of modules that the task had attached (reward_head.weight), which are not in `model`
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
    """Read a run folder: its checked config, and its newest valid checkpoint or that of `step`."""
    spec = RunSpec(read_run(folder))
    found = Checkpoints(folder / CHECKPOINTS, run=spec.id).load(step)
    return SavedRun(spec.with_own_tokenizer(folder), spec.id, found)


def restore_model(folder: Path, step: int | None = None) -> RestoredModel:
    """Rebuild the model of the run in `folder` with the weights of its newest valid checkpoint, or of `step`.

    Its task is not made, so neither its data nor a model that it began with has to be there.
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
    """The trained tokenizer of a run, with the special tokens of its template where its task writes them."""
    setup = TaskContext(config, RowPlan(config["train"]["batch_size"], config["train"]["accumulate"]))
    tokenizer = setup.tokenizer(setup.source())
    task: Any = kinds.tasks.target(config["task"]["name"])
    return with_special_tokens(tokenizer, setup.template) if task.uses_template(config) else tokenizer
