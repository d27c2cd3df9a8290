"""Answers that a model draws to prompts, with what it gave for each token: batches by length, prompts read once.

A token depends on the weights, its prompt and the numbers of its row alone, never on what else is in the batch: row i
of step k draws from a stream that (seed, k, i) names.  So rollouts can be cut, resumed and compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio.model.example import PADDING
from ablatio.model.kv_cache import KVCache
from ablatio.model.parameter_roles import named_generator


@dataclass(frozen=True, slots=True)
class Rollout:
    """Answers of N rows, up to T tokens each; behind an answer's end everything is 0.

    prompts  (N, P) padded on the left with 0; prompt_length (N,)
    tokens   (N, T) of the answers, the stop token included
    mask     (N, T) 1 on the tokens of the answer
    logps    (N, T) of each token under the policy, at the temperature that it was drawn at
    """

    prompts: Tensor
    prompt_length: Tensor
    tokens: Tensor
    mask: Tensor
    logps: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Any) -> "Rollout":
        return Rollout(*(getattr(self, f.name)[rows] for f in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence["Rollout"]) -> "Rollout":
        """The rows of several, one behind the other."""
        before, behind = (max(getattr(p, name).shape[1] for p in parts) for name in ("prompts", "tokens"))
        rows = {
            "prompts": [F.pad(p.prompts, (before - p.prompts.shape[1], 0)) for p in parts],
            "prompt_length": [p.prompt_length for p in parts],
        } | {
            name: [F.pad(getattr(p, name), (0, behind - getattr(p, name).shape[1])) for p in parts]
            for name in ("tokens", "mask", "logps")
        }
        return cls(**{name: torch.cat(found) for name, found in rows.items()})

    def prompt(self, row: int) -> list[int]:
        ids: list[int] = self.prompts[row, self.prompts.shape[1] - int(self.prompt_length[row]) :].tolist()
        return ids

    def answer(self, row: int, stop: int | None = None) -> list[int]:
        """The tokens of one answer, without the stop token."""
        ids: list[int] = self.tokens[row, : int(self.mask[row].sum())].tolist()
        return ids[:-1] if ids and ids[-1] == stop else ids


def streams(seed: int, step: int, rows: int, length: int, first: int = 0) -> Tensor:
    """(rows, length) numbers in [0, 1), row i from a stream of its own: that of number first + i."""
    found = torch.empty(rows, length)
    for row in range(rows):
        found[row].uniform_(generator=named_generator(seed, f"rollout/{step}/{first + row}"))
    return found


@torch.no_grad()
def sample_rollouts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    draws: Tensor | None,
    *,
    stop: int | None,
    new_tokens: int,
    group: int = 1,
    temperature: float = 1.0,
    rows: int = 64,
) -> Rollout:
    """`group` answers to each prompt, side by side; draws (prompts x group, new_tokens) as `streams` gives them.

    Without draws the likeliest token is taken.  rows: answers that are decoded at once.
    """
    device = next(model.parameters()).device
    count = len(prompts) * group
    tokens = torch.zeros(count, new_tokens, dtype=torch.long, device=device)
    logps, mask = torch.zeros(count, new_tokens, device=device), torch.zeros(count, new_tokens, device=device)
    numbers = None if draws is None else draws.to(device)
    training = model.training
    model.eval()
    for bucket in _buckets(prompts, max(1, rows // group)):
        at = torch.tensor([i * group + k for i in bucket for k in range(group)], device=device)
        drawn = numbers[at] if numbers is not None else None
        found = _decode(model, [prompts[i] for i in bucket], drawn, stop, new_tokens, group, temperature)
        for whole, part in zip((tokens, logps, mask), found, strict=True):
            whole[at] = part
    model.train(training)
    longest = max(1, int(mask.sum(1).max()))
    rows_of = torch.arange(count, device=device) // group
    padded, _ = _padded(prompts, device)
    length = torch.tensor([len(p) for p in prompts], device=device)
    return Rollout(padded[rows_of], length[rows_of], *(x[:, :longest] for x in (tokens, mask, logps)))


@torch.no_grad()
def next_logits(model: Any, prompts: Sequence[Sequence[int]], rows: int = 64) -> Tensor:
    """What a model says comes after each prompt: (N, V)."""
    device = next(model.parameters()).device
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    for bucket in _buckets(prompts, rows):
        logits = model.read(*_padded([prompts[i] for i in bucket], device), KVCache())
        for i, row in zip(bucket, logits.float(), strict=True):
            found[i] = row
    return torch.stack(found)


def _buckets(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Prompts of about one length together, so that little is padded."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Prompts padded on the left, and which of it is padding if there is any: a segment that nothing else sees."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], dtype=torch.long)
    if all(len(p) == longest for p in prompts):
        return tokens.to(device), None
    short = torch.tensor([longest - len(p) for p in prompts])
    segments = torch.where(torch.arange(longest) < short[:, None], PADDING, 0)
    return tokens.to(device), segments.to(device)


def _decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    draws: Tensor | None,
    stop: int | None,
    new_tokens: int,
    group: int,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, logps, mask) of one bucket: (prompts x group, new_tokens)."""
    device = next(model.parameters()).device
    cache, count = KVCache(), len(prompts) * group
    logits = model.read(*_padded(prompts, device), cache)
    if group > 1:  # each prompt was read once; its answers go on from there
        siblings = torch.arange(len(prompts), device=device).repeat_interleave(group)
        cache.select(siblings)
        logits = logits[siblings]
    found = _Written(count, new_tokens, device)
    numbers = None if draws is None else draws.T.contiguous()  # (new_tokens, rows)
    running = torch.ones(count, dtype=torch.bool, device=device)
    for t in range(new_tokens):
        chosen, logp = _draw(logits, None if numbers is None else numbers[t], temperature)
        found.add(chosen, logp, running)
        if stop is not None:
            running = running & (chosen != stop)
            left = int(running.sum())
            if left == 0:
                break
            if left <= 0.75 * len(running):  # a copy of the cache once, instead of a step for each row that has ended
                keep = running.nonzero()[:, 0]
                found.select(keep)
                cache.select(keep)
                numbers = None if numbers is None else numbers[:, keep]
                chosen, running = chosen[keep], running[keep]
        if t + 1 < new_tokens:
            logits = model.extend(chosen[:, None], cache)
    return found.taken()


