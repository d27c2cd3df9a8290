"""Prompts that are cut out of a text, by their number."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ablatio.data.batches import Windows
from ablatio.data.cache import Corpus
from ablatio.data.order import WindowOrder
from ablatio.errors import UserError


class Prompt(NamedTuple):
    """ids of a prompt, and of the text that follows it in the corpus."""

    ids: list[int]
    following: list[int]


class TextPrompts:
    """Prompt i is `length` tokens from somewhere in the text, without an end of a document in them."""

    def __init__(self, corpus: Corpus, length: int, following: int, eos: int, seed: int) -> None:
        self.length, self.eos = length, eos
        size = length + following
        self.pools: dict[str, tuple[Windows, Any]] = {}
        for split, tokens in (("train", corpus.train), ("validation", corpus.validation)):
            if len(tokens) < size + 1:
                raise UserError(
                    f"the {split} text has {len(tokens)} tokens, and a prompt with what follows takes {size}\n"
                    "    try: task.prompt_tokens=8"
                )
            self.pools[split] = Windows(tokens, size), WindowOrder(len(tokens), size, seed)

    def __call__(self, numbers: Sequence[int], split: str = "train") -> list[Prompt]:
        windows, order = self.pools[split]
        rows = windows(order.starts(np.array(numbers))).tolist()
        return [self._prompt(row) for row in rows]

    def _prompt(self, row: list[int]) -> Prompt:
        """What stands behind the last end of a document in the prompt, or all of it; a prompt has at least a token."""
        head, tail = row[: self.length], row[self.length :]
        ends = [i for i, token in enumerate(head[:-1]) if token == self.eos]
        return Prompt(head[ends[-1] :] if ends else head, tail)
