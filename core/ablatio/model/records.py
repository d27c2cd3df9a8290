"""Outputs of the layers of one pass besides their states: auxiliary losses, measures, and values they share."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from ablatio.model.kv_cache import KVCache

T = TypeVar("T")


class Record:
    """Auxiliary outputs of the layers of one pass, by name; values under the same name are summed over layers.

    losses    scalars that are added to the training loss
    measures  numbers for the log
    further   collects the states (B, T, D) of siblings of the last layer; None: the siblings are not computed
    further_caches  the cache of each sibling, when a text is decoded; None: no cache

    Neither a dataclass nor a mapping: torch's fully_shard copies those when they hold tensors with a gradient, and all
    layers write into this one.
    """

    __slots__ = ("further", "further_caches", "losses", "measures")

    def __init__(self, further: list[Tensor] | None = None, further_caches: "Sequence[KVCache] | None" = None) -> None:
        self.losses: dict[str, Tensor] = {}
        self.measures: dict[str, Tensor] = {}
        self.further, self.further_caches = further, further_caches


class Store:
    """Values that one layer leaves for others, by key; no mapping, for the same reason as Record."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of `key`; the first to ask makes it."""
        if key not in self.values:
            self.values[key] = make()
        found: T = self.values[key]
        return found

    def copy(self) -> "Store":
        """Another store with the same values."""
        copied = Store()
        copied.values.update(self.values)
        return copied
