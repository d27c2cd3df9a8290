"""Steps of decoding token by token: with a cache that grows, or on a GPU by a CUDA graph that is replayed."""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ablatio.model.decoding.cuda_graph import CudaGraph, Step
from ablatio.model.decoding.operations import Operations
from ablatio.model.kv_cache import KVCache
from ablatio.model.number_format import compute_dtype
from ablatio.model.ranks import ranks
from ablatio.model.static_cache import NotStaticError, StaticCache, rounded_room

log = logging.getLogger("ablatio")

LEAST = 16  # new tokens from which graphs may pay: three more steps check a model, a capture costs two
STRETCH = 512  # new tokens for which there is room at a time: each step attends to all of it
FILLS = 8.0, -4.0  # of places without a token: results must be the same, to the bit, with both
TOLERANCE, TOLERANCE_16 = 1e-3, 0.05  # of logits, relative to the largest: TF32, and 16 bits
FAULTS = NotStaticError, TypeError, ValueError, IndexError, KeyError, RuntimeError  # of a step that cannot be static


Graph = Callable[[Tensor], Tensor]  # a captured step


class Graphs(Protocol):
    """Captures steps as graphs; runs a step without a graph, too, on the same stream."""

    def __call__(self, step: Step, tokens: Tensor) -> Graph:
        """Capture the step for tokens (R, 1) of this shape."""

    def eager(self, step: Step, tokens: Tensor) -> Tensor:
        """Run the step."""


class _Setting:
    allowed = False  # as long as no card has run it


def allow(allowed: bool) -> None:
    """Let decoding replay CUDA graphs on a GPU, in this process from now on (`trainer.cuda_graphs`)."""
    _Setting.allowed = allowed


def graphs_for(device: torch.device) -> Graphs | None:
    """Return the way to capture steps on this device, or None where there are no graphs.

    There are none on a CPU, where attending to a whole buffer only costs, nor among several ranks, since a step may
    hold their communication.
    """
    return CudaGraph if device.type == "cuda" and _Setting.allowed and ranks().world == 1 else None


