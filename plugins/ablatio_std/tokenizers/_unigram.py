"""Training of the unigram language model (Kudo 2018, arXiv:1804.10959), deterministic and vectorized over words.

p(word) = sum over segmentations of the product of p(piece). Expectation maximization with the forward and backward
sums of all words of one length at a time; M step as in SentencePiece: exp(digamma(count) - digamma(sum)), which moves
probability from rare pieces to frequent ones.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LONGEST = 16  # bytes of a piece, and of a word that is fitted: a longer word is fitted in parts
MOST_WORDS = 1 << 18  # the most frequent words are fitted: this bounds time and memory
SEEDS = 10  # pieces at the start per piece at the end
SHRINK = 0.75  # share of the pieces that a round keeps
EM_STEPS = 2  # per round
FEWEST = 0.5  # expected occurrences below which a piece is removed
_NONE = -1e30

Floats = NDArray[np.float64]


@dataclass(slots=True)
class _Words:
    """Words of one length L with their counts: `table[w, i, j - i - 1]` is the piece in word w from i to j, or -1."""

    counts: Floats
    table: NDArray[np.int32]

    @property
    def length(self) -> int:
        return int(self.table.shape[1])

    def forward_backward(self, scores: Floats) -> Floats:
        """Expected count of each place of the table: (w, L, L)."""
        n, size = self.length, len(self.counts)
        values = np.where(self.table >= 0, scores[self.table], _NONE)
        alpha, beta = np.full((size, n + 1), _NONE), np.full((size, n + 1), _NONE)
        alpha[:, 0] = beta[:, n] = 0.0
        for j in range(1, n + 1):
            alpha[:, j] = _log_sum([alpha[:, i] + values[:, i, j - i - 1] for i in range(j)])
        for i in range(n - 1, -1, -1):
            beta[:, i] = _log_sum([values[:, i, j - i - 1] + beta[:, j] for j in range(i + 1, n + 1)])
        expected = np.zeros_like(values)
        for i in range(n):
            for j in range(i + 1, n + 1):
                log_share = alpha[:, i] + values[:, i, j - i - 1] + beta[:, j] - alpha[:, n]
                # The minimum is for rounding: a share of the segmentations is at most 1.
                expected[:, i, j - i - 1] = self.counts * np.exp(np.minimum(log_share, 0.0))
        return expected

    def best(self, scores: Floats) -> tuple[Floats, NDArray[np.int32]]:
        """(log-probability of the best segmentation, its last cut before each end): (w,), (w, L + 1)."""
        n = self.length
        values = np.where(self.table >= 0, scores[self.table], _NONE)
        alpha, back = np.full((len(self.counts), n + 1), _NONE), np.zeros((len(self.counts), n + 1), dtype=np.int32)
        alpha[:, 0] = 0.0
        for j in range(1, n + 1):
            options = np.stack([alpha[:, i] + values[:, i, j - i - 1] for i in range(j)], 1)
            back[:, j] = options.argmax(1)
            alpha[:, j] = options.max(1)
        return alpha[:, n], back


def _log_sum(parts: Sequence[Floats]) -> Floats:
    stacked = np.stack(parts)
    top = stacked.max(0)
    found: Floats = top + np.log(np.exp(stacked - top).sum(0))
    return found


def fit_pieces(counts: Mapping[str, int], alphabet: Sequence[str], size: int) -> list[tuple[str, float]]:
    """Return at most `size` pieces with their log-probabilities: the alphabet first, then the likeliest ones."""
    model = _Model(_parts(counts), alphabet, size)
    while True:
        for _ in range(EM_STEPS):
            model.step()
        # 10 % more than wanted, as SentencePiece: the last cut goes by probability alone.
        if (alive := int(model.alive.sum())) <= size * 1.1:
            break
        model.prune(max(int(size * 1.1), int(alive * SHRINK)))
    longer = [i for i in model.ids() if i >= model.kept]
    order = [*range(model.kept), *sorted(longer, key=lambda i: (-model.scores[i], model.names[i]))][:size]
    return [(model.names[i], float(round(model.scores[i], 6))) for i in order]


class _Model:
    """Pieces with their log-probabilities, fitted to counts of words; a removed piece has -1e30."""

    def __init__(self, words: Mapping[str, int], alphabet: Sequence[str], size: int) -> None:
        seeds = _seeds(words, alphabet, SEEDS * size)
        self.names, self.kept = list(seeds), len(alphabet)
        self.alive = np.ones(len(seeds), dtype=bool)
        self.scores = np.log(np.array([max(n, 1.0) for n in seeds.values()]))
        self.scores -= _log_sum(list(self.scores[:, None]))
        self.words = _tables(words, self.names)
        self.pieces = _tables(dict.fromkeys(self.names[self.kept :], 1), self.names)  # pieces as words

    def ids(self) -> list[int]:
        """Ids of the pieces that are left."""
        found: list[int] = np.flatnonzero(self.alive).tolist()
        return found

    def _remove(self, dead: NDArray[np.bool_]) -> None:
        dead[: self.kept] = False
        self.alive &= ~dead
        self.scores[~self.alive] = _NONE

    def step(self) -> None:
        """One step of expectation maximization; pieces that hardly occur are removed, but the alphabet stays."""
        from scipy.special import digamma

        expected = np.zeros(len(self.names))
        for group in self.words:
            found = group.forward_backward(self.scores)
            used = group.table >= 0
            expected += np.bincount(group.table[used], weights=found[used], minlength=len(expected))
        self._remove(expected < FEWEST)
        # The alphabet stays even where it hardly occurs, and digamma of 0 is infinite.
        mass = np.maximum(expected[self.alive], FEWEST)
        self.scores[self.alive] = digamma(mass) - digamma(mass.sum())

    def prune(self, most: int) -> None:
        """Keep the `most` pieces whose removal would cost the most likelihood.

        The loss of a piece is its count in the best segmentations times the difference between its log-probability and
        that of the best way to write it with other pieces.
        """
        used = np.zeros(len(self.names))
        for group in self.words:
            _, back = group.best(self.scores)
            rows, ends = np.arange(len(group.counts)), np.full(len(group.counts), group.length)
            while len(rows):
                starts = back[rows, ends]
                pieces = group.table[rows, starts, ends - starts - 1]
                used += np.bincount(pieces, weights=group.counts[rows], minlength=len(used))
                # Backwards from the end of all words at once; a word leaves when its first piece is counted.
                rows, ends = rows[starts > 0], starts[starts > 0]
        loss = np.full(len(self.names), -np.inf)
        for group in self.pieces:
            ids = group.table[:, 0, -1].copy()
            group.table[:, 0, -1] = -1  # without the piece itself
            rest, _ = group.best(self.scores)
            group.table[:, 0, -1] = ids
            loss[ids] = used[ids] * (self.scores[ids] - rest)
        left = [i for i in self.ids() if i >= self.kept]
        order = sorted(left, key=lambda i: (-loss[i], self.names[i]))
        dead = np.zeros(len(self.names), dtype=bool)
        dead[order[most - self.kept :]] = True
        self._remove(dead)


def _parts(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent words, those that are longer than `LONGEST` in parts."""
    found = Counter[str]()
    for word, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_WORDS]:
        for start in range(0, len(word), LONGEST):
            found[word[start : start + LONGEST]] += n
    return dict(sorted(found.items()))


