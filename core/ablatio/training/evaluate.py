"""The loss on held-out text, in nats per token and in bits per byte; and how often the likeliest token is right."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio.errors import UserError
from ablatio.model.language_model import LanguageModel
from ablatio.model.parameter_roles import named_generator
from ablatio.registry.kinds import Objective

PARTS = 16  # of a row, for the loss by position


@dataclass(frozen=True, slots=True)
class Score:
    """loss: nats per predicted token; bpb: bits per byte of the text they stand for, comparable between tokenizers;
    accuracy: share of the predicted tokens that the model holds for the likeliest.
    error: the standard error of the loss, sqrt(sum over rows of (nats - loss * tokens)^2) / tokens in all: what other
    held-out text would have moved it by.  Tokens of a row are easy or hard together and count as one cluster
    (arXiv:2411.00640, equation 4).  Models that are scored on the same text share most of it.
    by_position: the loss in each sixteenth of the row, from its first tokens to its last; nan where none is scored."""

    loss: float
    bpb: float
    accuracy: float
    error: float
    tokens: int
    bytes: int
    by_position: tuple[float, ...] = ()

    def numbers(self) -> dict[str, float]:
        """All of it as {name: number}; the loss by position as `position/1` to `position/16`."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "by_position"}
        return plain | {f"position/{i}": v for i, v in enumerate(self.by_position, 1) if math.isfinite(v)}


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
    by_row = [torch.zeros(2, 0, dtype=torch.float64, device=device)]  # nats and tokens of each row
    by_place = torch.zeros(2, 0, dtype=torch.float64, device=device)  # nats and tokens at each place of the row
    byte_count = hits = torch.zeros((), dtype=torch.int64, device=device)
    try:
        for index, batch in enumerate(batches):
            generator = named_generator(0, f"validation/{index}")
            example = objective(batch["tokens"], batch.get("segments"), generator).to(device)
            losses, found = model.token_scores(example)  # (B, T)
            losses = losses.double()
            scored = torch.ones_like(losses) if example.weights is None else (example.weights > 0).double()
            each = torch.stack([losses * scored, scored])
            by_row.append(each.sum(2))
            by_place = _sum_of(by_place, each.sum(1))
            hits = hits + (found * scored).sum().long()
            byte_count = byte_count + (sizes[example.targets] * scored.long()).sum()
            between(index + 1)
    finally:
        model.train(was_training)
    nats, counts = torch.cat(by_row, 1)
    tokens = int(counts.sum())
    if not tokens:
        raise UserError(
            "no token of the validation rows is scored: the objective finds no answer in these texts\n"
            "    try: objective=lm, or set objective.marker to the id that announces an answer"
        )
    loss = nats.sum().item() / tokens
    error = (nats - loss * counts).norm().item() / tokens
    bpb = nats.sum().item() / math.log(2) / max(1, int(byte_count))
    parts = [part.sum(1).tolist() for part in by_place.tensor_split(min(PARTS, by_place.shape[1]), dim=1)]
    by_position = tuple(total / count if count else math.nan for total, count in parts)
    return Score(loss, bpb, int(hits) / tokens, error, tokens, int(byte_count), by_position)


def _sum_of(a: Tensor, b: Tensor) -> Tensor:
    """(2, S) + (2, T) -> (2, max(S, T)): batches may have rows of different lengths."""
    length = max(a.shape[1], b.shape[1])
    return F.pad(a, (0, length - a.shape[1])) + F.pad(b, (0, length - b.shape[1]))
