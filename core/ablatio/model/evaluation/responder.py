"""Answer requests with a model: likelihoods of continuations and generated texts, in batches of similar length."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ablatio.data.items import Generation, Likelihood, Request, Response
from ablatio.data.types import Tokenizer, start_id
from ablatio.errors import UserError
from ablatio.model.decoding.job import DecodingJob, Ending
from ablatio.model.decoding.rollout import Rollout, sample_rollouts
from ablatio.model.example import PADDING, Example
from ablatio.model.language_model import Encoder, EncoderDecoder, LanguageModel
from ablatio.model.parameter_roles import named_generator, named_seed
from ablatio.model.rl.policy_outputs import states_of
from ablatio.model.rl.token_logprobs import MAX_LOGITS

log = logging.getLogger(__name__)
T = TypeVar("T")
Pair = tuple[list[int], list[int]]  # ids of a context, with the token that opens a text, and of its continuation


class Responder:
    """Answers requests with one model; equal requests are answered once.

    A response depends on the model and its request alone, up to rounding: not on the other requests, their order or
    the batch size.

    length   most tokens of a row.  A longer context loses its beginning, which is logged.  A continuation that does not
             fit by itself is read in windows of this length, each of which begins after the last token of the one
             before.  Generated texts are shorter than asked for where their prompt leaves less room, down to half a row
    rows     requests that are processed at once
    decode   part of the kind `decode` for single answers; None: the most probable token at each step
    between  called as between(n) after n requests, to show progress or to stop by an exception
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        length: int,
        *,
        rows: int = 32,
        decode: Any = None,
        between: Callable[[int], None] = lambda done: None,
    ) -> None:
        if isinstance(model, Encoder):
            raise UserError(
                "this model is an encoder: it predicts masked tokens and gives no probability to a continuation\n"
                "    try: a run with architecture=causal, prefix or encoder_decoder"
            )
        self.model, self.tokenizer, self.length, self.rows, self.between = model, tokenizer, length, rows, between
        self.start, self.done, self.decode = start_id(tokenizer), 0, decode
        self.cut = set[Request]()  # requests whose context has lost its beginning
        self.unended = set[Generation]()  # requests whose stop texts did not come

    @torch.no_grad()
    def __call__(self, requests: Sequence[Request]) -> list[Response]:
        """Return the response to each request."""
        unique = list(dict.fromkeys(requests))
        self.done, was_training = 0, self.model.training
        self.model.eval()
        try:
            found = self._likelihoods([r for r in unique if isinstance(r, Likelihood)])
            found |= self._generations([r for r in unique if isinstance(r, Generation)])
        finally:
            self.model.train(was_training)
        self._tell_what_was_cut(len(unique))
        self._tell_what_did_not_end(sum(isinstance(r, Generation) for r in unique))
        return [found[request] for request in requests]

    def _tell_what_was_cut(self, asked: int) -> None:
        if self.cut:
            longest = max((r.prompt if isinstance(r, Generation) else r.context for r in self.cut), key=len)
            log.warning(
                "%d of %d prompts do not fit into rows of %d tokens (model.max_len) together with their answers, and "
                "were read without their beginning; the longest has %d characters",
                len(self.cut), asked, self.length, len(longest),
            )  # fmt: skip
        self.cut.clear()

    def _tell_what_did_not_end(self, asked: int) -> None:
        if self.unended:
            stops = dict.fromkeys(stop for request in self.unended for stop in request.stop)
            log.warning(
                "no stop text (%s) came in %d of %d answers: they are scored with all tokens that were allowed",
                ", ".join(map(repr, stops)), len(self.unended), asked,
            )  # fmt: skip
        self.unended.clear()

    def _count(self, number: int) -> None:
        self.done += number
        self.between(self.done)

    def _likelihoods(self, requests: Sequence[Likelihood]) -> dict[Request, Response]:
        pairs = _pairs(self.tokenizer, requests, self.start)
        windows = [list(self._windows(*pair)) for pair in pairs]
        flat = [window for of_request in windows for window in of_request]
        logps: list[tuple[list[float], list[bool]]] = [([], [])] * len(flat)
        for batch in _by_length(range(len(flat)), self.rows, lambda i: sum(map(len, flat[i]))):
            for i, found in zip(batch, self._score([flat[i] for i in batch]), strict=True):
                logps[i] = found
            self._count(len(batch))
        responses, at = dict[Request, Response](), iter(logps)
        fits = {
            r: len(before) + len(after) <= self.length + 1 for r, (before, after) in zip(requests, pairs, strict=True)
        }
        # A text without a context is read whole, in several rows.
        self.cut |= {r for r, fitting in fits.items() if r.context and not fitting}
        for request, of_request in zip(requests, windows, strict=True):
            parts = [next(at) for _ in of_request]
            each = tuple(x for logp, _ in parts for x in logp)
            size = len(request.continuation.encode("utf-8", "replace"))
            responses[request] = Response(each, bool(each) and all(hit for _, hits in parts for hit in hits), size)
        return responses

    def _windows(self, context: list[int], continuation: list[int]) -> Iterator[Pair]:
        """Split a continuation that does not fit into a row; the last input token predicts the last target."""
        if not continuation:
            return
        if len(continuation) <= self.length:
            yield context[-(self.length + 1 - len(continuation)) :] or [self.start], continuation
            return
        tokens = context + continuation
        for first in range(0, len(continuation), self.length):
            part = continuation[first : first + self.length]
            before = len(context) + first
            yield tokens[max(0, before - 1) : before], part

    def _score(self, pairs: Sequence[Pair]) -> list[tuple[list[float], list[bool]]]:
        """Return, for each pair, log-probability and rank-one hit of each token of the continuation."""
        device = next(self.model.parameters()).device
        rollout = _rollout(pairs, device)
        if self.model.opens or isinstance(self.model, EncoderDecoder):
            states = _target_states(self.model, rollout)  # (B, T, D)
        else:
            states = states_of(self.model, rollout)
        kept = rollout.mask.bool()
        states, tokens = states[kept], rollout.tokens[kept]  # (N, D), (N,)
        logps, hits = [torch.zeros(0, device=device)], [torch.zeros(0, dtype=torch.bool, device=device)]
        rows = max(1, MAX_LOGITS // self.model.vocab_size)
        for s, t in zip(torch.split(states, rows), torch.split(tokens, rows), strict=True):
            logits = self.model.logits(s).float()
            logps.append(logits.gather(1, t[:, None])[:, 0] - logits.logsumexp(-1))
            hits.append(logits.argmax(-1) == t)
        sizes = [len(continuation) for _, continuation in pairs]
        each = zip(
            torch.split(torch.cat(logps).double().cpu(), sizes), torch.split(torch.cat(hits).cpu(), sizes), strict=True
        )
        return [(logp.tolist(), hit.tolist()) for logp, hit in each]

    def _generations(self, requests: Sequence[Generation]) -> dict[Request, Response]:
        """Sample the continuations; requests with the same settings are decoded together."""
        encoded = self.tokenizer.encode([r.prompt for r in requests]) if requests else []
        prompts = {r: [self.start, *map(int, ids)] for r, ids in zip(requests, encoded, strict=True)}
        by_settings: dict[tuple[int, int, float], list[Generation]] = {}
        for request, ids in prompts.items():
            # A prompt keeps at least half of the row: it is more to the point than the end of a long answer.
            room = min(request.tokens, max(self.length - len(ids), self.length // 2), self.length - 1)
            self.cut |= {request} if len(ids) > self.length - room else set()
            prompts[request] = ids[-(self.length - room) :]
            by_settings.setdefault((room, request.samples, request.temperature), []).append(request)
        found: dict[Request, Response] = {}
        for (room, samples, temperature), same in by_settings.items():
            for batch in _by_length(same, max(1, self.rows // samples), lambda r: len(r.prompt)):
                texts = self._sample(batch, [prompts[r] for r in batch], room, samples, temperature)
                found |= {request: Response(texts=t) for request, t in zip(batch, texts, strict=True)}
                self._count(len(batch))
        return found

    def _sample(
        self, requests: Sequence[Generation], prompts: list[list[int]], room: int, samples: int, temperature: float
    ) -> list[tuple[str, ...]]:
        if self.decode is not None and samples == 1 and temperature == 0:
            return self._decoded(requests, prompts, room)
        draws = None if temperature == 0 else _draws(requests, samples, room)
        rollout = sample_rollouts(
            self.model, prompts, draws, stop=self.tokenizer.eos, new_tokens=room, group=samples,
            temperature=temperature or 1.0, rows=self.rows,
        )  # fmt: skip
        ids = [rollout.answer(row, self.tokenizer.eos) for row in range(len(rollout))]
        texts = [
            self._ended(requests[row // samples], self._text(own), len(own) == room and self.start not in own)
            for row, own in enumerate(ids)
        ]
        return [tuple(texts[i : i + samples]) for i in range(0, len(texts), samples)]

    def _decoded(self, requests: Sequence[Generation], prompts: list[list[int]], room: int) -> list[tuple[str, ...]]:
        """The first answer of the decode part to each prompt; its random stream depends on the request alone."""
        ending = Ending(room, tuple(dict.fromkeys((self.tokenizer.eos, self.start))))
        streams = [named_seed(request.seed, request.prompt) for request in requests]
        found = self.decode(DecodingJob(self.model, prompts, ending, seed=1, streams=streams))
        return [
            (self._ended(request, self._text(row[0].ids), row[0].finished == "length"),)
            for request, row in zip(requests, found, strict=True)
        ]

    def _ended(self, request: Generation, text: str, full: bool) -> str:
        """Return the text up to its stop text; `full`: it has all tokens that were allowed."""
        found = until(text, request.stop)
        if request.stop and full and found == text:
            self.unended.add(request)
        return found

    def _text(self, ids: Sequence[int]) -> str:
        """Decode ids up to the start of another document; ids beyond the tokenizer's have no text."""
        ids = ids[: ids.index(self.start)] if self.start in ids else ids
        return self.tokenizer.decode([i for i in ids if i < self.tokenizer.vocab_size])


def until(text: str, stops: Sequence[str]) -> str:
    """Return the text up to the first of the stop texts that it contains."""
    return text[: min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=len(text))]


def _draws(requests: Sequence[Generation], samples: int, length: int) -> Tensor:
    """Uniform random numbers (requests x samples, length); those of a request depend on it alone."""
    rows = []
    for request in requests:
        name = hashlib.sha256(request.prompt.encode("utf-8", "replace")).hexdigest()
        for k in range(samples):
            rows.append(torch.rand(length, generator=named_generator(request.seed, f"evaluation/{name}/{k}")))
    return torch.stack(rows)


def _pairs(tokenizer: Tokenizer, requests: Sequence[Likelihood], start: int) -> list[Pair]:
    """Encode context and continuation as one text, and split its ids after as many as the context alone has.

    Spaces at the end of a context belong to the continuation, because tokens begin with a space.  Both as in lm-eval.
    """
    if not requests:
        return []
    contexts = [r.context.rstrip(" ") for r in requests]
    whole = tokenizer.encode([r.context + r.continuation for r in requests])
    before = tokenizer.encode(contexts)
    return [
        ([start, *map(int, ids[: len(first)])], [*map(int, ids[len(first) :])])
        for ids, first in zip(whole, before, strict=True)
    ]


def _rollout(pairs: Sequence[Pair], device: torch.device) -> Rollout:
    """Contexts padded on the left and continuations padded on the right."""
    width, length = max(len(c) for c, _ in pairs), max(1, *(len(t) for _, t in pairs))
    prompts = torch.tensor([[0] * (width - len(c)) + c for c, _ in pairs], device=device)
    tokens = torch.tensor([t + [0] * (length - len(t)) for _, t in pairs], device=device)
    mask = torch.tensor([[1.0] * len(t) + [0.0] * (length - len(t)) for _, t in pairs], device=device)
    sizes = torch.tensor([len(c) for c, _ in pairs], device=device)
    return Rollout(prompts, sizes, tokens, mask, torch.zeros_like(mask))


def _target_states(model: LanguageModel, rollout: Rollout) -> Tensor:
    """Hidden states that predict the continuation, for a model that reads the context as the source: (B, T, D)."""
    width = rollout.prompts.shape[1]
    places = torch.arange(width, device=rollout.prompts.device)
    source_segments = torch.where(places < width - rollout.prompt_length[:, None], PADDING, 0)
    inputs = torch.cat([rollout.tokens.new_full((len(rollout), 1), model.eos), rollout.tokens[:, :-1]], dim=1)
    segments = torch.where(rollout.mask.bool(), 0, PADDING)
    return model.hidden(Example(inputs, rollout.tokens, rollout.mask, segments, rollout.prompts, source_segments))


def _by_length(items: Sequence[T], size: int, length: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield batches of items of similar length, the longest first: memory does not grow later."""
    ordered = sorted(items, key=length, reverse=True)
    for first in range(0, len(ordered), size):
        yield ordered[first : first + size]
