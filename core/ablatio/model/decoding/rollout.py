"""Rollouts: answers sampled from a model with their log-probabilities, batched by length, each prompt encoded once.

A token depends only on the weights, its prompt and the random numbers of its row, never on the rest of the batch: row i
of step k uses the random stream seeded by (seed, k, i). Rollouts can therefore be split, resumed and compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio.model.decoding.logits import LogitsProcessors
from ablatio.model.decoding.token_steps import TokenSteps
from ablatio.model.example import PADDING
from ablatio.model.kv_cache import KVCache
from ablatio.model.number_format import casts_kept
from ablatio.model.parameter_roles import named_generator
from ablatio.model.ranks import ranks
from ablatio.model.static_cache import rounded_room


@dataclass(frozen=True, slots=True)
class Rollout:
    """N sampled answers of up to T tokens; all tensors are 0 after the end of an answer.

    prompts  (N, P) padded on the left with 0; prompt_length (N,)
    tokens   (N, T) answers, including the stop token
    mask     (N, T) 1 on the tokens of the answer
    logps    (N, T) log-probability of each token under the policy, at the sampling temperature
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

    def cpu(self) -> "Rollout":
        """Copy all tensors to the CPU."""
        return Rollout(*(getattr(self, f.name).cpu() for f in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence["Rollout"]) -> "Rollout":
        """Concatenate rollouts along the rows, padding prompts on the left and answers on the right."""
        prompt_width, answer_width = (max(getattr(p, name).shape[1] for p in parts) for name in ("prompts", "tokens"))
        rows = {
            "prompts": [F.pad(p.prompts, (prompt_width - p.prompts.shape[1], 0)) for p in parts],
            "prompt_length": [p.prompt_length for p in parts],
        } | {
            name: [F.pad(getattr(p, name), (0, answer_width - getattr(p, name).shape[1])) for p in parts]
            for name in ("tokens", "mask", "logps")
        }
        return cls(**{name: torch.cat(found) for name, found in rows.items()})

    def gathered(self) -> "Rollout":
        """The rows of all ranks that share a batch, in their order; on one device the rollout itself."""
        prompts = ranks().gather_rows(self.prompts.flip(1)).flip(1)  # gathered rows are padded on the right
        length = ranks().gather_rows(self.prompt_length)
        return Rollout(prompts, length, *(ranks().gather_rows(x) for x in (self.tokens, self.mask, self.logps)))

    def prompt(self, row: int) -> list[int]:
        """Return the tokens of one prompt, without padding."""
        ids: list[int] = self.prompts[row, self.prompts.shape[1] - int(self.prompt_length[row]) :].tolist()
        return ids

    def answer(self, row: int, stop: int | None = None) -> list[int]:
        """Return the tokens of one answer, without the stop token."""
        ids: list[int] = self.tokens[row, : int(self.mask[row].sum())].tolist()
        return ids[:-1] if ids and ids[-1] == stop else ids


def streams(seed: int, step: int, rows: int, length: int, first: int = 0) -> Tensor:
    """Uniform random numbers in [0, 1): (rows, length), row i from the stream numbered first + i."""
    numbers = torch.empty(rows, length)
    for row in range(rows):
        numbers[row].uniform_(generator=named_generator(seed, f"rollout/{step}/{first + row}"))
    return numbers


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
    processors: LogitsProcessors | None = None,
    rows: int = 64,
) -> Rollout:
    """Sample `group` answers to each prompt, in consecutive rows; without prompts there are no rows.

    draws       random numbers (prompts x group, new_tokens) from `streams`; None: take the most likely token
    stop        token that ends an answer; None: every answer has `new_tokens` tokens
    processors  change the logits, divided by the temperature, from which tokens are drawn; log-probabilities are always
                those of the policy itself
    rows        number of answers that are decoded at once
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
        asked = [prompts[i] for i in bucket]
        with casts_kept(device):
            decoded = _decode(model, asked, drawn, stop, new_tokens, group, temperature, processors)
        for whole, part in zip((tokens, logps, mask), decoded, strict=True):
            whole[at] = part
    model.train(training)
    longest = max(1, int(mask.sum(1).max())) if count else 1
    rows_of = torch.arange(count, device=device) // group
    padded, _ = _padded(prompts, device)
    length = torch.tensor([len(p) for p in prompts], device=device)
    return Rollout(padded[rows_of], length[rows_of], *(x[:, :longest] for x in (tokens, mask, logps)))


@torch.no_grad()
def next_logits(model: Any, prompts: Sequence[Sequence[int]], rows: int = 64) -> Tensor:
    """Return the logits of the token after each prompt: (N, V)."""
    device = next(model.parameters()).device
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    for bucket in _buckets(prompts, rows):
        logits = model.read(*_padded([prompts[i] for i in bucket], device), KVCache())
        for i, row in zip(bucket, logits.float(), strict=True):
            found[i] = row
    return torch.stack(found)


def _buckets(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Yield indices of prompts in groups of similar length, so that little padding is needed."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Prompts padded on the left (B, P), and their segments (B, P) with PADDING; None if nothing is padded."""
    longest = max(map(len, prompts), default=0)
    rows = [[0] * (longest - len(p)) + list(p) for p in prompts]
    tokens = torch.tensor(rows, dtype=torch.long).view(len(rows), longest)
    if all(len(p) == longest for p in prompts):
        return tokens.to(device), None
    short = torch.tensor([longest - len(p) for p in prompts])
    segments = torch.where(torch.arange(longest) < short[:, None], PADDING, 0)
    return tokens.to(device), segments.to(device)


