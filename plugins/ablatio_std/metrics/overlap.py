"""Overlap of generated answers with correct ones: BLEU and ROUGE, computed by torchmetrics, and chrF."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from ablatio import Range, metrics
from ablatio.data.items import Generation, Item, Request, Response, Scored

from ._chrf import corpus_chrf

ROUGE = ("rougeL", "rouge1", "rouge2")
SIGNS = re.compile(r"[\W_]+")


class _Generated:
    """Asks for the most probable answer; `corpus(answers, references)` is the value of many answers together."""

    def requests(self, item: Item) -> list[Request]:
        return [Generation.of(item)]

    def texts(self, scored: Sequence[Scored]) -> tuple[list[str], list[list[str]]]:
        """Answers, and the correct answers to each."""
        return [_answer(s.responses) for s in scored], [list(s.item.correct_answers) for s in scored]


def _answer(responses: Sequence[Response]) -> str:
    return responses[0].texts[0].strip()


@metrics.register("bleu", paper="arXiv:1804.08771")
class Bleu(_Generated):
    """BLEU of all answers: brevity penalty * geometric mean of the clipped n-gram precisions (SacreBLEU's definition).

    The value of an item is the smoothed BLEU of its answer alone; n-grams are counted over all items for the corpus.
    """

    def __init__(
        self,
        *,
        n_gram: Annotated[int, Range(1, 4), "longest n-gram"] = 4,
        tokenize: Annotated[Literal["13a", "char", "none", "zh"], "SacreBLEU's tokenizer"] = "13a",
        lowercase: bool = False,
    ) -> None:
        self.settings: dict[str, Any] = {"n_gram": n_gram, "tokenize": tokenize, "lowercase": lowercase}

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        # Smoothed, since a short answer without a common 4-gram would have the value 0.
        return {"bleu": self._bleu([_answer(responses)], [list(item.correct_answers)], smooth=True)}

    def summary(self, scored: Sequence[Scored]) -> dict[str, float]:
        return {"bleu": self._bleu(*self.texts(scored), smooth=False)}

    def _bleu(self, answers: list[str], references: list[list[str]], *, smooth: bool) -> float:
        from torchmetrics.functional.text import sacre_bleu_score
        from torchmetrics.functional.text.sacre_bleu import _SacreBLEUTokenizer

        # The penalty takes the reference of the closest length: of two as close SacreBLEU the shorter, torchmetrics the
        # first.
        words = _SacreBLEUTokenizer(self.settings["tokenize"], self.settings["lowercase"])
        ordered = [sorted(texts, key=lambda text: len(words(text))) for texts in references]
        # torchmetrics can return 1 + rounding.
        return min(1.0, float(sacre_bleu_score(answers, ordered, smooth=smooth, **self.settings)))


@metrics.register("rouge", paper="https://aclanthology.org/W04-1013")
class Rouge(_Generated):
    """Mean F-measure of the longest common subsequence (rougeL), of words (rouge1) and of pairs of words (rouge2).

    Of several correct answers, the one with the best F-measure counts.  Words are runs of letters and digits in lower
    case, as in rouge-score, which drops all letters but a to z: here those of other scripts count.
    """

    scores = ROUGE

    def __init__(
        self, *, tokenize: Annotated[Literal["words", "characters"], "characters: for text without spaces"] = "words"
    ) -> None:
        self.split: Any = list if tokenize == "characters" else str.split

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        from torchmetrics.functional.text import rouge_score

        found = rouge_score(
            [_answer(responses)], [list(item.correct_answers)], accumulate="best", rouge_keys=ROUGE,
            normalizer=lambda text: SIGNS.sub(" ", text.lower()), tokenizer=lambda text: self.split(text.strip()),
        )  # fmt: skip
        return {name: float(found[f"{name}_fmeasure"]) for name in ROUGE}


@metrics.register("chrf", paper="doi:10.18653/v1/W15-3049")
class ChrF(_Generated):
    """chrF of all answers: F_beta of character n-grams, and of word n-grams for chrF++ (`words` = 2), as in SacreBLEU.

    The value of an item is the chrF of its answer alone.
    """

    def __init__(
        self,
        *,
        characters: Annotated[int, Range(1, 32), "longest n-gram of characters"] = 6,
        words: Annotated[int, Range(0, 8), "longest n-gram of words; 0: chrF, 2: chrF++"] = 0,
        beta: Annotated[float, Range(0, 100, open_low=True), "weight of recall against precision"] = 2.0,
    ) -> None:
        self.characters, self.words, self.beta = characters, words, beta

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        return {"chrf": self._chrf([_answer(responses)], [list(item.correct_answers)])}

    def summary(self, scored: Sequence[Scored]) -> dict[str, float]:
        return {"chrf": self._chrf(*self.texts(scored))}

    def _chrf(self, answers: list[str], references: list[list[str]]) -> float:
        return corpus_chrf(answers, references, self.characters, self.words, self.beta)