class _Written:
    """What has been drawn, column by column; it is put in its rows when some of them end, and at the end."""

    def __init__(self, rows: int, length: int, device: torch.device) -> None:
        self.tokens = torch.zeros(rows, length, dtype=torch.long, device=device)
        self.logps, self.mask = torch.zeros(rows, length, device=device), torch.zeros(rows, length, device=device)
        self.at, self.start = torch.arange(rows, device=device), 0
        self.columns: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, *column: Tensor) -> None:
        """(token, log-probability, whether the row was running), of the rows at hand."""
        self.columns.append(column)  # type: ignore[arg-type]

    def select(self, keep: Tensor) -> None:
        self.taken()
        self.at = self.at[keep]

    def taken(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.columns:
            tokens, logps, live = (torch.stack(x, dim=1) for x in zip(*self.columns, strict=True))
            end = self.start + len(self.columns)
            self.tokens[self.at, self.start : end] = tokens * live
            self.logps[self.at, self.start : end] = logps * live
            self.mask[self.at, self.start : end] = live.float()
            self.start, self.columns = end, []
        return self.tokens, self.logps, self.mask


def _draw(logits: Tensor, numbers: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """(token, its log-probability), (B,) each: the first token whose cumulated chance passes the row's number."""
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    if numbers is None:
        best = logits.max(-1)
        return best.indices, best.values - logits.logsumexp(-1)
    above = logits - logits.amax(-1, keepdim=True)
    mass = above.exp().cumsum(-1)
    total = mass[:, -1:]
    chosen = torch.searchsorted(mass, numbers[:, None] * total, right=True).clamp_(max=logits.shape[-1] - 1)
    return chosen[:, 0], (above.gather(1, chosen) - total.log())[:, 0]
