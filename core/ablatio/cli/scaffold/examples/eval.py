from collections.abc import Iterator
from typing import Annotated

from ablatio import Positive, evals
from ablatio.data.items import Item


@evals.register("counting_on")
class CountingOn:
    """Continue to count: `7 8 9 10` -> `11`.  Source: generated."""

    def __init__(self, *, items: Annotated[int, Positive, "number of items"] = 100) -> None:
        self.count = items

    def items(self) -> Iterator[Item]:
        for first in range(self.count):
            yield Item(str(first), " ".join(map(str, range(first, first + 4))), target=str(first + 4), room=8)
