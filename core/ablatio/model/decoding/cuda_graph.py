"""A decoding step as a CUDA graph: all of its kernels are launched at once."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Step = Callable[[Tensor], Tensor]  # tokens (R, 1) -> logits (R, V)


class CudaGraph:
    """One step, captured when this is made and run by each call; weights, cache and autocast's copies must stay.

    The step must have run by `eager` before, with the same shapes: kernels and workspaces are made there.
    """

    def __init__(self, step: Step, tokens: Tensor) -> None:
        """Capture `step` for tokens of this shape; nothing is computed.  Raises RuntimeError if torch cannot."""
        self.tokens, self.graph = tokens.clone(), torch.cuda.CUDAGraph()
        with _beside(tokens.device):
            # thread_local: threads that pin batches of training data may go on meanwhile.
            self.graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.logits = step(self.tokens)
            finally:
                self.graph.capture_end()

    def __call__(self, tokens: Tensor) -> Tensor:
        """Run the step for `tokens`; the result is a copy, as the next call writes over the graph's own."""
        self.tokens.copy_(tokens)
        self.graph.replay()
        return self.logits.clone()

    @staticmethod
    def eager(step: Step, tokens: Tensor) -> Tensor:
        """Run the step kernel by kernel, on the stream on which graphs are captured."""
        with _beside(tokens.device):
            return step(tokens)


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """Context on the stream for captures, which waits for the present one before, and is waited for afterwards."""
    current, beside = torch.cuda.current_stream(device), _stream(device)
    beside.wait_stream(current)
    with torch.cuda.stream(beside):
        yield
    current.wait_stream(beside)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    # One for all graphs of a process: each stream gets a workspace of cuBLAS, 32 MiB on Hopper.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
