"""Context parallelism: every device holds the whole model and has a part of the tokens of each row."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ablatio import strategies
from ablatio.errors import UserError
from ablatio.model.example import Loss
from ablatio.model.ranks import Ranks
from ablatio.model.strategy import Pass, Strategy
from ablatio.model.token_parallel import DividedTokens, TokenDevices
from ablatio_std.strategies._sums import add_gradients, summed


@strategies.register("context", paper="arXiv:2407.21783")
class ContextParallel(Strategy):
    """g = sum over ranks of the gradients of their tokens, with the keys and values of all tokens that they see.

    For rows so long that the activations of one do not fit on a device: a device has T / n tokens of each row.  Each
    attention gathers keys and values, (rows, T, key heads, d_head) each.  In a decoder later tokens see more keys, so
    the last rank has the most work.  The attentions say by their fact `splits_tokens` that they need nothing else of
    other tokens.
    """

    splits = "tokens"

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(ranks)

    def place(self, step: Pass) -> None:
        model: Any = step.model
        if model.model.rotates_cached_keys:
            raise UserError(
                "strategy=context divides the tokens of a row, and this position rotates keys by the length of the "
                "whole text\n    try: strategy=ddp"
            )
        ranks = self.ranks
        self.divided = DividedTokens(model.model, TokenDevices(ranks.world, ranks.rank, self._gathered, summed))
        self.step_module: nn.Module = step
        self.trained = [p for p in step.parameters() if p.requires_grad]

    def _gathered(self, x: Tensor) -> list[Tensor]:
        found = [torch.empty_like(x) for _ in range(self.ranks.world)]
        dist.all_gather(found, x)
        return found

    def loss(self, example: Any, last: bool) -> Loss:
        found: Loss = self.divided.run(example, self.step_module)
        return found

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        if last:  # a rank whose tokens do not reach a weight has no gradient of it
            add_gradients(self.trained, summed)
