"""Choice of the CPU matrix-product backend for products of a few rows, as in decoding."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ENOUGH = 2048  # rows x width from which oneDNN is faster


@contextmanager
def few_rows(rows: int, width: int) -> Iterator[None]:
    """Use torch's own matrix products inside the block if the run uses oneDNN and the products are small.

    oneDNN (chosen by `ablatio.training.device`) is twice as fast for the products of training, but starting one takes
    10 µs: with 8 rows it needs 3 times as long at width 64, 1.5 times at 128, and 0.9 times at 256.
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