class TokenSteps:
    """Appends tokens to the R texts of a cache, one to each at a time.

    cache    of the texts; a StaticCache if steps are replayed
    refused  why steps are not replayed, if that was tried; else empty

    The first token is run in both ways: a model whose step is not static, or gives other logits, keeps the cache that
    grows.  A graph is captured for a number of rows, compared with the step that it holds, and made anew when rows have
    left.
    """

    def __init__(self, model: Any, cache: KVCache, new_tokens: int = 0) -> None:
        """new_tokens: the most that will be appended to each text; 0: unknown, and the cache grows."""
        self.model, self.cache, self.refused = model, cache, ""
        self._left, self._device = new_tokens, next(model.parameters()).device
        self._graphs = graphs_for(self._device) if new_tokens >= LEAST else None
        self._graph: Graph | None = None
        if self._graphs is not None and any(map(_is_compiled, model.modules())):
            self._refuse("its layers are compiled")

    def extend(self, tokens: Tensor) -> Tensor:
        """Append one token to each text, (R,); return the logits of the next ones, (R, V)."""
        tokens, self._left = tokens[:, None], self._left - 1
        cache, graphs = self.cache, self._graphs
        if graphs is not None and isinstance(cache, StaticCache):
            if cache.length == cache.room and self._left >= 0:
                cache = self._enlarged(cache)
            if cache.length < cache.room and self._fits(1):
                return self._replayed(tokens, cache, graphs)
            self._refuse("the texts are longer than was expected")
        elif graphs is not None and self._fits(2):  # the check runs a token more
            return self._proven(tokens, cache)
        logits: Tensor = self.model.extend(tokens, self.cache)
        return logits

    def select(self, rows: Tensor) -> None:
        """Keep the texts `rows` (N,), in this order; a text may occur several times."""
        self._graph = None
        self.cache.select(rows)

    def _room(self) -> int:
        """Room for this token and those to come, or for a stretch of them."""
        return rounded_room(self.cache.length + min(self._left + 1, STRETCH))

    def _enlarged(self, cache: StaticCache) -> StaticCache:
        self._graph = None
        self.cache = larger = StaticCache(cache.growing(), self._room(), self._device)
        return larger

    def _fits(self, tokens: int) -> bool:
        """True if the model's position supports so many tokens more: a GPU would end the process, a CPU raises."""
        fits: bool = self.model.model.reaches(self.cache.length - self.cache.virtual + tokens)
        return fits

    def _replayed(self, tokens: Tensor, cache: StaticCache, graphs: Graphs) -> Tensor:
        """One token by the graph, which is made if there is none for this number of rows and it may pay."""
        if self._graph is None and self._left >= LEAST // 2:
            return self._captured(tokens, cache, graphs)
        found = graphs.eager(self._step, tokens) if self._graph is None else self._graph(tokens)
        cache.length += 1
        return found

    def _captured(self, tokens: Tensor, cache: StaticCache, graphs: Graphs) -> Tensor:
        """One token without a graph, which prepares kernels, then by a new one, which must give the same logits."""
        restore = cache.restorer()
        expected = graphs.eager(self._step, tokens)
        restore()
        try:
            self._graph = graphs(self._step, tokens)
            found = self._graph(tokens)
            if not self._near(found, expected):
                raise RuntimeError("its replay gave other logits")
        except RuntimeError as error:
            log.warning("decoding goes on without CUDA graphs, as a step could not be captured: %s", error)
            restore()
            self._refuse(str(error))
            logits: Tensor = self.model.extend(tokens, self.cache)
            return logits
        cache.length += 1
        return found

    def _step(self, tokens: Tensor) -> Tensor:
        assert isinstance(self.cache, StaticCache)
        return _static_step(self.model, self.cache, tokens)

    def _proven(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """One token by the cache that grows, which a static one replaces if its steps can be replayed."""
        static = None
        try:
            static, found = _checked(self.model, cache, self._room(), tokens, self._device)
        except FAULTS as error:
            self._refuse(str(error))
        logits: Tensor = self.model.extend(tokens, cache)  # last: its keys stay in the buffers that both share
        if static is not None:
            if self._near(found, logits):
                self.cache = static
            else:
                self._refuse("over a whole buffer its logits are others")
        return logits

    def _near(self, found: Tensor, expected: Tensor) -> bool:
        dtype = compute_dtype(self._device, next(self.model.parameters()).dtype)
        found, expected, most = found.float(), expected.float(), TOLERANCE if dtype.itemsize > 2 else TOLERANCE_16
        return torch.allclose(found, expected, rtol=most, atol=most * float(expected.abs().amax()))

    def _refuse(self, reason: str) -> None:
        log.debug("decoding without CUDA graphs: %s", reason)
        self.refused, self._graphs, self._graph = reason, None, None
        if isinstance(self.cache, StaticCache):
            self.cache = self.cache.growing()


def _static_step(model: Any, cache: StaticCache, tokens: Tensor) -> Tensor:
    with cache.step():
        logits: Tensor = model.extend(tokens, cache)
    return logits


def _checked(model: Any, cache: KVCache, room: int, tokens: Tensor, device: torch.device) -> tuple[StaticCache, Tensor]:
    """A static cache after one token, (R, 1), and the logits of the next; `cache` keeps its length and states.

    Raises NotStaticError if two steps differ in their operations, or if places without a token change the logits.
    """
    expected = _recorded(model, StaticCache(cache, room, device, FILLS[0]), tokens, device)
    static = StaticCache(cache, room, device, FILLS[1])
    logits = _static_step(model, static, tokens)
    static.length += 1
    if not torch.equal(logits, expected):
        raise NotStaticError("it reads keys of tokens that are still to come")
    return static, logits


def _recorded(model: Any, cache: StaticCache, tokens: Tensor, device: torch.device) -> Tensor:
    """Logits after one token, of two steps whose operations are equal."""
    logits, seen = list[Tensor](), []
    for _ in range(2):
        with Operations(device) as operations:
            logits.append(_static_step(model, cache, tokens))
        seen.append(operations.found)
    if seen[0] != seen[1]:
        raise NotStaticError("its operations change from token to token")
    return logits[0]


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None
