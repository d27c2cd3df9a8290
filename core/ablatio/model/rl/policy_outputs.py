"""What a model says of answers that are already written: log-probabilities, entropy and the critic's values."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ablatio.model.decoding.rollout import Rollout
from ablatio.model.decoding.shared_prefix import answer_states
from ablatio.model.rl.token_logprobs import MOST_LOGITS


class PolicyOutputs(NamedTuple):
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


def policy_outputs(
    model: Any,
    rollout: Rollout,
    *,
    temperature: float = 1.0,
    head: nn.Module | None = None,
    entropy: bool = True,
    learns: bool = False,
) -> PolicyOutputs:
    """One pass over prompts and answers; logits are made at the answers' tokens alone.

    entropy: whether it is asked for, else it is 0; learns: and with a gradient
    """
    how = temperature, entropy, learns
    kept = rollout.mask.bool()
    states, tokens = states_of(model, rollout)[kept], rollout.tokens[kept]  # (tokens of all answers, D)
    rows = max(1, MOST_LOGITS // model.vocab_size)
    if len(states) <= rows or not torch.is_grad_enabled():
        blocks = zip(torch.split(states, rows), torch.split(tokens, rows), strict=True)
        found = [_spoken(model, s, t, *how) for s, t in blocks]
    else:  # made again in the backward pass, so that the logits of a block alone are ever held
        blocks = zip(torch.split(states, rows), torch.split(tokens, rows), strict=True)
        found = [checkpoint(_spoken, model, s, t, *how, use_reentrant=False) for s, t in blocks]
    logps, spread = (torch.cat(x) for x in zip(*found, strict=True))
    values = head(states).float() if head is not None else torch.zeros_like(logps)
    return PolicyOutputs(*(torch.zeros_like(rollout.mask).masked_scatter(kept, x) for x in (logps, spread, values)))


def _spoken(
    model: Any, states: Tensor, tokens: Tensor, temperature: float, entropy: bool, learns: bool
) -> tuple[Tensor, Tensor]:
    """(log-probability of each token, entropy there): (N, D), (N,) -> (N,) each."""
    logits = model.logits(states).float()
    logp = (logits if temperature == 1 else logits / temperature).log_softmax(-1)
    said, spread = logp.gather(1, tokens[:, None])[:, 0], logp if learns else logp.detach()
    return said, -(spread.exp() * spread).sum(-1) if entropy else torch.zeros_like(said)


def values_of(model: Any, rollout: Rollout, head: nn.Module) -> Tensor:
    """What the critic expects before each answer token, 0 behind an answer's end; no logits are made.  (B, T)"""
    values: Tensor = head(states_of(model, rollout)).float() * rollout.mask
    return values


def states_of(model: Any, rollout: Rollout) -> Tensor:
    """The hidden state from which each answer token was drawn: (B, T, D); each prompt is read once for its answers."""
    length, said = rollout.prompt_length, rollout.mask.sum(1).long()
    most, width = int(said.max()), int(length.max())
    prompts, parents = torch.unique(
        torch.cat([length[:, None], rollout.prompts[:, rollout.prompts.shape[1] - width :]], dim=1),
        dim=0, return_inverse=True,
    )  # fmt: skip
    lengths, prompts = prompts[:, 0] - 1, prompts[:, 1:-1]  # what a prompt ends with is read with the answer
    read = torch.cat([rollout.prompts[:, -1:], rollout.tokens[:, : most - 1]], dim=1)
    states = answer_states(model, prompts, lengths, parents, read, int((length + said).max()) - 1)
    return F.pad(states, (0, 0, 0, rollout.tokens.shape[1] - most))


def tokens_read(model: Any, rollout: Rollout) -> int:
    """How many tokens `states_of` reads: each prompt once for its answers, or once in each row."""
    length, said = rollout.prompt_length, int(rollout.mask.sum())
    if not model.shared_prefix:
        return int(length.sum()) + said - len(rollout)
    keys = torch.cat([length[:, None], rollout.prompts], dim=1)
    return int((torch.unique(keys, dim=0)[:, 0] - 1).sum()) + said
