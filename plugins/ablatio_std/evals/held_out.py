"""Held-out text of the run's source, by document."""

from collections.abc import Iterator
from itertools import islice
from typing import Annotated

from ablatio import Positive, evals
from ablatio.data.items import Item, Texts


@evals.register("held_out", paper="arXiv:1609.07843")
class HeldOut:
    """Held-out documents of the run's source, each as one item: log p(text), from its beginning.

    A document longer than a row of the model is read in rows, as lm-eval does.
    """

    measured_by = ("perplexity",)

    def __init__(
        self,
        texts: Texts,
        *,
        items: Annotated[int | None, Positive, "largest number of documents; null: all"] = None,
        characters: Annotated[int, Positive, "largest number of characters of a document that are read"] = 20_000,
    ) -> None:
        self.texts, self.count, self.characters = texts, items, characters

    def items(self) -> Iterator[Item]:
        for number, text in enumerate(islice(self.texts("validation"), self.count)):
            # No prompt: the text is scored from its first token.
            yield Item(str(number), target=text[: self.characters])
