"""SuperBPE against lists of strings that are merged one pair at a time."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from ablatio import tokenizers
from ablatio.errors import DamagedFile
from ablatio.testing.sample_files import TEXTS
from ablatio_std.tokenizers._common import BYTE_OF
from ablatio_std.tokenizers.trained import BPE

LETTERS = {byte: character for character, byte in BYTE_OF.items()}
SPACE = LETTERS[ord(" ")]


def corpus() -> list[str]:
    draw = random.Random(1)
    phrases = ["of the people", "by the way", "in order to", "a a a a", "the people of"]
    return ["\n".join(" ".join(draw.choices(phrases, k=12)) for _ in range(5)) + "\n\nend é" for _ in range(12)]


def words_of(token: str) -> int:
    return len(token.replace(SPACE, f"|{SPACE}").strip("|").split("|"))


def merge(row: list[str], left: str, right: str) -> list[str]:
    found, i = list[str](), 0
    while i < len(row):
        both = row[i : i + 2] == [left, right]
        found.append(left + right if both else row[i])
        i += 1 + both
    return found


def merged_by_rank(row: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """BPE: the earliest merge that applies anywhere is applied from left to right, until none does."""
    while True:
        ranks = [merges.index(pair) for pair in itertools.pairwise(row) if pair in merges]
        if not ranks:
            return row
        row = merge(row, *merges[min(ranks)])


@pytest.fixture(scope="module")
def trained():
    made = tokenizers.build("superbpe", {"vocab_size": 330, "transition": 0.6, "words": 3})
    made.train(corpus())
    return made


@pytest.mark.oracle("tokenizer=superbpe", "merges of lists of strings, one pair at a time")
def test_the_merges_of_words_are_the_most_frequent_pairs_of_a_line(trained) -> None:
    first = BPE(vocab_size=257 + round(0.6 * (330 - 257)))
    first.train(corpus())
    assert trained._merges[: len(first._merges)] == [tuple(m) for m in first._merges]
    later = trained._merges[len(first._merges) :]
    assert later and any(SPACE in (a + b)[1:] for a, b in later)
    names = sorted(trained._vocab, key=trained._vocab.__getitem__)
    first_names = sorted(first._vocab, key=first._vocab.__getitem__)
    lines = [line for text in corpus() for line in text.splitlines(keepends=True)]
    rows = [[first_names[i] for i in first.encode([line])[0]] for line in lines]
    done = set[tuple[str, str]]()
    for left, right in later:
        counts = Counter(pair for row in rows for pair in itertools.pairwise(row))

        allowed = {(a, b): n for (a, b), n in counts.items() if (a, b) not in done and words_of(a + b) <= 3}
        assert allowed[left, right] == max(allowed.values())
        ids = min((trained._vocab[a], trained._vocab[b]) for (a, b), n in allowed.items() if n == allowed[left, right])
        assert (names[ids[0]], names[ids[1]]) == (left, right)
        done.add((left, right))
        rows = [merge(row, left, right) for row in rows]
    assert max(map(words_of, names)) == 3


@pytest.mark.oracle("tokenizer=superbpe", "merges of lists of strings by rank")
def test_text_is_encoded_by_rank_within_lines(trained) -> None:
    names = sorted(trained._vocab, key=trained._vocab.__getitem__)
    for text in [corpus()[0], "by the people of\n\n of  the\n", "a a a a a a a", "x"]:
        lines = [LETTERS[b] for b in text.encode()]
        pieces, row = list[list[str]](), list[str]()
        for i, letter in enumerate(lines):
            row.append(letter)
            if letter == LETTERS[10] and lines[i + 1 : i + 2] != [LETTERS[10]]:
                pieces, row = [*pieces, row], []
        wanted = [t for piece in [*pieces, row] for t in merged_by_rank(piece, [tuple(m) for m in trained._merges])]
        assert [names[i] for i in trained.encode([text])[0]] == wanted


def test_it_is_lossless_shorter_than_bpe_and_saved_whole(trained) -> None:
    for text in [*TEXTS, *corpus()]:
        ids = trained.encode([text])[0]
        assert trained.decode(ids.tolist()) == text
        assert int(trained.token_bytes()[ids].sum()) == len(text.encode())
    plain = BPE(vocab_size=330)
    plain.train(corpus())
    assert sum(map(len, trained.encode(corpus()))) < sum(map(len, plain.encode(corpus())))
    other = tokenizers.build("superbpe", {"vocab_size": 330})
    other.restore(trained.state())
    assert all(np.array_equal(a, b) for a, b in zip(other.encode(corpus()), trained.encode(corpus()), strict=True))
    fast = trained.fast("<eos>")
    assert fast.encode(corpus()[0]).ids[1:] == trained.encode(corpus()[:1])[0].tolist()
    with pytest.raises(DamagedFile, match="superwords"):
        plain.restore(trained.state())


def test_all_merges_within_words_is_bpe() -> None:
    made, plain = tokenizers.build("superbpe", {"vocab_size": 300, "transition": 1.0}), BPE(vocab_size=300)
    for tokenizer in (made, plain):
        tokenizer.train(corpus())
    assert made._vocab == plain._vocab
