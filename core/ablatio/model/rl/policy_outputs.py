"""Log-probabilities, entropies and critic values of given answers."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ablatio.model.decoding.rollout import Rollout
from ablatio.model.decoding.shared_prefix import answer_states
from ablatio.model.rl.answer_plan import AnswerPlan, plan_of
from ablatio.model.rl.token_logprobs import MAX_LOGITS


class PolicyOutputs(NamedTuple):
    """Per answer token: log-probability, entropy of its distribution, critic value before it; 0 after an answer's end.

    All (B, T).
    """

    logps: Tensor
    entropy: Tensor
    values: Tensor


class ValueHead(nn.Module):
    """Critic value w h / sqrt(D) + b of a hidden state h, zero-initialized: (..., D) -> (...)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(d_model)), nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """Predict the value of hidden states: (..., D) -> (...)."""
        return hidden @ self.weight.to(hidden.dtype) / math.sqrt(len(self.weight)) + self.bias.to(hidden.dtype)


def policy_outputs(
    model: Any,
    rollout: Rollout,
    *,
    temperature: float = 1.0,
    head: nn.Module | None = None,
    entropy: bool = True,
    learns: bool = False,
    plan: AnswerPlan | None = None,
) -> PolicyOutputs:
    """Compute the policy outputs of a rollout in one pass; logits are formed at the answer tokens only.

    head     the critic; None: values are 0
    entropy  compute the entropy; False: it is 0
    learns   the entropy has a gradient
    plan     of the rollout; None: it is made, and the device waited for
    """
    how, plan = (temperature, entropy, learns), plan or plan_of(rollout)
    states = states_of(model, rollout, plan).flatten(0, 1).index_select(0, plan.kept)  # (tokens of all answers, D)
    tokens = rollout.tokens.flatten()[plan.kept]
    rows = max(1, MAX_LOGITS // model.vocab_size)
    if len(states) <= rows or not torch.is_grad_enabled():
        blocks = zip(torch.split(states, rows), torch.split(tokens, rows), strict=True)
        found = [_block_outputs(model, s, t, *how) for s, t in blocks]
    else:  # checkpointed, so that the logits of only one block are held at a time
        blocks = zip(torch.split(states, rows), torch.split(tokens, rows), strict=True)
        found = [checkpoint(_block_outputs, model, s, t, *how, use_reentrant=False) for s, t in blocks]
    logps, spread = (torch.cat(x) for x in zip(*found, strict=True))
    values = head(states).float() if head is not None else torch.zeros_like(logps)
    nothing = torch.zeros_like(rollout.mask).flatten()
    unpacked = (nothing.index_copy(0, plan.kept, x).view_as(rollout.mask) for x in (logps, spread, values))
    return PolicyOutputs(*unpacked)


def _block_outputs(
    model: Any, states: Tensor, tokens: Tensor, temperature: float, entropy: bool, learns: bool
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution: (N, D), (N,) -> (N,) each."""
    logits = model.logits(states).float()  # (N, V)
    logp = (logits if temperature == 1 else logits / temperature).log_softmax(-1)
    token_logp, spread = logp.gather(1, tokens[:, None])[:, 0], logp if learns else logp.detach()
    return token_logp, -(spread.exp() * spread).sum(-1) if entropy else torch.zeros_like(token_logp)


def values_of(model: Any, rollout: Rollout, head: nn.Module, plan: AnswerPlan | None = None) -> Tensor:
    """Critic values before each answer token, without forming logits: (B, T); 0 after an answer's end."""
    values: Tensor = head(states_of(model, rollout, plan)).float() * rollout.mask
    return values


def states_of(model: Any, rollout: Rollout, plan: AnswerPlan | None = None) -> Tensor:
    """Hidden states from which the answer tokens were sampled: (B, T, D); each prompt is encoded once and shared."""
    plan = plan or plan_of(rollout)
    # The last prompt token predicts the first answer token, so it is read with the answer.
    read = torch.cat([rollout.prompts[:, -1:], rollout.tokens[:, : plan.most - 1]], dim=1)
    prompts = plan.prompts, plan.lengths, plan.parents
    states = answer_states(model, *prompts, read, plan.longest, shortest=plan.shortest)
    return F.pad(states, (0, 0, 0, rollout.tokens.shape[1] - plan.most))
