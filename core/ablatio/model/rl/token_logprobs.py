"""Differentiable log-probabilities of given tokens, for preference and policy losses."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ablatio.model.language_model import LanguageModel

MAX_LOGITS = 2**24  # 64 MB in float32; more logits are recomputed in the backward pass, block by block


class TokenLogProbs(NamedTuple):
    """Log-probabilities of tokens: logps, log p of each target; collision, log sum p^2 over the vocabulary, or None."""

    logps: Tensor
    collision: Tensor | None


def token_logps(model: LanguageModel, hidden: Tensor, targets: Tensor, *, collision: bool = False) -> TokenLogProbs:
    """Compute log softmax(logits(hidden))[target] in nats: (..., D), (...) -> (...)."""
    flat, flat_targets = hidden.flatten(0, -2), targets.flatten()
    rows = max(1, MAX_LOGITS // model.vocab_size)
    if len(flat) <= rows:
        found = [_block(model, flat, flat_targets, collision)]
    else:
        blocks = zip(torch.split(flat, rows), torch.split(flat_targets, rows), strict=True)
        found = [checkpoint(_block, model, h, t, collision, use_reentrant=False) for h, t in blocks]
    logps = torch.cat([f[0] for f in found]).view_as(targets)
    return TokenLogProbs(logps, torch.cat([f[1] for f in found]).view_as(targets) if collision else None)


def _block(model: LanguageModel, hidden: Tensor, targets: Tensor, collision: bool) -> tuple[Tensor, Tensor]:
    """Log-probability of the targets and log sum p^2 (empty if not requested): (N, D), (N,) -> (N,) each."""
    logits = model.logits(hidden)  # (N, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_z = logits.logsumexp(-1)
    logps = logits.gather(-1, targets[:, None])[:, 0] - log_z
    return logps, torch.logsumexp(2 * logits, -1) - 2 * log_z if collision else logps[:0]
