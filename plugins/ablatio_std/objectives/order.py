"""Token order prediction: which tokens come soon, by their distance."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ablatio import NonNegative, Range, Schedulable, objectives
from ablatio.model.cross_entropy import block_rows
from ablatio.model.example import Example, Loss
from ablatio.model.language_model import LanguageModel
from ablatio_std.objectives.autoregressive import NextToken


@objectives.register("token_order", paper="arXiv:2508.19228")
class TokenOrder(NextToken):
    """-log p(x_{t+1}) - weight sum_v q_t(v) log r_t(v), q_t = softmax_v(-d_t(v)), r_t = softmax of a second head (TOP).

    d_t(v) is the distance to the next occurrence of token v, infinite beyond `window` tokens or the document: ranking
    by listwise softmax.  The paper's window is the whole row; q falls by e per token.  The second head, V x d_model, is
    not used in scoring and decoding.
    """

    metrics = ("train/token_order",)
    further_heads = 1

    def __init__(
        self,
        *,
        weight: Annotated[float, NonNegative, Schedulable(), "weight of the loss of the order"] = 1.0,
        window: Annotated[int, Range(1, 64), "tokens ahead that are ranked"] = 16,
    ) -> None:
        self.weight, self.window = weight, window

    def loss(self, model: LanguageModel, example: Example) -> Loss:
        tokens, shares = self.upcoming(example)
        computed: list[Tensor] = []

        # Called by the model with its hidden states, so that it is run once for both losses.
        def beside(hidden: Tensor) -> Tensor:
            computed.append(order_loss(model.scaled(hidden), model.further_heads[0].weight, tokens, shares))  # type: ignore[arg-type]
            return self.weight * computed[0]

        total, count, measures = model.loss(example, beside=beside)
        return Loss(total, count, measures | {"train/token_order": computed[0].detach() / count})

    def upcoming(self, example: Example) -> tuple[Tensor, Tensor]:
        """The next `window` tokens of each position and q of each, 0 where it repeats a nearer one: (B, T, window)."""
        row = torch.cat([example.inputs, example.targets[:, -1:]], dim=1)
        length, device = example.inputs.shape[1], row.device
        place = torch.arange(length, device=device)[:, None] + torch.arange(1, self.window + 1, device=device)
        tokens = row[:, place.clamp(max=length)]  # (B, T, window)
        known = (place <= length).expand_as(tokens)
        if example.segments is not None:  # the token before must be in the same document
            known = known & (example.segments[:, (place - 1).clamp(max=length - 1)] == example.segments[..., None])
        # Lower triangle: token j of the window is compared with the tokens before it.
        nearer = torch.ones(self.window, self.window, dtype=torch.bool, device=device).tril(-1)
        repeats = ((tokens[..., :, None] == tokens[..., None, :]) & nearer).any(-1)
        # From 0 instead of 1: softmax does not see a constant. The next token is always known, so no row is all -inf.
        distance = torch.arange(self.window, device=device).float().expand_as(tokens)
        shares = (-distance).masked_fill(~known | repeats, float("-inf")).softmax(-1)
        return tokens, shares if example.weights is None else shares * example.weights[..., None]


def order_loss(hidden: Tensor, matrix: Tensor, tokens: Tensor, shares: Tensor) -> Tensor:
    """Sum of -shares log softmax(hidden matrix^T)[tokens]; hidden (B, T, D), matrix (V, D), the others (B, T, n) -> ().

    Logits are computed by blocks of rows, and again for the gradient.
    """
    hidden, tokens, shares = hidden.flatten(0, 1), tokens.flatten(0, 1), shares.flatten(0, 1)
    total, size = (
        hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32)),
        block_rows(len(matrix), hidden.device),
    )

    def block(states: Tensor, weight: Tensor, wanted: Tensor, scale: Tensor) -> Tensor:
        logits = F.linear(states, weight.to(states.dtype)).to(total.dtype)
        return -(logits.log_softmax(-1).gather(-1, wanted) * scale.to(total.dtype)).sum()

    for rows in (slice(start, start + size) for start in range(0, len(hidden), size)):
        # Recomputed in the backward pass: the logits of one block at a time are in memory, as for the first head.
        total = total + checkpoint(block, hidden[rows], matrix, tokens[rows], shares[rows], use_reentrant=False)
    return total
