"""Base class of tasks: what a task must define, and the hooks that it may override."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ablatio.data.types import Tokenizer
from ablatio.model.cost.flops import Work
from ablatio.model.example import Loss
from ablatio.model.language_model import LanguageModel
from ablatio.model.optimizer_step import OptimizerStep
from ablatio.registry.kinds import Batches


class Task(ABC):
    """What a run learns: its data, the loss of a batch, the scores of a model.  It knows neither Lightning nor Hydra.

    A task is made from `setup` (ablatio.training.task_context.TaskContext) and its own knobs.  It sets `tokenizer`,
    `content` and `training`, defines the abstract methods, and overrides the hooks that it needs; each hook does
    nothing by default.

    tokenizer   trained, with all ids that the model must know
    content     plain values about the data for the manifest, a fingerprint among them
    training    batches by number, without an end: item k is {"number": k, ...} and depends on k alone
    objective   the objective of the loss, where there is one: it may ask for a teacher
    row_length  tokens of a row for the FLOPs of a run; None: `data.length`
    template    fact: whether texts are written in the form of `template`

    Called in a run in this order: attach, prepare, score, then for each optimizer step begin_step, example and loss of
    each batch, before_step; score and samples now and then; state_dict with each checkpoint.
    """

    tokenizer: Tokenizer
    content: dict[str, Any]
    training: Batches
    objective: Any = None
    row_length: int | None = None
    template: ClassVar[bool] = False

    @abstractmethod
    def validation(self, length: int | None = None, tokens: int | None = None) -> Any:
        """The fixed held-out batches, in rows of `length` and at most `tokens` tokens; None: as the config says."""

    @abstractmethod
    def tokens(self, steps: int) -> int:
        """Tokens that this many optimizer steps train on."""

    @abstractmethod
    def example(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Any:
        """The input of `loss`, made of a batch on the CPU; has `.to(device)`, and is deterministic in the generator."""

    @abstractmethod
    def loss(self, model: LanguageModel, example: Any) -> Loss:
        """The summed loss, the number to divide it by, and tensors to log under the names in `metrics`."""

    @abstractmethod
    def score(
        self, model: LanguageModel, batches: Any, device: torch.device, between: Callable[[int], None]
    ) -> dict[str, float]:
        """{name: value}, for the names in `scores` at least; calls `between(n)` after batch number n (from 1)."""

    def attach(self, model: LanguageModel) -> None:
        """Add modules that train beside the model (a reward head, a value head); once, when the model is built."""
        return

    def prepare(self, model: LanguageModel) -> None:
        """Record what the task needs of the untrained model, as a reference; once, on the model's device.

        A task that overrides this gets the same untrained model again when its run is resumed (`needs_start`).
        """
        return

    def begin_step(self, model: LanguageModel, step: int) -> None:
        """Do what comes before the first batch of optimizer step `step` (from 0): sample new rollouts."""
        return

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        """Inspect the gradients before the optimizer uses them; returns tensors to log, may raise SkipStep."""
        return {}

    def redrawn(self, model: LanguageModel, example: Any, generator: torch.Generator) -> Any:
        """The example with targets drawn from the model, for curvature estimates; None: the task has none."""
        return None

    def samples(self, model: LanguageModel) -> list[dict[str, str]]:
        """Answers of the model now, as rows of texts for samples.jsonl."""
        return []

    def work(self, steps: int) -> Work:
        """Tokens that these steps pass through models; by default all of `tokens`, forward and backward."""
        return Work.trained(self.tokens(steps))

    def ask(self, objective: str, model: LanguageModel) -> None:
        """Score what another objective asks for from now on; NotImplementedError where the task has one loss only."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What lasts from step to step beside the weights, for the checkpoint."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Go on from what `state_dict` returned."""
        return

    @classmethod
    def needs_start(cls) -> bool:
        """True if a resumed run needs the untrained model once more: the task overrides `prepare`."""
        return cls.prepare is not Task.prepare

    @classmethod
    def uses_template(cls, config: Mapping[str, Any]) -> bool:
        """True if a run of this config writes `template`'s special tokens, which then count in the vocabulary."""
        return cls.template
