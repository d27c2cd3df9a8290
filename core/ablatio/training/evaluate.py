"""Score a language model on held-out text: loss in nats per token, bits per byte, accuracy, standard error."""

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

PARTS = 16  # equal parts of a row, for the loss by position


@dataclass(frozen=True, slots=True)
class Score:
    """Scores of a model on held-out text.

    loss         nats per predicted token
    bpb          bits per byte of the text that the tokens encode; comparable between tokenizers
    accuracy     share of predicted tokens to which the model gives the highest probability
    error        standard error of the loss over the choice of held-out text, with each row as a cluster, because the
                 tokens of a row are correlated (arXiv:2411.00640, equation 4):
                 sqrt(sum over rows of (nats - loss * tokens)^2) / total tokens.
                 Models scored on the same text share most of this error
    tokens       number of scored tokens
    bytes        number of bytes that they encode
    by_position  loss in each sixteenth of the row, first to last; nan where no token is scored
    """

    loss: float
    bpb: float
    accuracy: float
    error: float
    tokens: int
    bytes: int
    by_position: tuple[float, ...] = ()

    def numbers(self) -> dict[str, float]:
        """Return all fields as {name: number}; the loss by position as `position/1` to `position/16`."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "by_position"}
        return plain | {f"position/{i}": v for i, v in enumerate(self.by_position, 1) if math.isfinite(v)}


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over scored rows, from which a Score is made; tallies of several sets of rows add up.

    rows       (2, N): nats and number of tokens of each row
    positions  (2, T): nats and number of tokens at each position
    """

    rows: Tensor
    positions: Tensor
    hits: int
    bytes: int

    def __add__(self, other: "Tally") -> "Tally":
        rows, positions = torch.cat([self.rows, other.rows], 1), _add_padded(self.positions, other.positions)
        return Tally(rows, positions, self.hits + other.hits, self.bytes + other.bytes)

    def score(self) -> Score:
        """The scores of these rows; UserError if no token was scored."""
        nats, counts = self.rows
        tokens = int(counts.sum())
        if not tokens:
            raise UserError(
                "no token of the validation rows is scored: the objective finds no answer in these texts\n"
                "    try: objective=lm, or set objective.marker to the id that announces an answer"
            )
        loss = nats.sum().item() / tokens
        error = (nats - loss * counts).norm().item() / tokens
        bpb = nats.sum().item() / math.log(2) / max(1, self.bytes)
        parts = [part.sum(1).tolist() for part in self.positions.tensor_split(min(PARTS, self.positions.shape[1]), 1)]
        by_position = tuple(total / count if count else math.nan for total, count in parts)
        return Score(loss, bpb, self.hits / tokens, error, tokens, self.bytes, by_position)


def evaluate(
    model: LanguageModel,
    objective: Objective,
    batches: Iterable[dict[str, Tensor]],
    token_bytes: np.ndarray,
    device: torch.device,
    between: Callable[[int], None] = lambda batch: None,
) -> Score:
    """Score a model on all batches and restore its training mode; arguments as for `tally`.

    Raises UserError if no token is scored.
    """
    return tally(model, objective, batches, token_bytes, device, between).score()


@torch.no_grad()
def tally(
    model: LanguageModel,
    objective: Objective,
    batches: Iterable[dict[str, Tensor]],
    token_bytes: np.ndarray,
    device: torch.device,
    between: Callable[[int], None] = lambda batch: None,
) -> Tally:
    """Sum the losses of a model over all batches and restore its training mode.

    objective    makes the example of each batch; its random draws depend on the batch number alone
    token_bytes  (vocab,) bytes that each token id encodes
    between      called as between(n) after batch number n (from 1), to show progress or to stop by an exception
    """
    was_training = model.training
    model.eval()
    # Ids beyond the tokenizer's (sentinels, padding of the vocabulary) encode no bytes.
    sizes = torch.zeros(max(model.vocab_size, len(token_bytes)), dtype=torch.int64, device=device)  # (vocab,)
    sizes[: len(token_bytes)] = torch.from_numpy(np.asarray(token_bytes, dtype=np.int64))
    by_row = [torch.zeros(2, 0, dtype=torch.float64, device=device)]  # (2, B) each: nats and tokens of each row
    by_position = torch.zeros(2, 0, dtype=torch.float64, device=device)  # (2, T): nats and tokens at each position
    byte_count = hits = torch.zeros((), dtype=torch.int64, device=device)
    try:
        for index, batch in enumerate(batches):
            generator = named_generator(0, f"validation/{index}")
            example = objective(batch["tokens"], batch.get("segments"), generator).to(device)
            losses, correct = model.token_scores(example)  # (B, T) each
            losses = losses.double()
            scored = torch.ones_like(losses) if example.weights is None else (example.weights > 0).double()
            if "scored" in batch:  # overlapping windows: each target counts once
                scored = scored * batch["scored"].to(device)
            each = torch.stack([losses * scored, scored])  # (2, B, T): nats and tokens
            by_row.append(each.sum(2))
            by_position = _add_padded(by_position, each.sum(1))
            hits = hits + (correct * scored).sum().long()
            byte_count = byte_count + (sizes[example.targets] * scored.long()).sum()
            between(index + 1)
    finally:
        model.train(was_training)
    return Tally(torch.cat(by_row, 1), by_position, int(hits), int(byte_count))


def _add_padded(a: Tensor, b: Tensor) -> Tensor:
    """Add (2, S) and (2, T) to (2, max(S, T)), padded with zeros: batches may differ in row length."""
    length = max(a.shape[1], b.shape[1])
    return F.pad(a, (0, length - a.shape[1])) + F.pad(b, (0, length - b.shape[1]))
