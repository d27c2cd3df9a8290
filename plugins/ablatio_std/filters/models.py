"""Filters with a model of the text: perplexity, quality classifier, toxicity, difficulty, coreset."""

import itertools
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ablatio import Fraction, NonNegative, Positive, Range, filters
from ablatio.data.filters import Verdict
from ablatio.errors import UserError

from ._common import given_digest, given_texts, hash64, hashes, quantile_bounds, sentences, words
from ._ngram_model import NgramModel

BUCKETS = 1 << 18  # weights of the classifier


class Between:
    """Base of filters that keep the documents whose measure lies between two quantiles."""

    small = large = ""  # reasons

    def __init__(self, low: float, high: float) -> None:
        if low >= high:
            raise UserError(f"low={low} and high={high}: expected low < high\n    try: low=0 high=0.8")
        self.low, self.high = low, high
        self.bounds = (-math.inf, math.inf)

    def plan(self, measures: Sequence[float]) -> None:
        self.bounds = quantile_bounds(measures, self.low, self.high) if measures else self.bounds

    def judge(self, text: str, measure: float) -> Verdict:
        low, high = self.bounds
        return (
            Verdict(None, self.small if measure < low else self.large) if not low <= measure <= high else Verdict(text)
        )


@filters.register("perplexity", paper="arXiv:1911.00359")
class Perplexity(Between):
    """Keeps the documents whose perplexity under an n-gram model lies between two quantiles, as CCNet does.

    The model counts byte n-grams of the text in `good` or, without it, of the training text; there a document is scored
    without its own counts.  `high=0.3` keeps the head, `low=0.3 high=0.7` the middle (arXiv:2309.04564).
    """

    fitted = True
    small, large = "perplexity too low", "perplexity too high"

    def __init__(
        self,
        *,
        low: Annotated[float, Fraction, "quantile of the lowest perplexity that is kept"] = 0.0,
        high: Annotated[float, Fraction, "quantile of the highest perplexity that is kept"] = 0.8,
        good: Annotated[str, "text file or folder that the model is fitted on; empty: the training text"] = "",
        order: Annotated[int, Range(1, 12), "bytes of an n-gram"] = 5,
        mu: Annotated[float, Positive, "pseudo-counts of the shorter context"] = 4.0,
        size: Annotated[int, Range(16, 2**28), "entries of each table of counts"] = 2**20,
    ) -> None:
        super().__init__(low, high)
        self.good, self.model = good, NgramModel(order, mu, size)

    def fit(self, texts: Iterable[str]) -> None:
        self.model.fit(given_texts(self.good, "perplexity.good") if self.good else texts)

    def measure(self, text: str) -> float:
        """Perplexity per byte, 2^(bits per byte)."""
        return float(2.0 ** self.model.bits_per_byte(text, leave_out=not self.good))

    def fingerprint(self) -> str:
        return given_digest(self.good, "perplexity.good")


class LinearModel:
    """Logistic regression on hashed words and pairs of words: p = sigmoid(b + sum_f w_f / sqrt(number of features)).

    Trained by AdaGrad in passes over the examples, whose order depends on their texts alone.
    """

    def __init__(self, passes: int, rate: float = 0.3) -> None:
        self.passes, self.rate = passes, rate
        self.weights, self.bias = np.zeros(BUCKETS), 0.0

    def fit(self, good: Sequence[str], bad: Sequence[str]) -> None:
        """Learn p = 1 for good and 0 for bad texts; both classes have the same weight."""
        # In the order of hashes: classes are mixed, and the result does not depend on the order of the files.
        examples = sorted((hash64(f"{label}{text}"), label, text) for label, of in ((1, good), (0, bad)) for text in of)
        rows = [(features(text), label) for _, label, text in examples]
        share = {1: len(rows) / (2 * len(good)), 0: len(rows) / (2 * len(bad))}
        squares, of_bias = np.full(BUCKETS, 1e-8), 1e-8
        for _ in range(self.passes):
            for places, label in rows:
                error = share[label] * (self._probability(places) - label)
                step = error / math.sqrt(max(1, len(places)))
                squares[places] += step * step
                self.weights[places] -= self.rate * step / np.sqrt(squares[places])
                of_bias += error * error
                self.bias -= self.rate * error / math.sqrt(of_bias)

    def probability(self, text: str) -> float:
        """Probability that a text is good."""
        return self._probability(features(text))

    def _probability(self, places: NDArray[np.int64]) -> float:
        # Divided by the root of their number, so that long texts are not surer than short ones.
        logit = self.bias + float(self.weights[places].sum()) / math.sqrt(max(1, len(places)))
        # Beyond 60 the probability is 0 or 1 in float64, and exp would overflow at 710.
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, logit))))


