"""Recognize a misspelled name: the same word with one or two slips of the keyboard, never another word."""

from collections.abc import Iterable


def distance(a: str, b: str) -> int:
    """Edit distance that counts an exchange of two neighboring letters as one edit (optimal string alignment)."""
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


def is_typo(word: str, name: str) -> bool:
    """True if `word` is `name` misspelled: at most one edit in four letters, in every part between underscores.

    `batch_tokens` is no misspelling of `batch_size`, nor `n_layer` of `n_heads`: their parts are other words.  Nor is
    `n_kv_heads` one of `n_heads`: with more parts or fewer, at most one edit is a slip.
    """
    word, name = word.lower(), name.lower()
    mine, theirs = word.split("_"), name.split("_")
    if len(mine) == len(theirs):
        return all(a == b or _is_slip(a, b) for a, b in zip(mine, theirs, strict=True))
    word, name = word.replace("_", ""), name.replace("_", "")
    return _is_slip(word, name) and distance(word, name) <= 1


def _is_slip(a: str, b: str) -> bool:
    longest = max(len(a), len(b))
    return longest >= 3 and distance(a, b) <= max(1, longest // 4)


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """Names of which `word` is a misspelling, the most similar first."""
    return sorted((name for name in known if is_typo(word, name)), key=lambda name: (distance(word, name), name))
