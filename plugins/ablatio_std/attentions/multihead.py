"""Softmax attention with one key-value head for each query head, for a group of them, or for all of them."""

from typing import Annotated, Unpack

from ablatio import Range, attentions, rule
from ablatio.model.attention.softmax_attention import (
    AttentionWiring,
    QKNorm,
    QKVBias,
    Sinks,
    Softcap,
    VNorm,
)
from ablatio_std.attentions._refinements import Exclusive, KeyOffset, QueryGain, Refined, SSMax


@attentions.register("mha", paper="arXiv:1706.03762")
class MultiHead(Refined):
    """softmax(q k^T / sqrt(d_head)) v in n_heads heads, each with its own keys and values.  (B, T, D) -> same."""

    prefix = True

    def __init__(
        self,
        *,
        qk_norm: QKNorm = "none",
        v_norm: VNorm = "none",
        softcap: Softcap = 0.0,
        sinks: Sinks = False,
        qkv_bias: QKVBias = None,
        exclusive: Exclusive = "none",
        key_offset: KeyOffset = 0.0,
        query_gain: QueryGain = None,
        ssmax: SSMax = False,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(
            wiring["n_heads"], qk_norm=qk_norm, v_norm=v_norm, softcap=softcap, sinks=sinks, qkv_bias=qkv_bias,
            exclusive=exclusive, key_offset=key_offset, query_gain=query_gain, ssmax=ssmax, **wiring,
        )  # fmt: skip


@attentions.register("mqa", paper="arXiv:1911.02150")
class MultiQuery(Refined):
    """softmax(q k^T / sqrt(d_head)) v with one key-value head for all query heads.  (B, T, D) -> same.

    The cache is n_heads times smaller than that of attention=mha.
    """

    prefix = True
    column_parallel = tuple(name for name in Refined.column_parallel if name not in ("k_proj", "v_proj"))
    enters = ("k_proj", "v_proj")

    def __init__(
        self,
        *,
        qk_norm: QKNorm = "none",
        v_norm: VNorm = "none",
        softcap: Softcap = 0.0,
        sinks: Sinks = False,
        qkv_bias: QKVBias = None,
        exclusive: Exclusive = "none",
        key_offset: KeyOffset = 0.0,
        query_gain: QueryGain = None,
        ssmax: SSMax = False,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(
            1, qk_norm=qk_norm, v_norm=v_norm, softcap=softcap, sinks=sinks, qkv_bias=qkv_bias,
            exclusive=exclusive, key_offset=key_offset, query_gain=query_gain, ssmax=ssmax, **wiring,
        )  # fmt: skip


@attentions.register("gqa", paper="arXiv:2305.13245")
class GroupedQuery(Refined):
    """softmax(q k^T / sqrt(d_head)) v with one key-value head for each n_heads / n_kv_heads query heads."""

    prefix = True

    def __init__(
        self,
        *,
        n_kv_heads: Annotated[int, Range(1), "number of key-value heads; a divisor of model.n_heads"] = 2,
        qk_norm: QKNorm = "none",
        v_norm: VNorm = "none",
        softcap: Softcap = 0.0,
        sinks: Sinks = False,
        qkv_bias: QKVBias = None,
        exclusive: Exclusive = "none",
        key_offset: KeyOffset = 0.0,
        query_gain: QueryGain = None,
        ssmax: SSMax = False,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(
            n_kv_heads, qk_norm=qk_norm, v_norm=v_norm, softcap=softcap, sinks=sinks, qkv_bias=qkv_bias,
            exclusive=exclusive, key_offset=key_offset, query_gain=query_gain, ssmax=ssmax, **wiring,
        )  # fmt: skip


# A rule whose condition reads a missing knob does not apply, so this holds for every attention with n_kv_heads.
rule(
    when="model.n_heads % attention.n_kv_heads != 0",
    why="each group of query heads shares one key-value head, so attention.n_kv_heads={attention.n_kv_heads} must "
    "divide model.n_heads={model.n_heads}",
    fix="attention.n_kv_heads={nearest_divisor(model.n_heads, attention.n_kv_heads)}",
    where="attention",
)
