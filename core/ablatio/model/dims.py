"""Sizes of a model."""

from dataclasses import dataclass
from typing import Literal

from ablatio.errors import UserError

Side = Literal["encoder", "decoder"]


@dataclass(frozen=True, slots=True)
class ModelDims:
    """Sizes of a model.

    Of the n_layers of a stack, distinct_layers have their own weights and the others share these: in a cycle (looped,
    as in the Universal Transformer, arXiv:1807.03819), in runs of consecutive layers (as ALBERT's groups,
    arXiv:1909.11942), or in a loop over the middle layers alone, with layers before and after it that run once.
    Shared parameters are counted once, FLOPs at every use.

    Defaults of None: d_head = d_model / n_heads, d_ff = 4 d_model, encoder_layers = n_layers, attention_scale =
    d_head^-1/2 and logit_scale = 1 (unless the init sets them); the placement decides on embedding_norm and final_norm.
    """

    d_model: int
    n_layers: int
    n_heads: int
    max_len: int
    vocab_size: int
    d_head: int | None = None
    d_ff: int | None = None
    tied: bool = True
    bias: bool = False
    dropout: float = 0.0
    encoder_layers: int | None = None
    distinct_layers: int | None = None
    sharing: Literal["cycle", "runs", "middle"] = "cycle"
    embedding_norm: bool | None = None
    embedding_scale: float = 1.0
    final_norm: bool | None = None
    attention_scale: float | None = None
    logit_scale: float | None = None

    @property
    def head_width(self) -> int:
        """Width d_head of an attention head."""
        return self.d_head or self.d_model // self.n_heads

    @property
    def inner_width(self) -> int:
        """Inner width d_ff of a plain (not gated) MLP."""
        return self.d_ff or 4 * self.d_model


def matched_width(d_model: int, d_ff: int, bias: bool) -> int:
    """Return the d_ff f' of a gated MLP with as many parameters as a plain one: 3 d f' (+ biases) = 2 d f (+ biases).

    Of the widths within 1 %, one divisible by the largest power of two up to 8 is taken: matrix products are faster.
    """
    plain = 2 * d_model * d_ff + (d_ff + d_model if bias else 0)
    exact = (plain - (d_model if bias else 0)) / (3 * d_model + (2 if bias else 0))
    for step in (8, 4, 2, 1):
        width = max(step, round(exact / step) * step)
        if abs(width - exact) <= 0.01 * exact:
            return width
    return max(1, round(exact))


def rows_for(ids: int, wanted: int | None) -> int:
    """Return the number of embedding rows: `wanted`, or one per id if that is None. UserError if too few."""
    if wanted is not None and wanted < ids:
        raise UserError(f"model.vocab_size={wanted} is too small: there are {ids} ids\n    try: model.vocab_size={ids}")
    return wanted or ids