def features(text: str) -> NDArray[np.int64]:
    """Places of the different words and pairs of neighboring words of a text among the weights."""
    found = words(text)
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(found)]
    return np.unique(hashes([*found, *pairs]) % np.uint64(BUCKETS)).astype(np.int64)


@filters.register("classifier", paper="arXiv:2005.14165")
class Classifier:
    """Keeps the documents that a classifier takes for text like that in `good`.

    A logistic regression on hashed words learns to tell `good` from the training text.  With `pareto` a document is
    kept if a Pareto(alpha) draw exceeds 1 - p (GPT-3, appendix A): better documents more often, and some of all; the
    draw depends on the text alone.  Otherwise the `keep` share with the largest p is kept.
    """

    fitted = True

    def __init__(
        self,
        *,
        good: Annotated[str, "text file or folder with text of the wanted quality"] = "",
        keep: Annotated[float, Fraction, "share of the documents that is kept, without pareto"] = 0.5,
        pareto: Annotated[float | None, Positive, "alpha of the draws; GPT-3 takes 9"] = None,
        sample: Annotated[int, Range(1, 10**7), "training documents that the classifier learns from"] = 2000,
        passes: Annotated[int, Range(1, 1000), "passes over the examples"] = 3,
    ) -> None:
        self.good, self.keep, self.pareto, self.sample = good, keep, pareto, sample
        self.model, self.least = LinearModel(passes), 0.0

    def fit(self, texts: Iterable[str]) -> None:
        if not self.good:
            raise UserError(
                "filter=classifier needs text of the wanted quality to learn from\n"
                "    try: filter.classifier.good=FILE, or filter=[perplexity], which needs none"
            )
        # The smallest hashes: a sample that does not depend on the order of the documents.
        bad = sorted(texts, key=hash64)[: self.sample]
        self.model.fit(given_texts(self.good, "classifier.good")[: self.sample], bad)

    def measure(self, text: str) -> float:
        """Probability that the text is good."""
        return self.model.probability(text)

    def plan(self, measures: Sequence[float]) -> None:
        kept = max(1, round(self.keep * len(measures)))
        self.least = sorted(measures, reverse=True)[kept - 1] if measures else 0.0

    def judge(self, text: str, measure: float) -> Verdict:
        if self.pareto is None:
            kept = measure >= self.least
        else:
            # In (0, 1]: 0 has no finite power.
            uniform = (hash64(text) + 1) / 2.0**64
            kept = uniform ** (-1 / self.pareto) - 1 > 1 - measure  # Lomax, as numpy.random.pareto draws
        return Verdict(text) if kept else Verdict(None, "unlike good text")

    def fingerprint(self) -> str:
        return given_digest(self.good, "classifier.good")


TOXIC = (
    "damn", "asshole", "bastard", "bitch", "bullshit", "crap", "dick", "fuck", "fucked", "fucker", "fucking", "idiot",
    "idiots", "moron", "morons", "motherfucker", "piss", "pissed", "prick", "scum", "shit", "shitty", "slut", "stupid",
    "vermin", "whore",
)  # fmt: skip


@filters.register("toxicity", paper="arXiv:1910.10683")
class Toxicity:
    """Drops documents with more than `most` toxic words in a thousand.

    The words are a short list of insults; `path` names a file with more, one per line, such as the one C4 was filtered
    with (arXiv:1910.10683), which drops a page at the first of them: `most=0`.
    """

    def __init__(
        self,
        *,
        most: Annotated[float, NonNegative, "toxic words per thousand that are allowed"] = 1.0,
        words: Annotated[tuple[str, ...], "toxic words, in lower case"] = TOXIC,
        path: Annotated[str, "text file with further words, one per line"] = "",
    ) -> None:
        self.most, self.path = most, path
        self.words = {*words, *("\n".join(given_texts(path, "toxicity.path")).lower().split("\n") if path else ())}

    def measure(self, text: str) -> float:
        """Toxic words per thousand."""
        found = words(text)
        return 1000 * sum(word in self.words for word in found) / max(1, len(found))

    def judge(self, text: str, measure: float) -> Verdict:
        return Verdict(text) if measure <= self.most else Verdict(None, "toxic words")

    def fingerprint(self) -> str:
        return given_digest(self.path, "toxicity.path")


