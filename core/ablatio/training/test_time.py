"""Test-time training: a model is trained on held-out text, each batch after it has been scored."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ablatio.data.batches import ValidationBatches
from ablatio.errors import UserError
from ablatio.model.language_model import LanguageModel
from ablatio.model.parameter_roles import named_generator
from ablatio.registry.kinds import Objective


class TrainedOnTheWay:
    """Held-out batches; asked for the next one, it first takes a step on the one that was scored (arXiv:1709.07432).

    w <- w - rate * gradient of the mean loss of the batch, for the weights that are trained: no token is scored by a
    model that has seen it.  As a context manager it puts the weights back.

    Raises UserError if no weight of the model is trained.
    """

    def __init__(self, batches: ValidationBatches, model: LanguageModel, objective: Objective, rate: float) -> None:
        self.batches, self.model, self.objective, self.rate = batches, model, objective, rate
        self.trained = [p for p in model.parameters() if p.requires_grad]
        if not self.trained:
            raise UserError("all weights of this model are frozen, so none is trained on the text that is scored\n"
                            "    try: --adapter lora, which adds weights")  # fmt: skip
        self.before = [p.detach().clone() for p in self.trained]
        self.scored: tuple[int, dict[str, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if self.scored is not None:
            self._learn(*self.scored)
        batch: dict[str, Tensor] = self.batches[index]
        self.scored = index, batch
        return batch

    def _learn(self, index: int, batch: Mapping[str, Tensor]) -> None:
        """Take a step on a batch; its random draws are those with which it was scored."""
        generator, device = named_generator(0, f"validation/{index}"), self.trained[0].device
        with torch.enable_grad():
            example: Any = self.objective(batch["tokens"], batch.get("segments"), generator).to(device)
            total, count, _ = self.model.loss(example)
            gradients = torch.autograd.grad(total / count, self.trained, allow_unused=True)
        with torch.no_grad():
            for p, gradient in zip(self.trained, gradients, strict=True):
                if gradient is not None:
                    p.sub_(gradient, alpha=self.rate)

    def __enter__(self) -> "TrainedOnTheWay":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with torch.no_grad():
            for p, value in zip(self.trained, self.before, strict=True):
                p.copy_(value)
