"""A TextModel that says what a script says: for tests of prompt programs."""

import hashlib
import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ablatio.model.prompting.types import Completion, Usage

Says = Callable[[str, int], str]  # (prompt, how often it was continued before) -> continuation
Scores = Callable[[str, str], float]  # (prompt, continuation) -> log-probability
Embeds = Callable[[str], Sequence[float]]


def hashed(*texts: str) -> float:
    """A number from 0 to 1 that depends on the texts."""
    return int.from_bytes(hashlib.sha256("\x00".join(texts).encode()).digest()[:6], "big") / 2**48


class ScriptedModel:
    """Continues, scores and embeds by functions; records its calls.

    says    by default "The answer is N." with a number that depends on the prompt and on how often it came
    scores  by default numbers that depend on both texts
    embeds  by default vectors that depend on the text
    calls   (prompt, continuation) of each completion, in order
    """

    def __init__(
        self, says: Says | None = None, scores: Scores | None = None, embeds: Embeds | None = None, *, seed: int = 1
    ) -> None:
        self.says: Says = says or (lambda prompt, n: f" The answer is {int(5 * hashed(prompt, str(n)))}.\n")
        self.scores: Scores = scores or (lambda prompt, text: -4 * hashed(prompt, text))
        self.embeds: Embeds = embeds or (lambda text: [2 * hashed(text, str(i)) - 1 for i in range(4)])
        self.seed, self.usage, self.calls = seed, Usage(), list[tuple[str, str]]()
        self.scored: list[tuple[str, str]] = []
        self.asked: list[dict[str, object]] = []
        self._times: dict[str, int] = {}

    def complete(
        self,
        prompts: Sequence[str],
        *,
        stop: Sequence[str] = (),
        samples: int = 1,
        tokens: int | None = None,
        temperature: float | None = None,
    ) -> list[list[Completion]]:
        """Continue as the script says, up to the first stop string; a token is a character."""
        self.asked.append({"stop": tuple(stop), "samples": samples, "tokens": tokens, "temperature": temperature})
        return [[self._one(prompt, stop) for _ in range(samples)] for prompt in prompts]

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> NDArray[np.float64]:
        """The scripted log-probabilities."""
        pairs = list(zip(prompts, continuations, strict=True))
        self.scored += pairs
        self._count([p + c for p, c in pairs], "")
        return np.array([self.scores(p, c) for p, c in pairs], dtype=np.float64)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The scripted vectors."""
        self._count(texts, "")
        return np.array([self.embeds(text) for text in texts], dtype=np.float64)

    def token_candidates(self, prompts: Sequence[str], trigger: str, answers: Sequence[str], k: int) -> list[list[str]]:
        """For each word of the trigger, the k triggers with a letter in its place."""
        words, letters = trigger.split(), "abcdefgh"[:k]
        return [[" ".join([*words[:i], a, *words[i + 1 :]]) for a in letters] for i in range(len(words))]

    def random(self, name: str) -> random.Random:
        """Random numbers by name."""
        return random.Random(int(2**48 * hashed(str(self.seed), name)))

    def _one(self, prompt: str, stop: Sequence[str]) -> Completion:
        number = self._times[prompt] = self._times.get(prompt, -1) + 1
        text = self.says(prompt, number)
        text = text[: min([text.find(s) for s in stop if s in text], default=len(text))]
        self.calls.append((prompt, text))
        self._count([prompt], text)
        return Completion(text, -float(len(text)), len(text))

    def _count(self, read: Sequence[str], generated: str) -> None:
        self.usage.calls += len(read)
        self.usage.read += sum(map(len, read))
        self.usage.generated += len(generated)
