"""Several methods at once: the mix-and-match adapter of prefix tuning and scaled parallel adapters."""

from typing import Annotated, Any

from torch import nn

from ablatio import NonNegative, Positive, pefts
from ablatio_std.pefts._common import QUERY_VALUE


@pefts.register("mam", paper="arXiv:2110.04366")
class MixAndMatch:
    """softmax(q [P_k; k]^T) [P_v; v] in attention, and y + s U relu(V x) for the feed-forward layers y = f(x).

    A short prefix from a trained network (`tokens`, `hidden`), as in peft=prefix, with a wide parallel adapter
    (`size`, `scale`), as in peft=parallel_adapter.  With `rank` the matrices `q_proj` and `v_proj` take a LoRA, too.
    """

    virtual = True

    def __init__(
        self,
        *,
        tokens: Annotated[int, Positive, "number of virtual tokens before each text"] = 30,
        hidden: Annotated[int | None, Positive, "width of the prefix's network; null: model.d_model"] = None,
        size: Annotated[int, Positive, "width of the parallel adapters"] = 512,
        scale: Annotated[float, Positive, "factor s on the adapters' output"] = 4.0,
        rank: Annotated[int, NonNegative, "rank of a LoRA of the query and value matrices; 0: none"] = 0,
    ) -> None:
        chosen: list[tuple[str, dict[str, Any]]] = [
            ("prefix", {"tokens": tokens, "hidden": hidden}),
            ("parallel_adapter", {"size": size, "scale": scale}),
        ]
        if rank:
            chosen.append(("lora", {"rank": rank, "targets": QUERY_VALUE}))
        self.tokens, self.methods = tokens, [pefts.build(name, knobs) for name, knobs in chosen]

    def apply(self, model: nn.Module, seed: int) -> None:
        added: list[nn.Parameter] = []
        for method in self.methods:  # each freezes all that it finds
            method.apply(model, seed)
            added += [p for p in model.parameters() if p.requires_grad]
        for parameter in added:
            parameter.requires_grad_(True)
