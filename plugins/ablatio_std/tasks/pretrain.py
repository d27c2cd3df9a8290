"""Pre-training on rows of a stream of documents."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ablatio.data.batches import TrainBatches, ValidationBatches
from ablatio.data.order import DocumentOrder, WindowOrder
from ablatio.errors import UserError
from ablatio.model.example import Example, Loss
from ablatio.model.language_model import LanguageModel, loss_of
from ablatio.model.task import Task
from ablatio.registry import kinds
from ablatio.registry.kinds import tasks
from ablatio.training.evaluate import evaluate
from ablatio.training.task_context import TaskContext


@tasks.register("pretrain", paper="arXiv:1801.10198")
class Pretrain(Task):
    """sum_t -log p(target_t | inputs) over rows of the source's documents, in nats.

    A row has `data.length` tokens of the stream of documents; `objective` makes inputs and targets of them.
    """

    accepts, scores, main, better = "documents", ("loss", "bpb", "accuracy"), "loss", "lower"
    length_changes = True

    def __init__(self, setup: TaskContext) -> None:
        self.setup = setup
        self.corpus, self.tokenizer = setup.corpus(setup.source())
        self.objective = setup.part("objective", **self._wiring())
        self.content: dict[str, Any] = {"fingerprint": self.corpus.fingerprint, "key": self.corpus.key}
        self.content |= self.corpus.counts

    def _wiring(self) -> dict[str, int]:
        return {"vocab_size": self.tokenizer.vocab_size, "eos": self.tokenizer.eos, "max_len": self.setup.length}

    @property
    def by_document(self) -> bool:
        """True if each row begins with a document, False if rows are consecutive windows of the stream."""
        return bool(self.setup.config["data"]["rows"] == "documents")

    @property
    def training(self) -> TrainBatches:
        where = len(self.corpus.train), self.setup.length, self.setup.seeds.data
        order = DocumentOrder(self.corpus.train_starts, *where) if self.by_document else WindowOrder(*where)
        mask = self.setup.config["data"]["document_mask"]
        return TrainBatches(self.corpus.train, order, self.setup.plan, eos=self.corpus.eos, document_mask=mask)

    def validation(self, length: int | None = None, tokens: int | None = None) -> ValidationBatches:
        """The fixed held-out rows of `length` tokens, in batches of about 4096 tokens."""
        length, data = length or self.setup.length, self.setup.config["data"]
        cap = tokens if tokens is not None else data["val_tokens"]
        return ValidationBatches(
            self.corpus.validation,
            length,
            max(1, 4096 // length),
            eos=self.corpus.eos,
            document_mask=data["document_mask"],
            val_tokens=cap or 0,
            documents=self.corpus.validation_starts if self.by_document else None,
        )

    def attach(self, model: LanguageModel) -> None:
        """Give a model that retrieves from the training text (`read_corpus`) this text."""
        if hasattr(model, "read_corpus"):
            model.read_corpus(self.corpus.train)

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
        self, model: LanguageModel, batches: ValidationBatches, device: torch.device, between: Callable[[int], None]
    ) -> dict[str, float]:
        sizes = self.tokenizer.token_bytes()
        return evaluate(model, self.objective, iter(batches), sizes, device, between).numbers()

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
        needed = ids + int(getattr(objective, "extra_tokens", 0))
        if needed > model.vocab_size:
            plain = "prefix_lm" if produced == "source and target" else "lm"
            raise UserError(
                f"objective={name} needs {needed - ids} token ids beyond the tokenizer's {ids}, but this model has "
                f"{model.vocab_size - ids}\n    try: --objective {plain}"
            )
        self.objective = objective
