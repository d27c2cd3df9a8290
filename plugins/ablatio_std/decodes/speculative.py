"""Speculative decoding: a small model drafts several tokens, the model checks all of them in one pass."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from ablatio import Positive, decodes
from ablatio.model.decoding.job import Continuation, DecodingJob
from ablatio.model.decoding.logits import (
    LogitsProcessors,
    MinP,
    NoRepeatNgram,
    Repetition,
    Temperature,
    TopK,
    TopP,
    Typical,
)
from ablatio.model.decoding.steps import only_allowed, tails_of
from ablatio.model.decoding.tails import Tail
from ablatio.model.decoding.texts import Texts


@decodes.register("speculative", paper="arXiv:2211.17192")
class Speculative:
    """Samples exactly as decode=sample, with fewer passes: a draft model q proposes `draft` tokens at a time.

    A proposed token v is accepted with the probability min(1, p(v) / q(v)); at the first rejection the token is drawn
    from max(0, p - q), normalized (arXiv:2302.01318 proves the same).  After `draft` accepted tokens, one more comes
    from p.  p and q are both processed by the settings.  temperature=0: the tokens are those of decode=greedy.
    N prompts -> one continuation each, prompt by prompt.
    """

    needs_second_model, samples = True, True

    def __init__(
        self,
        *,
        draft: Annotated[int, Positive, "number of tokens that the second model proposes at a time"] = 4,
        temperature: Temperature = 1.0,
        top_k: TopK = 0,
        top_p: TopP = 1.0,
        min_p: MinP = 0.0,
        typical: Typical = 1.0,
        repetition: Repetition = 1.0,
        no_repeat_ngram: NoRepeatNgram = 0,
    ) -> None:
        self.draft = draft
        self.settings = LogitsProcessors(temperature, top_k, top_p, min_p, typical, repetition, no_repeat_ngram)

    def __call__(self, job: DecodingJob) -> Sequence[Sequence[Continuation]]:
        return [[self._one(job.only(row))] for row in range(len(job.prompts))]

    @torch.no_grad()
    def _one(self, job: DecodingJob) -> Continuation:
        (tail,) = tails_of(job.ending, 1)
        target, drafter = Reader(job.open()), Reader(job.open(job.second_model))
        generator = job.generator(0, target.texts.logits.device)
        while len(tail.ids) < job.ending.new_tokens and target.fits(0):
            # One less than what is left: the model adds a token of its own after the accepted ones.
            count = min(self.draft, job.ending.new_tokens - len(tail.ids) - 1)
            # Fewer are drafted near the end of either model's positions.
            while count and not (target.fits(count) and drafter.fits(count)):
                count -= 1
            proposed, q = self._propose(drafter, tail.copy(), count, generator)
            # One pass of the model scores all drafted tokens; that is the whole saving.
            logits, known = target.read(proposed), target.known
            accepted = self._accept(logits, known, proposed, q, tail.copy(), generator)
            for place, token in enumerate(accepted):
                if ended := tail.add(token, float(logits[place].log_softmax(-1)[token])):
                    return tail.finished(ended)
            target.accept(accepted)
            drafter.accept(accepted)
        return tail.finished("length")

    def _propose(
        self, drafter: "Reader", tail: Tail, count: int, generator: torch.Generator
    ) -> tuple[list[int], list[Tensor]]:
        """Draft up to `count` tokens: (tokens, the distribution (V,) that each was drawn from)."""
        tokens, chances = list[int](), list[Tensor]()
        for _ in range(count):
            # Penalties and choices see the drafted tokens, as they would in sampling token by token.
            q = self._chances(drafter.read(tokens)[-1], torch.cat([drafter.known, _row(tokens, drafter)], dim=1), tail)
            tokens.append(int(torch.multinomial(q, 1, generator=generator)))
            chances.append(q)
            if tail.add(tokens[-1], 0.0):
                break
        return tokens, chances

    def _accept(
        self, logits: Tensor, known: Tensor, proposed: Sequence[int], drafted: Sequence[Tensor], tail: Tail,
        generator: torch.Generator,
    ) -> list[int]:  # fmt: skip
        """Return the accepted tokens and the one after them, which is drawn from the model."""
        accepted: list[int] = []
        for place in range(len(proposed) + 1):
            text = torch.cat([known, known.new_tensor([accepted])], dim=1) if accepted else known
            p = self._chances(logits[place], text, tail)
            if place == len(proposed):
                break
            token, q = proposed[place], drafted[place]
            # u q >= p rejects, without a division: q may be tiny, and p = 0 is always rejected.
            if float(torch.rand(1, generator=generator, device=p.device)) * float(q[token]) >= float(p[token]):
                rest = (p - q).clamp(min=0)
                p = rest if bool(rest.any()) else p  # equal but for rounding
                break
            accepted.append(token)
            if tail.add(token, 0.0):
                return accepted
        return [*accepted, int(torch.multinomial(p, 1, generator=generator))]

    def _chances(self, logits: Tensor, tokens: Tensor, tail: Tail) -> Tensor:
        """Probabilities (V,) of the next token: logits (V,), tokens (1, S) of the text."""
        allowed = only_allowed(self.settings.penalize(logits[None], tokens), [tail])
        return self.settings.warp(allowed).softmax(-1)[0]


class Reader:
    """A text in one of the models: what is known of it, and what the model has read.

    known    (1, S) tokens of the text
    pending  the last of them, which the model has not read
    """

    def __init__(self, texts: Texts) -> None:
        self.texts, self.known, self.pending = texts, texts.tokens, list[int]()
        self.start, self.tried = texts.mark(), list[int]()

    def fits(self, tokens: int) -> bool:
        """True if the model supports the pending tokens and so many more."""
        return self.texts.fits(len(self.pending) + tokens)

    def read(self, tokens: Sequence[int]) -> Tensor:
        """Read the text so far and `tokens` after it, as far as this is not done: logits (1 + n, V) after each.

        Calls for one text must extend each other until `accept`; the logits that an earlier call returned are left out.
        """
        new = [*self.pending, *tokens][len(self.tried) :]
        if not new:
            return self.texts.logits
        before = self.texts.logits
        after = self.texts.extend_by(_row(new, self))[0]
        first = max(0, len(self.pending) - len(self.tried))  # tokens of the text that were read just now
        self.tried += new
        return after[first - 1 :] if first else torch.cat([before, after])

    def accept(self, tokens: Sequence[int]) -> None:
        """Go on after `tokens`: what was read beside them is forgotten."""
        text = [*self.pending, *tokens]
        same = 0
        # The cache is cut back to the longest common start, not read again.
        while same < min(len(text), len(self.tried)) and text[same] == self.tried[same]:
            same += 1
        self.texts.keep(self.start, _row(self.tried, self), same)
        self.known = torch.cat([self.known, _row(tokens, self)], dim=1)
        self.start, self.tried, self.pending = self.texts.mark(), [], text[same:]


def _row(tokens: Sequence[int], reader: Reader) -> Tensor:
    return torch.tensor([tokens], dtype=torch.long, device=reader.known.device)
