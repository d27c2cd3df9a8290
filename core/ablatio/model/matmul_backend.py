"""Products of a few rows on the CPU, as in decoding."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ENOUGH = 2048  # rows x width, from which on oneDNN is the faster one


@contextmanager
def few_rows(rows: int, width: int) -> Iterator[None]:
    """torch's own products where a run has handed them to oneDNN and there is little to multiply.

    oneDNN (`ablatio.training.device` chooses it) is twice as fast at the products of training, and takes 10 µs to begin
    one: of 8 rows it takes 3 times as long at width 64, 1.5 times at 128, and 0.9 of the time at 256.
    """
    chosen = torch.get_float32_matmul_precision()
    if rows * width >= ENOUGH or chosen != "medium":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)
