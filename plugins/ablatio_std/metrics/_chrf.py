"""chrF as SacreBLEU computes it (version 2, its default): counts of n-grams, and the F-score of summed counts."""

import string
from collections import Counter
from collections.abc import Iterator, Sequence

Counts = tuple[tuple[int, int, int], ...]  # of each order of n-grams: those of the answer, of the reference, of both


def corpus_chrf(
    answers: Sequence[str], references: Sequence[Sequence[str]], characters: int, words: int, beta: float
) -> float:
    """F_beta of all answers, from 0 to 1: each is counted against the reference with which its own F_beta is best.

    Precision and recall are means over the orders of n-grams that both answers and references have.
    """
    total: Counts = ((0, 0, 0),) * (characters + words)
    for answer, correct in zip(answers, references, strict=True):
        found = [_counts(answer, one, characters, words) for one in correct]
        # An answer that shares nothing counts as well: torchmetrics leaves its reference out of the recall.
        best = max(found, key=lambda counts: f_score(counts, beta))
        total = tuple((a + x, b + y, c + z) for (a, b, c), (x, y, z) in zip(total, best, strict=True))
    return f_score(total, beta)


def f_score(counts: Counts, beta: float) -> float:
    """(1 + beta^2) P R / (beta^2 P + R), with P, R the mean precision and recall of the orders that both texts have."""
    orders = [(both / own, both / theirs) for own, theirs, both in counts if own and theirs]
    if not any(precision for precision, _ in orders):
        return 0.0
    precision, recall = (sum(column) / len(orders) for column in zip(*orders, strict=True))
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def _counts(answer: str, reference: str, characters: int, words: int) -> Counts:
    pairs = zip(_ngrams(answer, characters, words), _ngrams(reference, characters, words), strict=True)
    # n-grams of an answer whose reference has none of this order do not count.
    return tuple((a.total() if b else 0, b.total(), (a & b).total()) for a, b in pairs)


def _ngrams(text: str, characters: int, words: int) -> Iterator[Counter[tuple[str, ...]]]:
    """n-grams of characters, without spaces, and of words: for n = 1 to `characters`, then 1 to `words`."""
    for units, longest in ((list("".join(text.split())), characters), (_words(text), words)):
        for n in range(1, longest + 1):
            yield Counter(tuple(units[i : i + n]) for i in range(len(units) - n + 1))


def _words(text: str) -> list[str]:
    """Words, with one sign of punctuation at their end, or else at their beginning, as a word of its own."""
    found = list[str]()
    for word in text.split():
        if len(word) > 1 and word[-1] in string.punctuation:
            found += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in string.punctuation:
            found += [word[0], word[1:]]
        else:
            found.append(word)
    return found
