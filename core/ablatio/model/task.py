"""Base class of tasks: the methods that a task must define, and the hooks that it may override."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ablatio.data.types import Tokenizer
from ablatio.model.cost.flops import Work
from ablatio.model.example import Loss
from ablatio.model.language_model import LanguageModel
from ablatio.model.optimizer_step import OptimizerStep
from ablatio.model.ranks import Ranks
from ablatio.registry.kinds import Batches


class Task(ABC):
    """Data, loss and scores of a run, independent of Lightning and Hydra.

    A task is built from `setup` (ablatio.training.task_context.TaskContext) and its own knobs.  It sets `tokenizer`,
    `content` and `training`, defines the abstract methods, and overrides the hooks that it needs; by default a hook
    does nothing.

    tokenizer   trained, with all ids that the model must know
    content     description of the data for the manifest: plain values, among them a fingerprint
    training    endless batches by number: item k is {"number": k, ...} and depends on k alone
    objective   objective that computes the loss, if there is one; it may need a teacher
    row_length  tokens per row, for the FLOPs of a run; None: `data.length`
    more_scores  names of scores beyond the fact `scores`, known when the data are read: of each source of a mixture
    template    fact: True if texts are written in the form of `template`

    Order of calls in a run: attach, prepare, score, then for each optimizer step begin_step, example and loss of each
    batch, before_step; score and samples at validations; state_dict at checkpoints.
    """

    tokenizer: Tokenizer
    content: dict[str, Any]
    training: Batches
    objective: Any = None
    row_length: int | None = None
    more_scores: Sequence[str] = ()
    template: ClassVar[bool] = False

    @abstractmethod
    def validation(self, length: int | None = None, tokens: int | None = None) -> Any:
        """Return the fixed held-out batches, rows of `length` and at most `tokens` tokens; None: as in the config."""

    @abstractmethod
    def tokens(self, steps: int) -> int:
        """Number of tokens that this many optimizer steps train on."""

    @abstractmethod
    def example(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Any:
        """Turn a batch into the input of `loss`, on the CPU; must have `.to(device)`.

        Deterministic in the generator, which is seeded by the batch number.
        """

    @abstractmethod
    def loss(self, model: LanguageModel, example: Any) -> Loss:
        """Return the summed loss, the count to divide it by, and tensors to log under the names in `metrics`."""

    @abstractmethod
    def score(
        self, model: LanguageModel, batches: Any, device: torch.device, between: Callable[[int], None]
    ) -> dict[str, float]:
        """Return {name: value} with at least the names in `scores`; calls `between(n)` after batch n (from 1)."""

    def own_rows(self, example: Any, ranks: Ranks) -> Any:
        """Cut the example of a whole batch to the rows of one rank; by default `example.rows(...)`.

        The example is made for the whole batch, so that its random draws are those of one device.
        """
        return example.rows(ranks)

    def attach(self, model: LanguageModel) -> None:
        """Add modules that train with the model (reward head, value head); called once, after it is built."""
        return

    def prepare(self, model: LanguageModel) -> None:
        """Record what the task needs of the untrained model, such as a reference; called once, on the model's device.

        A task that overrides this gets the same untrained model again when its run is resumed (`needs_start`).
        """
        return

    def begin_step(self, model: LanguageModel, step: int) -> None:
        """Prepare optimizer step `step` (from 0) before its first batch, for example sample new rollouts."""
        return

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        """Inspect the gradients before the optimizer uses them; returns tensors to log and may raise SkipStep."""
        return {}

    def redrawn(self, model: LanguageModel, example: Any, generator: torch.Generator) -> Any:
        """Return the example with targets sampled from the model, for curvature estimates; None: not supported."""
        return None

    def samples(self, model: LanguageModel) -> list[dict[str, str]]:
        """Return answers of the model to sample prompts, as rows of texts for samples.jsonl."""
        return []

    def work(self, steps: int) -> Work:
        """Tokens that pass through models in these steps; by default `tokens(steps)`, forward and backward."""
        return Work.trained(self.tokens(steps))

    def epoch_rows(self) -> int | None:
        """Return the number of rows in one pass over the training data; None if the task has no epochs."""
        return getattr(self.training, "epoch_rows", None)

    def drawn(self, steps: int) -> dict[str, dict[str, float]]:
        """Return what these steps drew from each source of a mixture, for the summary; empty without one."""
        return {}

    def ask(self, objective: str, model: LanguageModel) -> None:
        """Score another objective from now on; NotImplementedError if the task supports one loss only."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return state beyond the weights that must survive a resume, for the checkpoint."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Restore what `state_dict` returned."""
        return

    @classmethod
    def needs_start(cls) -> bool:
        """True if a resumed run needs the untrained model again: the task overrides `prepare`."""
        return cls.prepare is not Task.prepare

    @classmethod
    def uses_template(cls, config: Mapping[str, Any]) -> bool:
        """True if a run of this config writes `template`'s special tokens, which then count in the vocabulary."""
        return cls.template
