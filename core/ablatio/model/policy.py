"""What a model says of answers that are already written: log-probabilities, entropy and the critic's values."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ablatio.model.example import Example
from ablatio.model.rollout import Rollout


class Said(NamedTuple):
    """Of each answer token, 0 behind an answer's end: log-probability, entropy there, value before it.  (B, T) each."""

    logps: Tensor
    entropy: Tensor
    values: Tensor


class ValueHead(nn.Module):
    """w h + b, zero at the start: what the critic expects from a hidden state.  (..., D) -> (...)"""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(d_model)), nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.weight.to(hidden.dtype) / math.sqrt(len(self.weight)) + self.bias.to(hidden.dtype)


def said_of(model: Any, rollout: Rollout, *, temperature: float = 1.0, head: nn.Module | None = None) -> Said:
    """One pass over prompts and answers; logits are made at the answers' tokens alone."""
    hidden = answer_states(model, rollout)
    kept = rollout.mask.bool()
    states, tokens = hidden[kept], rollout.tokens[kept]  # (tokens of all answers, D)
    logp = (model.logits(states).float() / temperature).log_softmax(-1)
    found = logp.gather(1, tokens[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(-1)
    values = head(states).float() if head is not None else torch.zeros_like(found)
    return Said(*(torch.zeros_like(rollout.mask).masked_scatter(kept, x) for x in (found, entropy, values)))


def answer_states(model: Any, rollout: Rollout) -> Tensor:
    """The hidden state from which each answer token was drawn: (B, T, D).

    Rows are laid out anew with the padding behind them, where no token before it can see it: no mask is needed.
    """
    prompts, length = rollout.prompts, rollout.prompt_length
    row = torch.cat([prompts, rollout.tokens], dim=1)
    places = torch.arange(row.shape[1], device=row.device) + (prompts.shape[1] - length)[:, None]
    row = row.gather(1, places.clamp(max=row.shape[1] - 1))
    row = row[:, : int((length + rollout.mask.sum(1).long()).max())]
    hidden: Tensor = model.hidden(Example(row, row))
    at = (length - 1)[:, None] + torch.arange(rollout.tokens.shape[1], device=row.device)
    at = at.clamp(max=row.shape[1] - 1)[:, :, None].expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, at)
