"""A language model as text in, text out: batched, counted, deterministic in the seed."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ablatio.data.types import Tokenizer, start_id
from ablatio.model.decoding.job import Continuation, DecodingJob, Ending, Judge
from ablatio.model.decoding.logits import LogitsProcessors
from ablatio.model.decoding.steps import chooser, token_by_token
from ablatio.model.decoding.texts import Texts
from ablatio.model.example import Example
from ablatio.model.parameter_roles import named_seed
from ablatio.model.prompting.triggers import token_candidates
from ablatio.model.prompting.types import Completion, Usage
from ablatio.model.rl.token_logprobs import MAX_LOGITS


class Session:
    """TextModel of a trained model: prompts and continuations are texts, each prompt is the start of a document.

    decode     the decode part for single continuations
    tokens     largest number of new tokens, unless a call says otherwise
    rows       number of texts that are read or continued at once
    second     second model, for decode parts that need one
    judge      scores of continuations for decode parts that use them: (prompt, texts) -> one number each
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        decode: Any,
        *,
        tokens: int = 64,
        seed: int = 1,
        rows: int = 32,
        second: Any = None,
        judge: Callable[[str, Sequence[str]], Sequence[float]] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.decode, self.second, self.judge = model, tokenizer, decode, second, judge
        self.tokens, self.seed, self.rows = tokens, seed, rows
        self.usage = Usage()
        self.decoded = False  # True once the decode part has chosen tokens, or given its settings to a sample
        self._asked: dict[str, int] = {}  # how often each prompt was continued so far

    def complete(
        self,
        prompts: Sequence[str],
        *,
        stop: Sequence[str] = (),
        samples: int = 1,
        tokens: int | None = None,
        temperature: float | None = None,
    ) -> list[list[Completion]]:
        """Return `samples` continuations of each prompt; see TextModel."""
        ids, ending = self.ids(prompts), self._ending(stop, tokens)
        streams = self._streams(prompts)
        decode, count = self._decoder(samples, temperature), max(1, self.rows // samples)
        numbers: list[list[Continuation]] = []
        for start in range(0, len(ids), count):
            part = slice(start, start + count)
            job = DecodingJob(
                self.model.eval(), ids[part], ending, self.second, self._judge(prompts[part]), self.seed, streams[part]
            )
            if samples == 1:
                numbers += [[found[0]] for found in decode(job)]
            else:
                drawn = [found[0] for found in decode(job.repeated(samples))]
                numbers += [drawn[i : i + samples] for i in range(0, len(drawn), samples)]
        self.usage.calls += len(prompts)
        self.usage.read += sum(map(len, ids))
        self.usage.generated += sum(c.tokens for row in numbers for c in row)
        return [[self._completion(c) for c in row] for row in numbers]

    @torch.no_grad()
    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> NDArray[np.float64]:
        """Return log p(continuation | prompt) of each pair in nats: (N,).

        Prompt and continuation are tokenized together; tokens that end after the prompt count for the continuation.
        """
        rows = [self.pair(p, c) for p, c in zip(prompts, continuations, strict=True)]
        found = np.zeros(len(rows))
        for part in self._batches([ids for ids, _ in rows]):
            found[part] = self._scores([rows[i] for i in part])
        self.usage.calls += len(rows)
        self.usage.read += sum(len(ids) for ids, _ in rows)
        return found

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the mean of the final hidden states of each text: (N, D)."""
        ids = self.ids(texts)
        found: list[NDArray[np.float64]] = [np.zeros(0)] * len(ids)
        for part in self._batches(ids):
            tokens, mask = _right_padded([ids[i] for i in part])
            states = self.model.eval().hidden(Example(tokens.to(self._device), tokens.to(self._device))).double()
            means = (states * mask.to(states)[:, :, None]).sum(1) / mask.to(states).sum(1, keepdim=True)
            for i, row in zip(part, means.cpu().numpy(), strict=True):
                found[i] = row
        self.usage.calls += len(ids)
        self.usage.read += sum(map(len, ids))
        return np.stack(found)

    def token_candidates(self, prompts: Sequence[str], trigger: str, answers: Sequence[str], k: int) -> list[list[str]]:
        """Return triggers with one token replaced, k for each place; see TextModel."""
        return token_candidates(self, prompts, trigger, answers, k)

    def random(self, name: str) -> random.Random:
        """Return the random numbers of this name."""
        return random.Random(named_seed(self.seed, f"prompt/{name}"))

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, as the start of a document."""
        start = start_id(self.tokenizer)
        return [[start, *map(int, ids)] for ids in self.tokenizer.encode(list(texts))]

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def _ending(self, stop: Sequence[str], tokens: int | None) -> Ending:
        ends = tuple(dict.fromkeys((self.tokenizer.eos, start_id(self.tokenizer))))
        return Ending(self.tokens if tokens is None else tokens, ends, tuple(stop), self.text)

    def text(self, ids: Sequence[int]) -> str:
        """Text of token ids; ids beyond the tokenizer's, as sentinels, are left out."""
        return self.tokenizer.decode([i for i in ids if i < self.tokenizer.vocab_size])

    def _batches(self, ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Numbers of consecutive texts, `rows` at a time."""
        for start in range(0, len(ids), self.rows):
            yield list(range(start, min(start + self.rows, len(ids))))

    def _decoder(self, samples: int, temperature: float | None) -> Any:
        """The decode part, or sampling if it gives only one continuation of a prompt."""
        if temperature is None and (samples == 1 or getattr(self.decode, "samples", False)):
            self.decoded = True
            return self.decode
        processors = getattr(self.decode, "processors", LogitsProcessors())
        self.decoded |= hasattr(self.decode, "processors")
        processors = replace(processors, temperature=1.0 if temperature is None else temperature)
        return lambda job: token_by_token(job, processors, chooser(job, processors))

    def _streams(self, prompts: Sequence[str]) -> list[int]:
        """Random stream of each prompt: the same for the same text, another one each time that it is asked again."""
        found = []
        for prompt in prompts:
            number = self._asked[prompt] = self._asked.get(prompt, -1) + 1
            found.append(named_seed(number, prompt))
        return found

    def _judge(self, prompts: Sequence[str]) -> Judge | None:
        judge = self.judge
        if judge is None:
            return None
        return lambda row, found: judge(prompts[row], [self.text(ids) for ids in found])

    def pair(self, prompt: str, continuation: str) -> tuple[list[int], int]:
        """Token ids of prompt and continuation, and the number of those that end within the prompt."""
        (before, whole) = self.ids([prompt, prompt + continuation])
        same = 0
        while same < len(before) and same < len(whole) and before[same] == whole[same]:
            same += 1
        return whole, min(same, len(whole) - 1)

    def _scores(self, rows: Sequence[tuple[list[int], int]]) -> NDArray[np.float64]:
        """Log-probability of the tokens after the first n of each row."""
        if self.model.opens or hasattr(self.model, "encoder"):
            return np.array([self._score_after_source(ids[:n], ids[n:]) for ids, n in rows])
        if (shared := self._scores_after_shared(rows)) is not None:
            return shared
        tokens, mask = _right_padded([ids for ids, _ in rows])
        tokens = tokens.to(self._device)
        losses = self.model.eval().token_losses(Example(tokens[:, :-1], tokens[:, 1:]))
        first = torch.tensor([n for _, n in rows])[:, None]
        scored = mask[:, 1:] & (torch.arange(1, tokens.shape[1]) >= first)
        found: NDArray[np.float64] = -(losses.double().cpu() * scored).sum(1).numpy()
        return found

    def _scores_after_shared(self, rows: Sequence[tuple[list[int], int]]) -> NDArray[np.float64] | None:
        """As _scores, with each different prompt read once; None where few are equal, or if it takes too much memory.

        The choices of a question, and the answers that calibration or order=entropy compare, have one prompt.
        """
        prompts, rest = [ids[:n] for ids, n in rows], [ids[n:] for ids, n in rows]
        tokens, mask = _right_padded(rest)
        few = 2 * len(set(map(tuple, prompts))) <= len(rows) and min(map(len, prompts)) > 0
        if not few or tokens.numel() * self.model.vocab_size > MAX_LOGITS:
            return None
        tokens, texts = tokens.to(self._device), Texts(self.model.eval(), prompts)
        if not texts.fits(tokens.shape[1]):
            return None
        logits = texts.logits[:, None]  # (N, 1, V)
        if tokens.shape[1] > 1:
            logits = torch.cat([logits, texts.extend_by(tokens[:, :-1])], dim=1)  # (N, n, V)
        logps = logits.log_softmax(-1).gather(2, tokens[:, :, None])[:, :, 0]
        found: NDArray[np.float64] = (logps.double().cpu() * mask).sum(1).numpy()
        return found

    def _score_after_source(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """Log-probability of an answer in a model that reads the prompt as a source: the answer begins after eos."""
        source, targets = torch.tensor([list(prompt)]), torch.tensor([list(answer)])
        inputs = torch.tensor([[self.model.eos, *answer[:-1]]])
        example = Example(inputs, targets, source=source).to(self._device)
        return -float(self.model.eval().token_losses(example).double().sum())

    def _completion(self, found: Continuation) -> Completion:
        return Completion(self.text(found.ids) if found.text is None else found.text, found.logprob, found.tokens)


def _right_padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (N, T), padded on the right, which a causal model does not see; and True where there is a token."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    return tokens, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
