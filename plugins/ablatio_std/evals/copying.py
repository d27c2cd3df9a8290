"""Probes of copying and recall inside the context: what attention does for a language model."""

from collections.abc import Iterator
from typing import Annotated

from ablatio import Range, evals
from ablatio.data.items import Item

from ._common import WORDS, Count, Seed, draws

Words = Annotated[int, Range(2, len(WORDS)), "words in the context"]


@evals.register("copying", paper="arXiv:2402.01032")
class Copying:
    """Repeat a list of random words: `river king door; river king` -> `door`, for each word of the list in turn.

    Chance is about 1 / `length` for a model that answers with a word of the list.
    """

    def __init__(self, *, length: Words = 6, items: Count = 200, seed: Seed = 0) -> None:
        self.length, self.count, self.seed = length, items, seed

    def items(self) -> Iterator[Item]:
        rng = draws("copying", self.seed)
        for number in range(self.count):
            # From the second word on: nothing tells the first.
            words, at = rng.sample(WORDS, self.length), number % (self.length - 1) + 1
            prompt = f"{' '.join(words)}; {' '.join(words[:at])}"
            yield Item(str(number), prompt, words[at], room=8)


@evals.register("induction", paper="arXiv:2209.11895")
class Induction:
    """Complete a pair that occurred before: `... king door ... king` -> `door`, in random words.

    The words of the context differ, so that the pair occurs once and nothing but the context predicts its second word.
    """

    def __init__(self, *, length: Words = 12, items: Count = 200, seed: Seed = 0) -> None:
        self.length, self.count, self.seed = length, items, seed

    def items(self) -> Iterator[Item]:
        rng = draws("induction", self.seed)
        for number in range(self.count):
            words = rng.sample(WORDS, self.length)
            at = rng.randrange(self.length - 1)
            yield Item(str(number), " ".join([*words, words[at]]), words[at + 1], room=8)


@evals.register("associative_recall", paper="arXiv:2312.04927")
class AssociativeRecall:
    """Recall the value of a key: `king is 7, door is 3, river is 9. door is` -> `3`.

    Keys are random words and values digits; the queried pair is equally often at each place.  Chance is 1/10.
    """

    def __init__(
        self,
        *,
        pairs: Annotated[int, Range(1, len(WORDS)), "pairs in the context"] = 6,
        items: Count = 200,
        seed: Seed = 0,
    ) -> None:
        self.pairs, self.count, self.seed = pairs, items, seed

    def items(self) -> Iterator[Item]:
        rng = draws("associative_recall", self.seed)
        for number in range(self.count):
            keys = rng.sample(WORDS, self.pairs)
            values = [str(rng.randrange(10)) for _ in keys]
            told = ", ".join(f"{key} is {value}" for key, value in zip(keys, values, strict=True))
            at = number % self.pairs
            yield Item(str(number), f"{told}. {keys[at]} is", values[at], room=4)
