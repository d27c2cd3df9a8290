"""What a rank sends in an optimizer step of each strategy, by formula."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

FORWARD, BACKWARD = 1 / 3, 2 / 3  # shares of the computing time of a step


@dataclass(frozen=True, slots=True)
class Collective:
    """Collective operations of one kind in a step.

    kind    sum: all ranks get the sum; scatter: each gets its part of the sum; gather: all get the parts of all
    size    bytes of the wholes, over all calls
    calls   number of calls
    during  share of the computing time of a step that goes on meanwhile; 0: what is sent is needed at once
    """

    kind: str
    size: float
    calls: int = 1
    during: float = 0.0

    def sent(self, world: int) -> float:
        """Bytes that a rank sends of `world`: size (world - 1) / world, and twice as many for a sum that all get."""
        return (2 if self.kind == "sum" else 1) * self.size * (world - 1) / world


@dataclass(frozen=True, slots=True)
class Model:
    """Sizes of a model that decide what is sent.

    weights     bytes of all weights, and as many of gradients
    outside     those of them outside of layers (embedding, head, last norm), and their gradients
    n_layers    number of layers
    activation  bytes of the residual stream of a token, as it is sent
    keys        bytes of keys and values of a token in a layer, as they are sent
    """

    weights: float
    outside: float
    n_layers: int
    activation: float = 0.0
    keys: float = 0.0


def collectives(strategy: str, model: Model, *, bucket: float = 25 * 2**20, tokens: int = 0) -> list[Collective]:
    """Return what the ranks of a strategy exchange in a step.

    bucket  bytes of gradients that are summed at once
    tokens  of the rows that all ranks have: strategies `tensor` and `context`

    Raises ValueError for a strategy without a formula here.
    """
    buckets = max(1, round(model.weights / bucket))
    if strategy == "ddp":
        return [Collective("sum", model.weights, buckets, BACKWARD)]
    if strategy in ("zero1", "zero2"):  # DeepSpeed sums whole buckets, of which each rank keeps its part
        return [Collective("sum", model.weights, buckets, BACKWARD), Collective("gather", model.weights, buckets)]
    if strategy in ("fsdp", "zero3"):
        inside = model.weights - model.outside
        again = model.weights if strategy == "zero3" else inside  # fsdp keeps what is in no layer
        return [
            Collective("gather", model.weights, model.n_layers + 1, FORWARD),
            Collective("gather", again, model.n_layers + (strategy == "zero3"), BACKWARD),
            Collective("scatter", model.weights, model.n_layers + 1, BACKWARD),
        ]
    if strategy == "tensor":
        layers = Collective("sum", 4 * model.n_layers * tokens * model.activation, 4 * model.n_layers)
        return [layers, Collective("sum", model.outside)]
    if strategy == "context":
        keys = model.n_layers * tokens * model.keys
        calls = 2 * model.n_layers
        return [Collective("gather", keys, calls), Collective("sum", keys, calls), Collective("sum", model.weights)]
    raise ValueError(f"{strategy}: there is no formula of what it sends")


def with_whole_sums(found: Sequence[Collective]) -> list[Collective]:
    """The same over gloo, which makes the whole sum where each rank needs its part."""
    return [replace(one, kind="sum") if one.kind == "scatter" else one for one in found]
