"""Beam search over the steps of a batch of texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ablatio.model.decoding.job import Continuation, DecodingJob
from ablatio.model.decoding.logits import MINUS_INFINITY, LogitsProcessors
from ablatio.model.decoding.steps import only_allowed, tails_of
from ablatio.model.decoding.tails import Tail

Stop = Literal["heuristic", "first", "never"]


@dataclass(slots=True)
class Search:
    """The beams of one prompt: running ones with their scores, and the finished ones, best first."""

    running: list[tuple[float, Tail]]
    finished: list[Continuation] = field(default_factory=list)
    done: bool = False


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """Keeps the `width` best continuations of each prompt by the sum of their step scores.

    A finished continuation of n tokens, the one that ends it included, has the score sum / n^length_penalty.  `stop`
    as in transformers' `early_stopping`: first (True) ends the search when `width` continuations are finished;
    heuristic (False) when the best running one, at its present length, is worse than all finished ones; never
    ("never") when it cannot become better at any length.
    """

    width: int
    length_penalty: float
    stop: Stop
    processors: LogitsProcessors

    @torch.no_grad()
    def __call__(
        self, job: DecodingJob, texts: Any, scores: Callable[[Tensor], Tensor] = lambda log_probs: log_probs
    ) -> list[list[Continuation]]:
        """Search from the opened texts; `scores`: log-probabilities of the next tokens -> their scores, (R, V)."""
        searches = [Search([(0.0, tail)]) for tail in tails_of(job.ending, len(job.prompts))]
        if job.ending.new_tokens == 0:
            return [[search.running[0][1].finished("length")] for search in searches]
        for length in range(1, job.ending.new_tokens + 1):
            # A position limit of the model ends the search with the running beams as they are (see _result).
            rows, tokens = self._step(searches, texts, scores, length, job.ending.new_tokens)
            if not rows or texts.full:
                break
            device = texts.logits.device
            texts.select(torch.tensor(rows, device=device))
            texts.extend(torch.tensor(tokens, device=device))
        return [self._result(search) for search in searches]

    def _step(
        self, searches: Sequence[Search], texts: Any, score: Callable[[Tensor], Tensor], length: int, longest: int
    ) -> tuple[list[int], list[int]]:
        """Extend all beams by a token; return the row of the batch and the token of each beam that goes on."""
        active = [search for search in searches if not search.done]
        # Continuations report the model's own log-probability; penalties and other scores only choose.
        plain = texts.log_probs()
        scores = self.processors.penalize(score(plain), texts.tokens)
        # After the penalties, so that no penalty can make a forbidden token finite.
        scores = only_allowed(scores, [tail for search in active for _, tail in search.running])
        rows, tokens, first = list[int](), list[int](), 0
        for search in active:
            count = len(search.running)
            before = torch.tensor([score for score, _ in search.running], device=scores.device)
            total = scores[first : first + count] + before[:, None]  # (beams, V)
            kept = self._extend(search, total, plain[first : first + count], length)
            self._check_done(search, length, longest)
            if not search.done:
                rows += [first + row for row, _ in kept]
                tokens += [token for _, token in kept]
            first += count
        return rows, tokens

    def _extend(self, search: Search, total: Tensor, plain: Tensor, length: int) -> list[tuple[int, int]]:
        """Replace the beams of one prompt by their best extensions; return the old row and the token of each."""
        ending = search.running[0][1].ending
        # A beam can end by each stop token: among this many, `width` extensions that go on are always found.
        best = total.flatten().topk(min(total.numel(), max(2, 1 + len(ending.stop_ids)) * self.width))
        places, old = list[tuple[int, int]](), search.running
        search.running = []
        found = zip(best.values.tolist(), best.indices.tolist(), plain.flatten()[best.indices].tolist(), strict=True)
        for rank, (score, place, logprob) in enumerate(found):
            # All later ones score no better.
            if score == MINUS_INFINITY or (rank >= self.width and len(search.running) == self.width):
                break
            row, token = divmod(place, total.shape[1])
            tail = old[row][1].copy()
            # Stop strings, too, end a beam, so each candidate is added to see whether it does.
            ended = tail.add(token, logprob)
            if ended and rank < self.width:  # of the others, only those count that go on
                search.finished.append(tail.finished(ended, score / length**self.length_penalty))
            elif not ended and len(search.running) < self.width:
                search.running.append((score, tail))
                places.append((row, token))
        search.finished = sorted(search.finished, key=lambda c: -c.score)[: self.width]
        return places

    def _check_done(self, search: Search, length: int, longest: int) -> None:
        full = len(search.finished) == self.width
        if not search.running or (full and self.stop == "first"):
            search.done = True
        elif full:
            # The sum only falls with more tokens, but its share by the length can rise: the longest possible length
            # bounds it.
            reach = longest if self.stop == "never" and self.length_penalty > 0 else length
            # If the best running beam cannot displace the worst finished one, none can.
            search.done = search.running[0][0] / reach**self.length_penalty <= search.finished[-1].score

    def _result(self, search: Search) -> list[Continuation]:
        if search.finished:
            return search.finished
        return [  # the model supports no further token, or no choice is left
            tail.finished("length", score / max(1, len(tail.ids)) ** self.length_penalty)
            for score, tail in search.running
        ]
