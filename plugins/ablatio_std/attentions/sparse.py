"""Sparse softmax attention: a pattern selects keys by the positions of query and key in their document.

A new pattern takes ten lines: a function as described in _patterns.py, and a class that names it.
"""

from typing import Annotated, Any, Literal, Unpack

import torch
from torch import Tensor

from ablatio import Positive, Range, Schedulable, attentions, rule
from ablatio.model.attention.kernels import AttentionView
from ablatio.model.attention.softmax_attention import AttentionWiring, KVHeads, QKNorm, Sinks, Softcap
from ablatio.model.context import Context
from ablatio_std.attentions._patterns import Patterned, near
from ablatio_std.attentions._refinements import Exclusive, KeyOffset, QueryGain, Refined, SSMax

Window = Annotated[
    int | None,
    Range(1),
    Schedulable(flops=True),
    "tokens in the window, the query's own included; null: model.max_len / 8",
]
FullEvery = Annotated[int, Range(0), "layers n, 2n, ... (counted from 1) see every key; 0: no layer does"]


def near_or_first(q: Tensor, k: Tensor, window: int, first: int) -> Tensor:
    """True for keys less than `window` tokens away, and for the `first` tokens of the document."""
    return near(q, k, window) | (k < first)


def strided(q: Tensor, k: Tensor, stride: int) -> Tensor:
    """True for keys at most `stride` tokens away, or at a multiple of `stride`."""
    # The paper splits the two sets between heads or layers; here each head sees both.
    return ((q - k).abs() <= stride) | ((q - k) % stride == 0)


