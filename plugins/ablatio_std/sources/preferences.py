"""Sources of preference feedback: pairs, rankings, scores and Elo ratings in data files, and a generated set."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from ablatio import Range, sources
from ablatio.data.data_files import files_digest, find_files
from ablatio.data.records import ENDINGS, UnusedFields, records
from ablatio.data.types import Conversation, Document, Feedback, Message
from ablatio.errors import UserError

from ._judged import feedback_of
from ._records import as_documents


@sources.register("feedback")
class FeedbackLines:
    """Answers to prompts with preferences from JSON Lines, a JSON list, CSV, Parquet or Arrow: a file, folder or glob.

    A record is a pair (chosen, rejected), a ranking (answers, the best first), answers with scores or Elo ratings, one
    answer with a label, or a solution in `steps` with their `labels`.  A prompt is a text or a list of messages (role,
    content); the turns of `conversations` or `messages` and the fields of alpaca (instruction, input) are one, too.  If
    chosen and rejected are whole conversations, as messages or as strings of "Human:" and "Assistant:", their common
    turns are the prompt.

    For tasks that train on conversations it provides the best answer of each record, and of labeled answers those with
    a true label.
    """

    def __init__(
        self,
        *,
        path: Annotated[str, "a file, a folder or a glob; .gz, .xz and .zst are decompressed"] = "",
        split_by: Annotated[
            Literal["prompt", "all"], "text whose hash assigns the split: the prompt, or prompt and answers"
        ] = "prompt",
    ) -> None:
        self.path, self.split_by = path, split_by
        self.unused_fields: dict[str, int] = {}

    def _files(self) -> list[Path]:
        return find_files(self.path, "feedback", ENDINGS, "data.jsonl")

    def feedback(self) -> Iterator[Feedback]:
        unused = UnusedFields()
        for file in self._files():
            for record in records(file):
                found = feedback_of(record, unused)
                yield replace(found, key=found.text) if self.split_by == "all" else found
        self.unused_fields = unused.close("feedback")

    def conversations(self) -> Iterator[Conversation]:
        yield from _demonstrations(self.feedback())

    def documents(self) -> Iterator[Document]:
        yield from as_documents(self.feedback())

    def fingerprint(self) -> str:
        by = [] if self.split_by == "prompt" else [self.split_by]
        return files_digest(self._files(), "feedback-2", *by)


@sources.register("sentiment")
class Sentiment:
    """Openings of State of the Union sentences with K continuations each, ranked by VADER's sentiment score.

    Sentences that share their first `opening` words are continuations of the same prompt.  VADER (Hutto & Gilbert 2014,
    doi:10.1609/icwsm.v8i1.14550) can also score what a model writes, as a gold reward.  For tasks that train on
    conversations it provides the best continuation of each prompt, or all of them.
    Source: controlled sentiment, as in arXiv:2305.18290, section 6.
    """

    packages = ("vaderSentiment=ablatio[sentiment]",)

    def __init__(
        self,
        *,
        size: Annotated[int, Range(20, 100_000), "largest number of prompts in both splits together"] = 1000,
        answers: Annotated[int, Range(2, 16), "answers per prompt"] = 2,
        opening: Annotated[int, Range(1, 8), "words of a prompt"] = 2,
        gap: Annotated[float, Range(0, 2), "least difference in sentiment (-1 to 1) between two answers"] = 0.3,
        shown: Annotated[Literal["best", "all"], "answers provided as conversations"] = "best",
        seed: Annotated[int, Range(0, 2**31), "seed of the selection"] = 1,
        before: Annotated[str, "text before each prompt, such as a tag that the model knows"] = "",
    ) -> None:
        self.size, self.answers, self.opening, self.gap, self.seed = size, answers, opening, gap, seed
        self.shown, self.before = shown, before

    def feedback(self) -> Iterator[Feedback]:
        judge = sentiment_of()
        rng = np.random.Generator(np.random.PCG64(self.seed))
        endings = self._endings()
        openings = sorted(endings)
        count = 0
        for opening in (openings[i] for i in rng.permutation(len(openings))):
            found = endings[opening]
            # Eight candidates for each answer bound the work; most openings need fewer to find answers that far apart.
            drawn = [found[i] for i in rng.permutation(len(found))[: 8 * self.answers]]
            chosen: list[tuple[float, str]] = []
            for text in drawn:
                score = judge(f"{opening} {text}")
                # Each against all that were chosen: every pair of answers is then at least `gap` apart.
                if all(abs(score - other) >= self.gap and text != known for other, known in chosen):
                    chosen.append((score, text))
            if len(chosen) < self.answers:
                continue
            texts, scores = [t for _, t in chosen[: self.answers]], [s for s, _ in chosen[: self.answers]]
            asked = Message("user", self.before + opening)
            yield Feedback((asked,), tuple(texts), tuple(scores), f"sentiment:{opening}")
            count += 1
            if count == self.size:
                return

    def _endings(self) -> dict[str, list[str]]:
        """Opening words -> the continuations of sentences, in the order of the messages."""
        found: dict[str, list[str]] = defaultdict(list)
        for document in sources.build("sotu").documents():
            for sentence in re.split(r"(?<=[.!?])\s+", document.text):
                words = sentence.split()
                # Continuations of 4 to 30 words: shorter ones have no sentiment, longer ones do not fit small models.
                if self.opening + 4 <= len(words) <= self.opening + 30:
                    found[" ".join(words[: self.opening])].append(" ".join(words[self.opening :]))
        return {opening: list(dict.fromkeys(texts)) for opening, texts in found.items() if len(texts) >= self.answers}

    def conversations(self) -> Iterator[Conversation]:
        if self.shown == "best":
            yield from _demonstrations(self.feedback())
            return
        for line in self.feedback():
            for i, answer in enumerate(line.answers):
                yield Conversation((*line.prompt, Message("assistant", answer)), f"{line.id}/{i}", line.split)

    def documents(self) -> Iterator[Document]:
        yield from as_documents(self.feedback())

    def fingerprint(self) -> str:
        knobs = (self.size, self.answers, self.opening, self.gap, self.seed, sources.build("sotu").fingerprint())
        # Defaults add nothing: fingerprints of runs from before the knobs `shown` and `before` stay valid.
        shown = "" if self.shown == "best" else f" {self.shown}"
        shown += f" before={self.before!r}" if self.before else ""
        return hashlib.sha256(f"sentiment-1 {knobs}{shown}".encode()).hexdigest()


def _demonstrations(feedback: Iterable[Feedback]) -> Iterator[Conversation]:
    """The best answer of each line as a conversation; a line with one answer counts only if its score is above 0."""
    for line in feedback:
        score, answer = max(zip(line.scores, line.answers, strict=True), key=lambda pair: pair[0])
        if len(line.answers) > 1 or score > 0:
            yield Conversation((*line.prompt, Message("assistant", answer)), line.id, line.split, key=line.key)


def sentiment_of() -> Any:
    """Return a function text -> VADER's compound sentiment score, from -1 to 1."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise UserError(
            "source=sentiment needs vaderSentiment, which is not installed\n    try: pip install 'ablatio[sentiment]'"
        ) from None
    analyzer = SentimentIntensityAnalyzer()
    return lambda text: float(analyzer.polarity_scores(text)["compound"])
