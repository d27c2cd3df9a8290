"""Shortcuts from the tokens to the values of attention."""

from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from ablatio import Range, shortcuts
from ablatio.errors import UserError
from ablatio.model.context import Context


@shortcuts.register("value_embeddings")
class ValueEmbeddings(nn.Module):
    """v + 2 sigmoid(W x) e, e the token's row of a further table: embeddings added to the values of attention.

    One gate per head on the first `channels` of attention's input x; W starts at 0.  With gate=learned the values are
    a v + b e, both learned and starting at 0.5.  The residual stream does not change.

    layout  ends: the first `tables` layers have tables, and the last `tables` layers use the same ones; cycle: layer l
            uses table l mod `tables`.  tables=null: each layer has its own

    Source: modded-nanogpt, records of 2024-12-04, 2024-12-17 and 2025-12-29,
    https://github.com/KellerJordan/modded-nanogpt; after the value residual of arXiv:2410.17897
    """

    per_depth, adds_values = True, True
    roles = {"gate": "vector"}  # noqa: RUF012  (an init must not replace the zeros)

    def __init__(
        self,
        layer: int,
        n_layers: int,
        d_model: int,
        d_head: int,
        vocab_size: int,
        value_widths: tuple[int, ...],
        *,
        tables: Annotated[int | None, Range(1), "number of tables; null: one for each layer"] = 3,
        layout: Literal["ends", "cycle"] = "ends",
        gate: Literal["input", "learned"] = "input",
        channels: Annotated[int, Range(1), "channels that a gate reads, at most d_model"] = 12,
    ) -> None:
        super().__init__()
        count = min(tables or n_layers, n_layers)
        # The table of a layer, by number and width: layers with different attentions cannot share one.
        used = [(_table_of(i, count, n_layers, layout), width) for i, width in enumerate(value_widths)]
        self.layer, self.width, self.d_head = layer, value_widths[layer] if layer < n_layers else 0, d_head
        number = used[layer][0] if layer < n_layers else None
        self.owner = None if number is None or self.width == 0 else used.index((number, self.width))
        self.table = nn.Embedding(vocab_size, self.width) if self.owner == layer else None
        self.gate = self.weights = None
        if self.owner is not None and gate == "input":
            self.gate = nn.Parameter(torch.zeros(self.width // d_head, min(channels, d_model)))
        elif self.owner is not None:
            self.weights = nn.Parameter(torch.tensor([0.5, 0.5]))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        if self.owner is not None and ctx.tokens is not None:
            found = ctx.passed_on(("value embeddings", self.owner), partial(self.look_up, ctx.tokens))
            ctx.hand_values(self.layer, partial(self.mixed, found))
        return x

    def look_up(self, tokens: Tensor) -> Any:
        """Return the rows of this layer's table: (B, T) -> (B, T, width)."""
        if self.table is None:
            raise UserError(f"layer {self.layer} uses the value embeddings of layer {self.owner}, which did not run\n"
                            "    try: ablatio show shortcut --author")  # fmt: skip
        return self.table(tokens)

    def mixed(self, found: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """Mix the embeddings into the values: found, v (B, T, width), x (B, T, D) -> (B, T, width)."""
        if self.weights is not None:
            return self.weights[0] * v + self.weights[1] * found
        assert self.gate is not None
        # 2 sigmoid(0) = 1: with W = 0 the embeddings are added whole.
        gates = 2 * torch.sigmoid(x[..., : self.gate.shape[1]] @ self.gate.T)  # (B, T, H_kv)
        return v + (gates[..., None] * found.unflatten(-1, (-1, self.d_head))).flatten(-2).to(v.dtype)


def _table_of(layer: int, count: int, n_layers: int, layout: str) -> int | None:
    """Number of the table of a layer; None: it has none."""
    if layout == "cycle" or layer < count:
        return layer % count
    return layer - (n_layers - count) if layer >= n_layers - count else None
