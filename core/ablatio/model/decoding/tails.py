"""The growing continuation of one text, and what ends it."""

from __future__ import annotations

from collections.abc import Sequence

from ablatio.model.decoding.choices import Choices
from ablatio.model.decoding.job import Continuation, Ending, Finished


class Tail:
    """Tokens of one continuation so far and the sum of their log-probabilities."""

    __slots__ = ("choices", "count", "ending", "ids", "logprob")

    def __init__(self, ending: Ending, choices: Choices | None = None) -> None:
        self.ending, self.choices = ending, choices
        self.ids: list[int] = []
        self.logprob, self.count = 0.0, 0

    def copy(self) -> Tail:
        """An equal tail that grows by itself."""
        other = Tail(self.ending, self.choices)
        other.ids, other.logprob, other.count = [*self.ids], self.logprob, self.count
        return other

    def allowed(self) -> list[int] | None:
        """Tokens that may follow; None: any."""
        if self.choices is None:
            return None
        tokens, complete = self.choices.after(self.ids)
        return [*tokens, *self.ending.stop_ids] if complete else tokens

    def add(self, token: int, logprob: float) -> Finished | None:
        """Append a token; return what ends the continuation with it, or None if it goes on."""
        self.logprob += logprob
        self.count += 1
        if token in self.ending.stop_ids:
            return "stop"
        self.ids.append(token)
        if self.choices is not None and self.choices.after(self.ids) == ([], True):
            return "stop"
        if self.ending.strings and self._has_string():
            return "stop"
        return "length" if len(self.ids) >= self.ending.new_tokens else None

    def finished(self, how: Finished, score: float | None = None) -> Continuation:
        """The continuation, cut before its first stop string; `score`: by default its log-probability."""
        ids, text = cut(self.ids, self.ending) if self.ending.strings else ([*self.ids], None)
        return Continuation(ids, self.logprob, self.count, how, self.logprob if score is None else score, text)

    def _has_string(self) -> bool:
        """True if a stop string ends in the last token: only as many tokens are decoded as it may reach over."""
        assert self.ending.text_of is not None
        longest = max(len(s.encode()) for s in self.ending.strings)
        text = self.ending.text_of(self.ids[-longest - 4 :])  # 4: a character that began before has at most 4 bytes
        return any(s in text for s in self.ending.strings)


def cut(ids: Sequence[int], ending: Ending) -> tuple[list[int], str]:
    """The text before the first stop string, and the most tokens whose text ends there or before."""
    assert ending.text_of is not None
    text = ending.text_of(ids)
    found = [place for s in ending.strings if (place := text.find(s)) >= 0]
    if not found:
        return [*ids], text
    kept = len(ids)
    while kept and len(ending.text_of(ids[:kept])) > min(found):
        kept -= 1
    return [*ids[:kept]], text[: min(found)]