def look_every(device: torch.device) -> int:
    """Tokens between two looks at which rows have ended: on a GPU, each look waits for all that is queued there."""
    return 1 if device.type == "cpu" else 16


def _decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    draws: Tensor | None,
    stop: int | None,
    new_tokens: int,
    group: int,
    temperature: float,
    processors: LogitsProcessors | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode one bucket: (tokens, logps, mask), each (prompts x group, new_tokens)."""
    device = next(model.parameters()).device
    count, (read, segments) = len(prompts) * group, _padded(prompts, device)
    # The last token is drawn and not read.
    steps = TokenSteps(model, KVCache(rounded_room(read.shape[1] + new_tokens - 1)), new_tokens - 1)
    logits = model.read(read, segments, steps.cache)
    text = read if segments is None else read.masked_fill(segments == PADDING, PADDING)  # (rows, P), with the answers
    if group > 1:  # each prompt was encoded once; all its answers continue from copies of its cache
        siblings = torch.arange(len(prompts), device=device).repeat_interleave(group)
        steps.select(siblings)
        logits, text = logits[siblings], text[siblings]
    found = _SampledTokens(count, new_tokens, device)
    numbers = None if draws is None else draws.T.contiguous()  # (new_tokens, rows)
    running = torch.ones(count, dtype=torch.bool, device=device)
    for t in range(new_tokens):
        logits = logits.float() if temperature == 1 else logits.float() / temperature
        processed = None if processors is None else processors(logits, text)
        chosen, logp = _draw(logits, None if numbers is None else numbers[t], processed)
        found.add(chosen, logp, running)
        if stop is not None:
            running = running & (chosen != stop)
            # Between two looks finished rows go on, and what they add is masked.
            left = int(running.sum()) if (t + 1) % look_every(device) == 0 else len(running)
            if left == 0:
                break
            if left <= 0.75 * len(running):  # copying the cache costs less than further steps on finished rows
                keep = running.nonzero()[:, 0]
                found.select(keep)
                steps.select(keep)
                numbers = None if numbers is None else numbers[:, keep]
                chosen, running, text = chosen[keep], running[keep], text[keep]
        if t + 1 < new_tokens:
            logits = steps.extend(chosen)
            text = torch.cat([text, chosen[:, None]], dim=1) if processors is not None else text
    return found.taken()


class _SampledTokens:
    """Buffer of sampled tokens: collected by column, written to their rows when rows are dropped and at the end."""

    def __init__(self, rows: int, length: int, device: torch.device) -> None:
        self.tokens = torch.zeros(rows, length, dtype=torch.long, device=device)
        self.logps, self.mask = torch.zeros(rows, length, device=device), torch.zeros(rows, length, device=device)
        self.at, self.start = torch.arange(rows, device=device), 0
        self.columns: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, *column: Tensor) -> None:
        """Add one column: token, log-probability and whether the row was running, (rows,) each."""
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


def _draw(logits: Tensor, numbers: Tensor | None, processed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the tokens, drawn from `processed` logits if there are any, and their log-probabilities, (B,) each.

    Inverse-CDF sampling: the first token whose cumulative probability exceeds the row's random number.
    """
    if processed is not None:
        chosen = _draw(processed, numbers)[0]
        return chosen, logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
    if numbers is None:
        best = logits.max(-1)
        return best.indices, best.values - logits.logsumexp(-1)
    above = logits - logits.amax(-1, keepdim=True)
    mass = above.exp().cumsum(-1)
    total = mass[:, -1:]
    chosen = torch.searchsorted(mass, numbers[:, None] * total, right=True).clamp_(max=logits.shape[-1] - 1)
    return chosen[:, 0], (above.gather(1, chosen) - total.log())[:, 0]
