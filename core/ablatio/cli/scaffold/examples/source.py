import hashlib
from collections.abc import Iterator
from typing import Annotated

from ablatio import Positive, sources
from ablatio.data.types import Document


@sources.register("counting")
class Counting:
    """Documents that count: `7 8 9 10 ...`, from a different number each.  Source: generated."""

    def __init__(
        self,
        *,
        texts: Annotated[int, Positive, "number of documents"] = 500,
        numbers: Annotated[int, Positive, "in each document"] = 40,
    ) -> None:
        self.texts, self.numbers = texts, numbers

    def documents(self) -> Iterator[Document]:
        for first in range(self.texts):
            yield Document(" ".join(map(str, range(first, first + self.numbers))), str(first))

    def fingerprint(self) -> str:
        return hashlib.sha256(f"counting {self.texts} {self.numbers}".encode()).hexdigest()
