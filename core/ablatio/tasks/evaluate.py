"""The loss on held-out text, in nats per token and in bits per byte; and how often the likeliest token is right."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ablatio.errors import UserError
from ablatio.kinds import Objective
from ablatio.model.language_model import LanguageModel
from ablatio.model.roles import named_generator


@dataclass(frozen=True, slots=True)
class Score:
    """loss: nats per predicted token; bpb: bits per byte of the text they stand for, comparable between tokenizers;
    accuracy: share of the predicted tokens that the model holds for the likeliest."""

    loss: float
    bpb: float
    accuracy: float
    tokens: int
    bytes: int


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    objective: Objective,
    batches: Iterable[dict[str, Tensor]],
    token_bytes: np.ndarray,
    device: torch.device,
    between: Callable[[int], None] = lambda batch: None,
) -> Score:
    """Score all batches; the model's mode is restored.  `between(n)` is called after each batch (progress, stop)."""
    was_training = model.training
    model.eval()
    sizes = torch.zeros(
        max(model.vocab_size, len(token_bytes)), dtype=torch.int64, device=device
    )  # sentinels: no bytes
    sizes[: len(token_bytes)] = torch.from_numpy(np.asarray(token_bytes, dtype=np.int64))
    nats = torch.zeros((), dtype=torch.float64, device=device)
    tokens = byte_count = hits = torch.zeros((), dtype=torch.int64, device=device)
    try:
        for index, batch in enumerate(batches):
            generator = named_generator(0, f"validation/{index}")
            example = objective(batch["tokens"], batch.get("segments"), generator).to(device)
            losses, found = model.token_scores(example)  # (B, T)
            losses = losses.double()
            scored = torch.ones_like(losses) if example.weights is None else (example.weights > 0).double()
            nats = nats + (losses * scored).sum()
            hits = hits + (found * scored).sum().long()
            tokens = tokens + scored.sum().long()
            byte_count = byte_count + (sizes[example.targets] * scored.long()).sum()
            between(index + 1)
    finally:
        model.train(was_training)
    if not int(tokens):
        raise UserError(
            "no token of the validation rows is scored: the objective finds no answer in these texts\n"
            "    try: objective=lm, or set objective.marker to the id that announces an answer"
        )
    loss = nats.item() / int(tokens)
    bpb = nats.item() / math.log(2) / max(1, int(byte_count))
    return Score(loss, bpb, int(hits) / int(tokens), int(tokens), int(byte_count))
