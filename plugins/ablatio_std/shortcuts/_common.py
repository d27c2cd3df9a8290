"""States that shortcuts hand from one layer to later ones."""

from typing import Any

from torch import Tensor

from ablatio.errors import UserError
from ablatio.model.context import Context

KEY = "shortcut"


def remember(layer: int, x: Tensor, ctx: Context) -> Tensor:
    """Keep x, the output of the layer before `layer` (0: the embeddings), for later layers of this pass; return it."""
    return ctx.passed_on((KEY, layer), lambda: x)


def recall(layer: int, ctx: Context) -> Tensor:
    """Return what `remember` kept for this layer."""

    def missing() -> Any:
        raise UserError(f"layer {layer} kept no state for the shortcut, as the layers were not run in order from 0\n"
                            "    try: ablatio show shortcut --author")  # fmt: skip

    return ctx.passed_on((KEY, layer), missing)
