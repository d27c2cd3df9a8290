"""Pre-training on rows of a stream of documents."""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ablatio.errors import UserError
from ablatio.model.example import Example, Loss
from ablatio.model.language_model import LanguageModel, loss_of
from ablatio.model.task import Task
from ablatio.registry import kinds
from ablatio.registry.kinds import tasks
from ablatio.training.data_streams import Batches, DataStreams, HeldOut
from ablatio.training.evaluate import tally
from ablatio.training.task_context import TaskContext


@tasks.register("pretrain", paper="arXiv:1801.10198")
class Pretrain(Task):
    """sum_t -log p(target_t | inputs) over rows of the source's documents, in nats.

    A row has `data.length` tokens of the stream of documents; `objective` makes inputs and targets of them.
    """

    accepts, scores, main, better = "documents", ("loss", "bpb", "accuracy"), "loss", "lower"
    length_changes, mixes, splits_tokens, splits_layers = True, True, True, True

    def __init__(self, setup: TaskContext) -> None:
        self.setup = setup
        self.data = DataStreams(setup, setup.source())
        self.tokenizer = self.data.tokenizer
        self.objective = setup.part("objective", **self._wiring())
        self.content: dict[str, Any] = self.data.content
        if self.data.mixed:
            self.more_scores = [f"{score}/{name}" for score in ("loss", "bpb") for name in self.data.names]

    def _wiring(self) -> dict[str, int]:
        return {"vocab_size": self.tokenizer.vocab_size, "eos": self.tokenizer.eos, "max_len": self.setup.length}

    @property
    def training(self) -> Batches:
        return self.data.training

    def validation(self, length: int | None = None, tokens: int | None = None) -> HeldOut:
        """The fixed held-out rows of `length` tokens, in batches of about 4096 tokens."""
        return self.data.validation(length, tokens)

    def drawn(self, steps: int) -> dict[str, dict[str, float]]:
        return self.data.drawn(steps)

    def attach(self, model: LanguageModel) -> None:
        """Give a model that retrieves from the training text (`read_corpus`) this text."""
        if hasattr(model, "read_corpus"):
            (corpus,) = self.data.corpora.values()  # a rule refuses a mixture
            model.read_corpus(corpus.train)

    def tokens(self, steps: int) -> int:
        return self.setup.plan.tokens(steps, self.setup.length)

    def example(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Example:
        made: Example = self.objective(batch["tokens"], batch.get("segments"), generator)
        return made

    def loss(self, model: LanguageModel, example: Example) -> Loss:
        return loss_of(self.objective, model, example)

    def redrawn(self, model: LanguageModel, example: Example, generator: torch.Generator) -> Example:
        return model.redrawn(example, generator)

    def score(
        self, model: LanguageModel, batches: HeldOut, device: torch.device, between: Callable[[int], None]
    ) -> dict[str, float]:
        """Scores over all held-out rows and, of a mixture, loss and bits per byte of each source."""
        sizes, parts = self.tokenizer.token_bytes(), getattr(batches, "parts", {"": batches})
        found = {
            name: tally(model, self.objective, (part[i] for i in range(len(part))), sizes, device, between)
            for name, part in parts.items()
        }
        # Sums over all rows, not a mean of the sources' scores: the numbers are those of one text.
        whole = functools.reduce(operator.add, found.values()).score().numbers()
        if len(found) > 1:
            for name, one in found.items():
                score = one.score()
                whole |= {f"loss/{name}": score.loss, f"bpb/{name}": score.bpb}
        return whole

    def ask(self, name: str, model: LanguageModel) -> None:
        """Score another objective, with its default knobs, from now on; UserError if this model does not support it."""
        produced = kinds.objectives[name].facts["produces"]
        architecture = self.setup.config["architecture"]["name"]
        accepted = kinds.architectures[architecture].facts["accepts"]
        if produced not in accepted:
            usual = kinds.architectures[architecture].facts["objective"]
            raise UserError(
                f"objective={name} produces {produced}, but architecture={architecture} accepts "
                f"{' or '.join(accepted)}\n    try: --objective {usual}"
            )
        objective: Any = kinds.objectives.build(name, {}, **self._wiring())
        ids = self.tokenizer.vocab_size
        # Sentinels need rows of the embedding that the model was not built with.
        needed = ids + int(getattr(objective, "extra_tokens", 0))
        if needed > model.vocab_size:
            plain = "prefix_lm" if produced == "source and target" else "lm"
            raise UserError(
                f"objective={name} needs {needed - ids} token ids beyond the tokenizer's {ids}, but this model has "
                f"{model.vocab_size - ids}\n    try: --objective {plain}"
            )
        self.objective = objective
