"""Parameters and FLOPs, exactly: counted on the model itself, without memory or arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ablatio.model.assembly import Assembly


@dataclass(frozen=True, slots=True)
class Size:
    """parameters: each counted once (a tied head is no second one); embedding: tables for tokens and positions.

    flops_per_token: multiply and add are two; of one training step's forward pass at the full length, divided by the
    tokens.  Attention counts all pairs, as torch's FlopCounter does.  The backward pass costs twice the forward one.
    """

    parameters: int
    embedding: int
    flops_per_token: float

    @property
    def non_embedding(self) -> int:
        return self.parameters - self.embedding

    @property
    def train_flops_per_token(self) -> float:
        return 3 * self.flops_per_token


def measure(config: Mapping[str, Any], vocab_size: int) -> Size:
    """The size of the model that `config` describes; nothing is allocated, so 176 billion parameters take no room."""
    from torch.utils.flop_counter import FlopCounterMode

    from ablatio.model.roles import describe

    with torch.device("meta"):
        model = Assembly(config, vocab_size).model().eval()
        length = int(config["model"]["max_len"])
        tokens = torch.zeros(1, length, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(tokens)
    embedding = sum(p.numel() for p, info in describe(model) if info.role == "embedding")
    parameters = sum(p.numel() for p in model.parameters())
    return Size(parameters, embedding, counter.get_total_flops() / length)
