"""Metrics of generated answers: parsed and compared with the correct one."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

from ablatio import metrics
from ablatio.data.items import Generation, Item, Request, Response

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
ARTICLES = re.compile(r"\b(a|an|the)\b")
LETTER = re.compile(r"\(?\b([A-Z])\b\)?")
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def normalized(text: str) -> str:
    """Lower case, without punctuation and articles, with single spaces (SQuAD's normalization).

    A text of which nothing would be left, such as a bracket, stays as it is.
    """
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", plain).split()) or text.strip()


@metrics.register("f1", paper="arXiv:1606.05250")
def f1(answer: str, target: str) -> float:
    """2 p r / (p + r) over the words that answer and target share, after SQuAD's normalization."""
    words, correct = normalized(answer).split(), normalized(target).split()
    # As SQuAD 2: no answer is right only where none is expected.
    if not words or not correct:
        return float(words == correct)
    shared = sum((Counter(words) & Counter(correct)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(correct)
    return 2 * precision * recall / (precision + recall)


@metrics.register("exact_match", paper="arXiv:2405.14782")
def exact_match(answer: str, target: str) -> float:
    """1 if the answer equals a correct one letter by letter, without spaces around them; else 0."""
    return float(answer.strip() == target.strip())


@metrics.register("answer_parse", paper="arXiv:2110.14168")
class AnswerParse:
    r"""Share of items whose generated answer, after parsing, equals a correct answer that is parsed in the same way.

    `marker`, if the text has it, announces the answer: what follows its last occurrence is parsed.
    number  the last number of the text, the first one after a marker; 1,000 equals 1000.0
    letter  the first capital letter that stands alone
    boxed   the content of the last \boxed{}
    line    the first line that is not blank
    text    all of it
    Texts are compared after SQuAD's normalization unless `exactly`.

    parsed  share of items in whose answer something was found
    """

    scores = ("exact", "parsed")

    def __init__(
        self,
        *,
        find: Annotated[Literal["text", "line", "number", "letter", "boxed"], "what is taken from the text"] = "line",
        marker: Annotated[str, "text before the answer; empty: none"] = "",
        exactly: Annotated[bool, "compare without normalization"] = False,
    ) -> None:
        self.find, self.marker, self.exactly = find, marker, exactly

    def requests(self, item: Item) -> list[Request]:
        return [Generation.of(item)]

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        found = self.parsed(responses[0].texts[0])
        # Correct answers are parsed too: data such as GSM8K holds the steps before the answer.  No answer is right only
        # where none is expected.
        right = any(self._equal(found, self.parsed(t) or t) if found is not None else not t.strip()
                    for t in item.correct_answers)  # fmt: skip
        return {"exact": float(right), "parsed": float(found is not None)}

    def parsed(self, text: str) -> str | None:
        """Return the answer in a text; None if there is none."""
        announced = bool(self.marker) and self.marker in text
        rest = text.rpartition(self.marker)[2] if announced else text
        if self.find == "text":
            return rest.strip() or None
        if self.find == "line":
            return next((line.strip() for line in rest.splitlines() if line.strip()), None)
        if self.find == "number":
            numbers = NUMBER.findall(rest)
            # Without a marker a text ends with its answer; after a marker more text may follow it.
            return numbers[0 if announced else -1].replace(",", "") if numbers else None
        if self.find == "letter":
            return letter[1] if (letter := LETTER.search(rest)) else None
        boxes = BOXED.findall(rest)
        return boxes[-1].strip() if boxes else None

    def _equal(self, a: str, b: str) -> bool:
        if self.find == "number":
            try:
                return float(a) == float(b)
            except ValueError:
                return False
        return a == b if self.exactly or self.find == "letter" else normalized(a) == normalized(b)
