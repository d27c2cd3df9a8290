"""Byte n-gram model with Dirichlet smoothing, in hashed tables of counts."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ._common import mixed

Counts = NDArray[np.uint32]


class NgramModel:
    """p_k(c | h) = (count(h c) + mu p_{k-1}(c | h')) / (count(h) + mu), h the last k - 1 bytes; p_0 = 1/256.

    Source: hierarchical Dirichlet smoothing (MacKay & Peto 1995, doi:10.1017/S1351324900000218).  An n-gram is counted
    at its hash modulo `size`, so that two of them may share a count.

    order  n, bytes of the longest n-gram
    mu     pseudo-counts of the shorter context
    size   entries of the table of each order
    """

    def __init__(self, order: int, mu: float, size: int) -> None:
        self.order, self.mu, self.size = order, mu, size
        self.tables: list[Counts] = [np.zeros(size, dtype=np.uint32) for _ in range(order + 1)]  # of k-grams, by k

    def fit(self, texts: Iterable[str]) -> None:
        """Add the counts of the n-grams of these texts."""
        for text in texts:
            for k, places in enumerate(self._places(text)):
                found, counts = np.unique(places, return_counts=True)
                self.tables[k][found] += counts.astype(np.uint32)

    def bits_per_byte(self, text: str, *, leave_out: bool = False) -> float:
        """Mean of -log2 p over the bytes of a text; leave_out: without the counts that the text itself added."""
        places = self._places(text)
        if not len(places[0]):
            return 0.0
        p = np.full(len(places[1]), 1 / 256)
        for k in range(1, self.order + 1):
            whole, context = (self._counts(j, places[j], leave_out) for j in (k, k - 1))
            # The first k - 1 bytes have no context of this length; the context of byte i begins at byte i - k + 1.
            p[k - 1 :] = (whole + self.mu * p[k - 1 :]) / (context[: len(whole)] + self.mu)
        return float(-np.log2(p).mean())

    def _counts(self, k: int, places: NDArray[np.int64], leave_out: bool) -> NDArray[np.float64]:
        found = self.tables[k][places].astype(np.float64)
        if leave_out:
            _, inverse, own = np.unique(places, return_inverse=True, return_counts=True)
            # The text's own counts are among those of the table; without them its probability is that of an unseen
            # text.
            found = np.maximum(0.0, found - own[inverse])
        return found

    def _places(self, text: str) -> list[NDArray[np.int64]]:
        """Table places of all k-grams of a text, by k from 0; of k = 0, one per byte."""
        raw = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.uint64)
        found = [np.zeros(len(raw), dtype=np.int64)]
        key = np.zeros(len(raw), dtype=np.uint64)
        for k in range(1, self.order + 1):
            if len(raw) < k:
                found.append(np.zeros(0, dtype=np.int64))
                continue
            with np.errstate(over="ignore"):
                # Each k-gram's hash is made of that of its first k - 1 bytes, so all orders cost one pass each.
                key = mixed(key[: len(raw) - k + 1] * np.uint64(257) + raw[k - 1 :] + np.uint64(1), k)
            found.append((key % np.uint64(self.size)).astype(np.int64))
        return found