def _seeds(words: Mapping[str, int], alphabet: Sequence[str], most: int) -> dict[str, float]:
    """Alphabet and the substrings that cover the most text: occurrences, at least two, times length."""
    found = Counter[str]()
    for word, n in words.items():
        for i in range(len(word)):
            for j in range(i + 1, len(word) + 1):
                found[word[i:j]] += n
    # By the text that a piece covers, as SentencePiece ranks its seeds.
    longer = [(piece, n * len(piece)) for piece, n in found.items() if len(piece) > 1 and n > 1]
    longer.sort(key=lambda item: (-item[1], item[0]))
    return {c: float(found[c]) for c in alphabet} | {piece: float(found[piece]) for piece, _ in longer[:most]}


def _tables(words: Mapping[str, int], names: Sequence[str]) -> list[_Words]:
    index = {name: i for i, name in enumerate(names)}
    by_length: dict[int, list[str]] = defaultdict(list)
    for word in words:
        by_length[len(word)].append(word)
    made = []
    for n, group in sorted(by_length.items()):
        table = np.full((len(group), n, n), -1, dtype=np.int32)
        for w, word in enumerate(group):
            for i in range(n):
                for j in range(i + 1, n + 1):
                    table[w, i, j - i - 1] = index.get(word[i:j], -1)
        made.append(_Words(np.array([float(words[word]) for word in group]), table))
    return made
