from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ablatio.data.batches import TrainBatches, ValidationBatches
from ablatio.data.order import WindowOrder
from ablatio.model.example import Example, Loss
from ablatio.model.language_model import LanguageModel
from ablatio.model.task import Task
from ablatio.registry.kinds import tasks
from ablatio.training.task_context import TaskContext


@tasks.register("next_token", paper="arXiv:1801.10198")
class NextToken(Task):
    """sum_t -log p(x_t | x_<t) over windows of the source's documents, in nats."""

    accepts, scores, main, better = "documents", ("loss",), "loss", "lower"

    def __init__(self, setup: TaskContext) -> None:
        self.setup = setup
        self.corpus, self.tokenizer = setup.corpus(setup.source())
        self.content = {"fingerprint": self.corpus.fingerprint}

    @property
    def training(self) -> TrainBatches:
        order = WindowOrder(len(self.corpus.train), self.setup.length, self.setup.seeds.data)
        return TrainBatches(self.corpus.train, order, self.setup.plan, eos=self.tokenizer.eos, document_mask=False)

    def validation(self, length: int | None = None, tokens: int | None = None) -> ValidationBatches:
        rows = length or self.setup.length
        return ValidationBatches(self.corpus.validation, rows, 8, eos=self.tokenizer.eos, document_mask=False)

    def tokens(self, steps: int) -> int:
        return self.setup.plan.step(steps)[0] * self.setup.length

    def example(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Example:
        return Example(batch["tokens"][:, :-1], batch["tokens"][:, 1:])  # (B, T) each

    def loss(self, model: LanguageModel, example: Example) -> Loss:
        return model.loss(example)

    @torch.no_grad()
    def score(
        self, model: LanguageModel, batches: ValidationBatches, device: torch.device, between: Callable[[int], None]
    ) -> dict[str, float]:
        mode, total, count = model.training, 0.0, 0.0
        model.eval()
        for number, batch in enumerate(batches):
            found = model.loss(self.example(batch, torch.Generator()).to(device))
            total, count = total + float(found[0]), count + float(found[1])
            between(number)
        model.train(mode)
        return {"loss": total / count}
