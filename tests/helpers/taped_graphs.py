"""A stand-in for CUDA graphs on a CPU: a list of torch's operations, which is run again with the same memory.

As with a graph, nothing is computed when it is made, no Python of the model runs when it is replayed, and shapes,
numbers and addresses are those of the capture.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ablatio.model.decoding.cuda_graph import Step


class _Tape(TorchDispatchMode):
    """Records operations, and what tensors of before held that they change."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor], list[bool]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for x, argument in zip(args, func._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and _place(x) not in self.made:
                self.before.setdefault(id(x), (x, x.clone()))
        result = func(*args, **kwargs)
        given = {_place(x) for x in _tensors((args, kwargs))}
        results = [*_tensors(result)]
        new = [_place(x) not in given for x in results]
        self.made |= {_place(x) for x, is_new in zip(results, new, strict=True) if is_new}
        self.operations.append((func, args, kwargs, results, new))
        return result


class TapedGraph:
    """Has the interface of CudaGraph; `made` lists the number of rows of each graph, `replays` counts their calls."""

    made: list[int]
    replays: int

    def __init__(self, step: Step, tokens: Tensor) -> None:
        self.tokens = tokens.clone()
        with _Tape() as tape:
            self.logits = step(self.tokens)
        for x, before in reversed(tape.before.values()):
            x.copy_(before)
        self.operations = tape.operations
        for *_, results, new in self.operations:
            for x, is_new in zip(results, new, strict=True):
                if is_new:
                    x.zero_()
        type(self).made.append(len(tokens))

    def __call__(self, tokens: Tensor) -> Tensor:
        self.tokens.copy_(tokens)
        with torch.autocast("cpu", enabled=False):
            for func, args, kwargs, results, new in self.operations:
                again = _tensors(func(*args, **kwargs))
                for x, y, is_new in zip(results, again, new, strict=True):
                    if is_new:
                        x.copy_(y)
        type(self).replays += 1
        return self.logits.clone()

    @staticmethod
    def eager(step: Step, tokens: Tensor) -> Tensor:
        return step(tokens)


def taped() -> type[TapedGraph]:
    """A class of its own for a test, with empty counts."""
    return type("Taped", (TapedGraph,), {"made": [], "replays": 0})


def _tensors(x: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor))


def _place(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
