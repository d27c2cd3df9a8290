"""Sources of preference feedback: pairs, rankings, scores and Elo ratings in JSON Lines, and a generated set."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np

from ablatio import Range, sources
from ablatio.data.types import Conversation, Document, Feedback, Message
from ablatio.errors import EnvironmentFault

from .conversations import _checked, bad_line, field, objects
from .text import _find, _fingerprint

LAYOUTS = """\
    pair: {"prompt": "...", "chosen": "...", "rejected": "..."}
    ranking: {"prompt": "...", "answers": ["best", "...", "worst"]}
    scores: {"prompt": "...", "answers": ["...", "..."], "scores": [3.5, 1]}
    elo: {"prompt": "...", "answers": ["...", "..."], "elo": [1250, 980]}
    label: {"prompt": "...", "completion": "...", "label": true}"""


@sources.register("feedback")
class FeedbackLines:
    """Answers to prompts with preferences, one JSON object per line: a file, a folder's .jsonl files, or a glob.

    A line is a pair (chosen, rejected), a ranking (answers, the best first), answers with scores or Elo ratings, or
    one answer with a label.  A prompt is a text or a list of messages (role, content).  For tasks that train on
    conversations it provides the best answer of each line, and of labeled answers those with a true label.
    """

    def __init__(
        self, *, path: Annotated[str, "a file, a folder or a glob; .xz and .gz are decompressed"] = ""
    ) -> None:
        self.path = path

    def feedback(self) -> Iterator[Feedback]:
        for file in _find(self.path, "feedback", (".jsonl",)):
            for number, record in objects(file):
                yield _feedback(record, f"{file}, line {number}", f"{file.name}:{number}")

    def conversations(self) -> Iterator[Conversation]:
        yield from _demonstrations(self.feedback())

    def documents(self) -> Iterator[Document]:
        yield from (Document(f.text, f.id, f.split) for f in self.feedback())

    def fingerprint(self) -> str:
        return _fingerprint(_find(self.path, "feedback", (".jsonl",)), "feedback-1")


@sources.register("sentiment")
class Sentiment:
    """Openings of State of the Union sentences with K continuations each, ranked by VADER's sentiment score.

    Sentences that share their first `opening` words are continuations of the same prompt.  VADER (Hutto & Gilbert 2014,
    doi:10.1609/icwsm.v8i1.14550) can also score what a model writes, as a gold reward.  For tasks that train on
    conversations it provides the best continuation of each prompt, or all of them.
    Source: controlled sentiment, as in arXiv:2305.18290, section 6.
    """

    def __init__(
        self,
        *,
        size: Annotated[int, Range(20, 100_000), "largest number of prompts in both splits together"] = 1000,
        answers: Annotated[int, Range(2, 16), "answers per prompt"] = 2,
        opening: Annotated[int, Range(1, 8), "words of a prompt"] = 2,
        gap: Annotated[float, Range(0, 2), "least difference in sentiment (-1 to 1) between two answers"] = 0.3,
        shown: Annotated[Literal["best", "all"], "answers provided as conversations"] = "best",
        seed: Annotated[int, Range(0, 2**31), "seed of the selection"] = 1,
    ) -> None:
        self.size, self.answers, self.opening, self.gap, self.seed = size, answers, opening, gap, seed
        self.shown = shown

    def feedback(self) -> Iterator[Feedback]:
        judge = sentiment_of()
        rng = np.random.Generator(np.random.PCG64(self.seed))
        endings = self._endings()
        openings = sorted(endings)
        count = 0
        for opening in (openings[i] for i in rng.permutation(len(openings))):
            found = endings[opening]
            drawn = [found[i] for i in rng.permutation(len(found))[: 8 * self.answers]]
            chosen: list[tuple[float, str]] = []
            for text in drawn:
                score = judge(f"{opening} {text}")
                if all(abs(score - other) >= self.gap and text != known for other, known in chosen):
                    chosen.append((score, text))
            if len(chosen) < self.answers:
                continue
            texts, scores = [t for _, t in chosen[: self.answers]], [s for s, _ in chosen[: self.answers]]
            yield Feedback((Message("user", opening),), tuple(texts), tuple(scores), f"sentiment:{opening}")
            count += 1
            if count == self.size:
                return

    def _endings(self) -> dict[str, list[str]]:
        """Opening words -> the continuations of sentences, in the order of the messages."""
        found: dict[str, list[str]] = defaultdict(list)
        for document in sources.build("sotu").documents():
            for sentence in re.split(r"(?<=[.!?])\s+", document.text):
                words = sentence.split()
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
        yield from (Document(f.text, f.id, f.split) for f in self.feedback())

    def fingerprint(self) -> str:
        knobs = (self.size, self.answers, self.opening, self.gap, self.seed, sources.build("sotu").fingerprint())
        # The default adds nothing: fingerprints of runs from before the knob `shown` stay valid.
        shown = "" if self.shown == "best" else f" {self.shown}"
        return hashlib.sha256(f"sentiment-1 {knobs}{shown}".encode()).hexdigest()


def _demonstrations(feedback: Iterable[Feedback]) -> Iterator[Conversation]:
    """The best answer of each line as a conversation; a line with one answer counts only if its score is above 0."""
    for line in feedback:
        score, answer = max(zip(line.scores, line.answers, strict=True), key=lambda pair: pair[0])
        if len(line.answers) > 1 or score > 0:
            yield Conversation((*line.prompt, Message("assistant", answer)), line.id, line.split)


def sentiment_of() -> Any:
    """Return a function text -> VADER's compound sentiment score, from -1 to 1."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise EnvironmentFault(
            "source=sentiment needs vaderSentiment, which is not installed\n    try: pip install 'ablatio[sentiment]'"
        ) from None
    analyzer = SentimentIntensityAnalyzer()
    return lambda text: float(analyzer.polarity_scores(text)["compound"])


