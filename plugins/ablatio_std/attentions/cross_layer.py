"""Softmax attention whose keys and values are shared by neighboring layers."""

from typing import Annotated, Any, Unpack

from torch import Tensor

from ablatio import Range, attentions, rule
from ablatio.errors import UserError
from ablatio.model.attention.kernels import AttentionView, merge_heads
from ablatio.model.attention.softmax_attention import BY_HEADS, AttentionWiring, KVHeads, QKNorm, SoftmaxAttention
from ablatio.model.context import Context


@attentions.register("cross_layer", paper="arXiv:2405.12981")
class CrossLayer(SoftmaxAttention):
    """softmax(q k^T / sqrt(d_head)) v, with k and v of the first layer of each group of `share` layers (CLA).

    The other layers of a group have queries only, so that the cache is `share` times smaller.
    """

    cross = False
    rotates_cached_keys = False
    same_in_groups = "share"
    splits_tokens, splits_layers = True, False
    column_parallel, row_parallel, replicated = BY_HEADS

    def __init__(
        self,
        *,
        share: Annotated[int, Range(1), "number of layers that share their keys and values; 1: none do"] = 2,
        n_kv_heads: KVHeads = None,
        qk_norm: QKNorm = "none",
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(n_kv_heads or wiring["n_heads"], qk_norm=qk_norm, **wiring)
        self.source = self.layer - self.layer % share
        if self.source != self.layer:
            # Removed and not only unused, so that parameters and weight decay do not count them.
            del self.k_proj, self.v_proj, self.k_norm

    def place(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor, Context | AttentionView]:
        q, k, v = ctx.place(self.layer, q, k, v)
        # After the cache and the rotation: the other layers read them as they are.
        ctx.passed_on(("keys and values", self.layer), lambda: (k, v))
        return q, k, v, ctx

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        if self.source == self.layer:
            return super().heads(x, ctx)
        k, v = ctx.passed_on(("keys and values", self.source), self.missing)
        q = self.queries(x)
        # rotate takes queries and keys; the keys here are rotated already.
        return merge_heads(self.mix(ctx.rotate(q, q, self.layer)[0], k, v, ctx))

    def missing(self) -> Any:
        """Raise UserError: the layer whose keys and values this one uses has another attention."""
        raise UserError(
            f"attention=cross_layer in layer {self.layer} uses the keys and values of layer {self.source}, which has "
            "another attention\n    try: attention=mha"
        )


rule(
    when="attention.name == 'cross_layer' and model.distinct_layers is not None "
    "and model.distinct_layers < model.n_layers",
    why="only the first of attention.share={attention.share} layers projects keys and values, and "
    "model.distinct_layers={model.distinct_layers} of model.n_layers={model.n_layers} makes layers share parameters",
    fix="attention=mha",
    where="model.distinct_layers",
)
rule(
    when="attention.name == 'cross_layer' and attention.share > 1 and position.name == 'rope' and "
    "position.skip_every is not None",
    why="attention.share={attention.share} layers read the keys of the first of them, which are rotated in all layers "
    "but every {position.skip_every}th (position.skip_every); queries and keys must be rotated alike",
    fix="position.skip_every=null",
    where="position.skip_every",
)
