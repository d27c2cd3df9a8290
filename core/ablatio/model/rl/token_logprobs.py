"""Log-probabilities of given tokens, with a gradient: what preference and policy losses are made of."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ablatio.model.language_model import LanguageModel

MOST_LOGITS = 2**24  # 64 MB in 32 bits; beyond, they are made again in the backward pass, block by block


class TokenLogProbs(NamedTuple):
    """logps: log p of each target; collision: log of the sum of p^2 over the vocabulary, where it was asked for."""

    logps: Tensor
    collision: Tensor | None


def token_logps(model: LanguageModel, hidden: Tensor, targets: Tensor, *, collision: bool = False) -> TokenLogProbs:
    """log softmax(logits(hidden))[target], in nats: (..., D), (...) -> (...)."""
    flat, said = hidden.flatten(0, -2), targets.flatten()
    rows = max(1, MOST_LOGITS // model.vocab_size)
    if len(flat) <= rows:
        found = [_block(model, flat, said, collision)]
    else:
        blocks = zip(torch.split(flat, rows), torch.split(said, rows), strict=True)
        found = [checkpoint(_block, model, h, t, collision, use_reentrant=False) for h, t in blocks]
    logps = torch.cat([f[0] for f in found]).view_as(targets)
    return TokenLogProbs(logps, torch.cat([f[1] for f in found]).view_as(targets) if collision else None)


def _block(model: LanguageModel, hidden: Tensor, targets: Tensor, collision: bool) -> tuple[Tensor, Tensor]:
    logits = model.logits(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_z = logits.logsumexp(-1)
    said = logits.gather(-1, targets[:, None])[:, 0] - log_z
    return said, torch.logsumexp(2 * logits, -1) - 2 * log_z if collision else said[:0]