def fixed(q: Tensor, k: Tensor, stride: int, summary: int) -> Tensor:
    """True for keys in the query's block of `stride` tokens, and for the last `summary` tokens of each block."""
    return (q // stride == k // stride) | (k % stride >= stride - summary)


def bigbird(q: Tensor, k: Tensor, block: int, window: int, globals_: int, random: int, seed: int) -> Tensor:
    """True for keys in near blocks and in random blocks, and for pairs with one of the `globals_` first tokens."""
    q_block, k_block = q // block, k // block
    count = -(-max(q.shape[-2], k.shape[-1]) // block)
    chosen = random_blocks(count, window, random, seed, q.device)
    # The later block asks for the earlier one, so the pattern is symmetric, as an encoder needs it.
    seen = chosen[torch.maximum(q_block, k_block), torch.minimum(q_block, k_block)]
    return seen | near(q_block, k_block, window // 2 + 1) | (torch.minimum(q, k) < globals_)


def random_blocks(count: int, window: int, random: int, seed: int, device: torch.device) -> Tensor:
    """Choose for each block i up to `random` blocks j before its window: (count, count), True at [i, j].

    A hash of (i, j, seed) ranks the candidates, so that the choice for block i does not depend on the text's length.
    """
    i, j = torch.arange(count, device=device)[:, None], torch.arange(count, device=device)
    # Odd constants and shifts as of integer hashes, in 32 bits: no generator, whose numbers would depend on the count.
    draw = (i * 0x9E3779B1 + j * 0x85EBCA77 + seed * 0xC2B2AE3D) & 0xFFFFFFFF
    for shift in (15, 13):
        draw = ((draw ^ (draw >> shift)) * 0x2C1B3C6D) & 0xFFFFFFFF
    candidate = j < i - window // 2
    # Others than candidates sort last: 2^32 is above every draw.
    threshold = torch.where(candidate, draw, 1 << 32).sort(dim=-1).values[:, min(random, count) - 1, None]
    return candidate & (draw <= threshold) if random else torch.zeros_like(candidate)


class Windowed(Patterned):
    """Base of patterns that show the last `window` tokens and the `first` ones: decoding caches no others."""

    def __init__(self, n_kv_heads: int | None, window: int | None, first: int, full_every: int, **wiring: Any) -> None:
        window = window or max(1, wiring["max_len"] // 8)
        super().__init__(n_kv_heads, (near, window), full_every, **wiring)
        self.first = first
        self.window = window

    @property
    def window(self) -> int:
        """Tokens in the window; may be set during training."""
        return self._window

    @window.setter
    def window(self, tokens: int) -> None:
        self._window = tokens
        if self.pattern is not None:  # None: this layer sees every key
            self.pattern = (near_or_first, tokens, self.first) if self.first else (near, tokens)

    def place(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor, Context | AttentionView]:
        position = ctx.position
        # A position that rotates cached keys, or scores the first tokens, needs every key.
        needs_all = getattr(position, "rotates_cached_keys", False) or (self.first and hasattr(position, "score"))
        if ctx.cache is None or self.pattern is None or ctx.memory is not None or needs_all:
            return super().place(q, k, v, ctx)
        # Rotated at their true positions before they are cached, since the window drops earlier keys.
        q, k = ctx.rotate(q, k, self.layer)
        first = None
        if self.first:
            start = ctx.past + ctx.length - 1 - ctx.k_pos[..., -1:]  # (1,) or (B, 1): index of the text's first token
            first = (start + torch.arange(self.first, device=k.device)).expand(len(k), -1)  # (B, first)
        k, v, index = ctx.cache.update_window(self.layer, k, v, self.window, first)
        view = self.view(ctx)
        # No key was dropped yet: the view of the whole text fits.
        if index.shape[1] == ctx.k_pos.shape[-1]:
            return q, k, v, view
        assert isinstance(view, AttentionView)
        return q, k, v, ctx.shared(("cached view", self.pattern), lambda: view.take(index))


@attentions.register("sliding", paper="arXiv:2004.05150")
class SlidingWindow(Refined, Windowed):
    """Softmax over the keys less than `window` tokens away; every `full_every`-th layer sees all keys.

    In decoding the cache of a windowed layer holds `window` keys.  full_every=2 is Gemma 2, 6 Gemma 3, 0 Mistral.
    """

    def __init__(
        self,
        *,
        window: Window = None,
        full_every: FullEvery = 0,
        n_kv_heads: KVHeads = None,
        qk_norm: QKNorm = "none",
        softcap: Softcap = 0.0,
        sinks: Sinks = False,
        exclusive: Exclusive = "none",
        key_offset: KeyOffset = 0.0,
        query_gain: QueryGain = None,
        ssmax: SSMax = False,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(
            n_kv_heads, window, 0, full_every, qk_norm=qk_norm, softcap=softcap, sinks=sinks,
            exclusive=exclusive, key_offset=key_offset, query_gain=query_gain, ssmax=ssmax, **wiring,
        )  # fmt: skip


@attentions.register("lambda_window", paper="arXiv:2308.16137")
class LambdaWindow(Windowed):
    """Softmax over the keys less than `window` tokens away and the document's `first` tokens (a Λ-shaped mask).

    In decoding the cache holds window + first keys whatever the length of the text: the attention sinks of
    arXiv:2309.17453, with each token at its true position.
    """

    def __init__(
        self,
        *,
        window: Window = None,
        first: Annotated[int, Range(1), "tokens at the start of the document that every query sees"] = 4,
        full_every: FullEvery = 0,
        n_kv_heads: KVHeads = None,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(n_kv_heads, window, first, full_every, **wiring)


@attentions.register("sparse", paper="arXiv:1904.10509")
class Sparse(Patterned):
    """Softmax over near keys and every `stride`-th key: the union of the Sparse Transformer's two patterns.

    kind=strided  |t - s| <= stride, or stride divides t - s
    kind=fixed    s in the block of t (blocks of `stride` tokens), or among the last `summary` tokens of a block
    """

    def __init__(
        self,
        *,
        kind: Literal["strided", "fixed"] = "strided",
        stride: Annotated[int | None, Range(1), "tokens; null: the square root of model.max_len"] = None,
        summary: Annotated[int, Positive, "kind=fixed: tokens at the end of each block that all queries see"] = 1,
        full_every: FullEvery = 0,
        n_kv_heads: KVHeads = None,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        stride = stride or max(1, round(wiring["max_len"] ** 0.5))
        pattern = (strided, stride) if kind == "strided" else (fixed, stride, summary)
        super().__init__(n_kv_heads, pattern, full_every, **wiring)


rule(
    when="attention.name == 'sparse' and attention.kind == 'fixed' and attention.summary >= attention.stride > 1",
    why="attention.summary={attention.summary} of each attention.stride={attention.stride} tokens are seen by all "
    "queries, so that no key is left out",
    fix="attention.summary=1",
)


@attentions.register("bigbird", paper="arXiv:2007.14062")
class BigBird(Patterned):
    """Softmax over `window` blocks around the query's, the first `global_tokens` and `random` blocks before the window.

    The random blocks are a function of the layer and the block's index.  Global tokens see all tokens and are seen by
    all; a causal mask then hides the later ones.
    """

    def __init__(
        self,
        *,
        block: Annotated[int | None, Range(1), "tokens in a block; null: model.max_len / 16"] = None,
        window: Annotated[int, Range(1), "number of blocks in the window, centered on the query's block"] = 3,
        global_tokens: Annotated[int, Range(0), "first tokens, which see all tokens and are seen by all"] = 2,
        random: Annotated[int, Range(0), "number of random blocks for each block"] = 3,
        full_every: FullEvery = 0,
        n_kv_heads: KVHeads = None,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        block = block or max(1, wiring["max_len"] // 16)
        pattern = (bigbird, block, window, global_tokens, random, wiring["layer"])
        super().__init__(n_kv_heads, pattern, full_every, **wiring)