@filters.register("difficulty", paper="arXiv:1903.09848")
class Difficulty(Between):
    """Keeps the documents whose difficulty lies between two quantiles.

    by=rarity: mean of -log p over the words, p their frequency in the training text (arXiv:1903.09848); compression:
    bytes after over bytes before zlib; readability: the Flesch-Kincaid grade, 0.39 words/sentence + 11.8
    syllables/word - 15.59.
    """

    fitted = True
    small, large = "too easy", "too difficult"

    def __init__(
        self,
        *,
        by: Annotated[Literal["rarity", "compression", "readability"], "measure of difficulty"] = "rarity",
        low: Annotated[float, Fraction, "quantile of the easiest document that is kept"] = 0.0,
        high: Annotated[float, Fraction, "quantile of the most difficult one"] = 0.8,
    ) -> None:
        super().__init__(low, high)
        self.by, self.counts, self.total = by, Counter[str](), 0

    def fit(self, texts: Iterable[str]) -> None:
        for text in texts if self.by == "rarity" else ():
            self.counts.update(words(text))
        self.total = sum(self.counts.values())

    def measure(self, text: str) -> float:
        """Difficulty of a text."""
        if self.by == "compression":
            raw = text.encode("utf-8", "surrogatepass")
            return len(zlib.compress(raw, 6)) / max(1, len(raw))
        found = words(text)
        if not found:
            return 0.0
        if self.by == "readability":
            syllables = sum(map(_syllables, found))
            return 0.39 * len(found) / max(1, len(sentences(text))) + 11.8 * syllables / len(found) - 15.59
        # A held-out word that training never had counts as seen once.
        return sum(-math.log(max(1, self.counts[w]) / max(1, self.total)) for w in found) / len(found)


def _syllables(word: str) -> int:
    """Groups of vowels, without a silent e at the end; at least one."""
    vowels = [c in "aeiouy" for c in word]
    count = sum(v and not before for v, before in zip(vowels, [False, *vowels], strict=False))
    return max(1, count - (word.endswith("e") and not word.endswith("le") and count > 1))


DIMENSIONS = 32


@filters.register("coreset", paper="arXiv:1708.00489")
class Coreset:
    """Keeps a share of the documents that covers all of them.

    Documents are vectors: their words' counts, log(1 + n), projected on random signs and normalized.  by=k_center:
    the document farthest from those chosen, again and again (arXiv:1708.00489); herding: the one that brings the mean
    of the chosen closest to that of all (arXiv:1203.3472); random: a control of the same size.
    """

    def __init__(
        self,
        *,
        keep: Annotated[float, Range(0, 1, open_low=True), "share of the documents that is kept"] = 0.5,
        by: Annotated[Literal["k_center", "herding", "random"], "how documents are chosen"] = "k_center",
        seed: Annotated[int, NonNegative, "seed of the projection and of the random choice"] = 0,
    ) -> None:
        self.keep, self.by, self.seed, self.chosen = keep, by, seed, set[int]()

    def measure(self, text: str) -> tuple[int, list[float]]:
        """(hash of the text, its vector)."""
        counts = Counter(words(text))
        total = np.zeros(DIMENSIONS)
        for word, count in counts.items():
            # A bit of the hash is the word's random sign in a dimension: no table of words is kept.
            bits = np.uint64(hash64(f"{self.seed} {word}")) >> np.arange(DIMENSIONS, dtype=np.uint64) & np.uint64(1)
            total += math.log1p(count) * (2.0 * bits - 1)
        return hash64(f"{self.seed} {text}"), (total / max(1e-12, float(np.linalg.norm(total)))).tolist()

    def plan(self, measures: Sequence[tuple[int, list[float]]]) -> None:
        ordered = sorted(dict(measures).items())  # the order of the documents is lost
        count = max(1, round(self.keep * len(ordered)))
        if self.by == "random":
            places = range(count)
        else:
            points = np.asarray([vector for _, vector in ordered])
            places = _k_center(points, count) if self.by == "k_center" else _herding(points, count)
        self.chosen = {ordered[i][0] for i in places}

    def judge(self, text: str, measure: tuple[int, Any]) -> Verdict:
        return Verdict(text) if measure[0] in self.chosen else Verdict(None, "not in the coreset")


def _k_center(points: NDArray[np.float64], count: int) -> list[int]:
    """Greedy k-center: (n, d) -> indices.  It begins with the point nearest to the mean."""
    chosen = [int(np.linalg.norm(points - points.mean(0), axis=1).argmin())]
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < count:
        distance[chosen[-1]] = -1.0  # once chosen, never again
        chosen.append(int(distance.argmax()))
        distance = np.where(
            distance < 0, -1.0, np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
        )
    return chosen


def _herding(points: NDArray[np.float64], count: int) -> list[int]:
    """Herding: (n, d) -> indices, each the point with the largest product with what the mean still lacks."""
    mean, lacking, free, chosen = points.mean(0), points.mean(0), np.ones(len(points), dtype=bool), list[int]()
    for _ in range(count):
        chosen.append(int(np.where(free, points @ lacking, -np.inf).argmax()))
        free[chosen[-1]] = False
        # The sum of the means so far less the sum of the chosen: what herding maximizes the product with.
        lacking = lacking + mean - points[chosen[-1]]
    return chosen