def _feedback(record: Mapping[str, Any], where: str, name: str) -> Feedback:
    answers, scores = _judged(record, where)
    for i, answer in enumerate(answers, 1):
        if not isinstance(answer, str) or not answer.strip():
            came = "is empty" if isinstance(answer, str) else f"is {answer!r:.40}"
            raise bad_line(where, f"answer {i} {came}; expected text")
    return Feedback(_prompt(record, where), tuple(answers), tuple(scores), name, elo="elo" in record)


def _judged(record: Mapping[str, Any], where: str) -> tuple[list[Any], list[float]]:
    """Answers of a line and their scores; UserError if the line has no known layout or lacks something."""
    if "chosen" in record or "rejected" in record:
        answers = [_text(record.get(key), key, where) for key in ("chosen", "rejected")]
        if answers[0] == answers[1]:
            raise bad_line(where, "`chosen` and `rejected` are the same answer")
        return answers, [1.0, 0.0]
    if "answers" in record:
        answers = record["answers"]
        if not isinstance(answers, list) or len(answers) < 2:
            raise bad_line(where, f"`answers` is {answers!r:.40}; expected a list of two or more")
        key = "elo" if "elo" in record else "scores"
        scores = record.get(key, [float(-i) for i in range(len(answers))])
        numbers = isinstance(scores, list) and all(isinstance(s, int | float) and np.isfinite(s) for s in scores)
        if not numbers or len(scores) != len(answers):
            raise bad_line(where, f"`{key}` is {scores!r:.60}; expected {len(answers)} numbers, one per answer")
        return answers, [float(s) for s in scores]
    if "label" in record:
        if not isinstance(record["label"], bool | int):
            raise bad_line(where, f"`label` is {record['label']!r:.40}; expected true or false")
        return [record.get("completion")], [float(bool(record["label"]))]
    raise bad_line(where, f"the fields {', '.join(record) or 'none'} match no layout; layouts are\n{LAYOUTS}")


def _text(value: Any, key: str, where: str) -> Any:
    """An answer as text; data sets in trl's format hold it as a list of messages, of which the last is taken."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        return value[-1].get("content")
    if value is None:
        raise bad_line(where, f"`{key}` is missing")
    return value


def _prompt(record: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    if isinstance(record.get("prompt"), list):
        turns = [(turn.get("role"), turn.get("content")) for turn in record["prompt"] if isinstance(turn, dict)]
        # A placeholder answer, since _checked expects one and its checks of the turns before it are wanted.
        return _checked([*turns, ("assistant", json.dumps(record)[:1])], where)[:-1]
    return (Message("user", field(record, "prompt", where)),)
