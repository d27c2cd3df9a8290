"""Stack of blocks on an embedding: tokens to hidden states; parameters have LLaMA's names."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.context import Context, EncoderOutput, MaskKind, make_context
from ablatio.model.cross_entropy import Tie
from ablatio.model.dims import Side
from ablatio.model.kv_cache import KVCache, RecordingCache, VirtualTokensCache
from ablatio.model.records import Record

if TYPE_CHECKING:
    from ablatio.model.builder import ModelBuilder


def run_in_order(layers: Sequence[nn.Module], x: Tensor, ctx: Context) -> Tensor:
    """Apply the layers in order: (B, T, D) -> same."""
    for layer in layers:
        x = layer(x, ctx)
    return x


def spans(numbers: Sequence[int]) -> list[tuple[int, int, int]]:
    """Consecutive layers with the same number, as (start, stop, number): [0, 0, 1] -> [(0, 2, 0), (2, 3, 1)]."""
    cuts = [i for i in range(len(numbers)) if i == 0 or numbers[i] != numbers[i - 1]]
    return [(start, stop, numbers[start]) for start, stop in zip(cuts, [*cuts[1:], len(numbers)], strict=True)]


Run = Callable[[Sequence[nn.Module], Tensor, Context], Tensor]


class Virtual(nn.Module):
    """Base of virtual tokens before each text of a stack (prefixes, soft prompts): keys and values for each layer.

    tokens  their number n
    """

    tokens: int

    def forward(self, stack: "Stack") -> dict[int, tuple[Tensor, Tensor]]:
        """Return {layer: (keys, values)}, each (H_kv, n, d_head), as they would stand in the cache."""
        raise NotImplementedError


class Stack(nn.Module):
    """Embedding, position, layers and final norm: tokens (B, T) -> hidden states (B, T, D).

    virtual  virtual tokens before each text (prefixes, soft prompts), visible to every document of a row
    run      function that applies the layers: in order, or with activation checkpointing

    depth, d_model, gain  read by inits: number of layers, width, and the placement's factor on some matrices
    gains                 that factor for each layer, where the placements of the layers differ
    embedding             part that makes the embeddings from rows of `embed_tokens`; None: these are the embeddings
    shortcut              part that acts after the last layer; those before layers are their submodules; or None
    position              the run's position encoding; `other_positions` are those of layers that have another one
    further               siblings of the last layer for objectives that predict tokens further ahead: each reads the
                          same input as the last layer; used in training only
    """

    def __init__(
        self,
        builder: "ModelBuilder",
        mask: MaskKind,
        side: Side = "decoder",
        *,
        opens: bool = False,
        table: Any = None,
    ) -> None:
        """Build the stack; opens: a prefix is attended to in both directions; table: embedding shared with another."""
        super().__init__()
        dims, placed, mixed = builder.dims, builder.placement(None, side), builder.varies("placement")
        self.mask, self.depth, self.gain = mask, builder.depth(side), float(placed.gain)
        self.gains = tuple(float(builder.placement(i, side).gain) for i in range(self.depth)) if mixed else ()
        self.d_model = dims.d_model
        self.max_len, self.dropout, self.scale = dims.max_len, dims.dropout, dims.embedding_scale
        self.embedding = builder.embedding(side)
        self.embed_tokens = table or nn.Embedding(dims.vocab_size, getattr(self.embedding, "width", dims.d_model))
        self.embed_norm = builder.embedding_norm(side)
        (self.position, *others), numbers = builder.positions(mask == "causal" and not opens, side)
        self._others, self._spans = others, spans(numbers)
        self.other_positions = nn.ModuleList(p if isinstance(p, nn.Module) else nn.Identity() for p in others)
        self.layers = nn.ModuleList(layers := builder.layers(side))
        self.further = nn.ModuleList(builder.siblings(layers, side))
        self.norm = builder.final_norm(side)
        self.stream = placed if hasattr(placed, "open") else None
        self.virtual: Virtual | None = None
        self.run: Run = run_in_order
        path = builder.root(side)
        self.shortcut = builder.shortcut(self.depth, layers, f"{path}.shortcut", side)
        place = builder.attach("embedding", nn.Identity(), f"{path}.embedded", side)
        self.embedded = place if [*place.children()] else None  # parts of kinds that attach to the embedding
        builder.attach("hidden", self, path, side)

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        opened: Tensor | None = None,
        memory: EncoderOutput | None = None,
        record: Record | None = None,
        tie: Tie | None = None,
        tree: Tensor | None = None,
    ) -> Tensor:
        """Compute hidden states: tokens (B, T) -> (B, T, D).

        segments (B, T)  document of each token in packed rows; None: one document per row
        opened (B, T)    True for tokens that their whole document sees (a prefix)
        memory           encoder output, for a decoder with cross-attention
        record           collects auxiliary losses and measures of the layers
        tie              shares the embedding's gradient with the output head
        tree (T, T)      True where a token sees another: the tokens are a tree of continuations of the cached text
        """
        # Virtual tokens are computed anew in each pass, as they are trained; a filled cache already holds them.
        static = cache is not None and cache.filled is not None
        if self.virtual is not None and not static and (cache is None or cache.length == 0):
            virtual = VirtualTokensCache(self.virtual(self))
            cache = virtual if cache is None else virtual.put_before(cache, len(tokens))
        x = self.embed_tokens(tokens) if tie is None else tie.embed(self.embed_tokens.weight, tokens)  # (B, T, W)
        contexts = self.contexts(tokens, segments, cache, x.dtype, opened, memory, record, tree)
        x = self.through(self.enter(x, tokens, contexts[0]), contexts, record)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return x

    def enter(self, rows: Tensor, tokens: Tensor, ctx: Context) -> Tensor:
        """Make the embeddings (B, T, D) from rows of the token table (B, T, W): W = D, unless the part chooses it."""
        rows = rows if self.scale == 1.0 else rows * self.scale
        return rows if self.embedding is None else self.embedding(rows, tokens, ctx)

    def embeddings_of(self, ids: Tensor) -> Tensor:
        """Return the embeddings (n, D) that tokens with these ids (n,) enter as, each at the start of a text."""
        tokens, rows = ids[:, None], self.embed_tokens(ids)[:, None]
        if self.embedding is None:  # the rows alone: no context is needed
            return self.enter(rows, tokens, None)[:, 0]  # type: ignore[arg-type]
        context = make_context(tokens, None, self.mask, None, None, rows.dtype)
        return self.enter(rows, tokens, context)[:, 0]

    def keys_values_of(self, x: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Return each layer's keys and values, (H_kv, n, d_head), for embeddings (n, D) at the start of a text."""
        recording = RecordingCache()
        ids = torch.zeros(1, len(x), dtype=torch.long, device=x.device)  # only their shape is used
        contexts = self.contexts(ids, None, recording, x.dtype, None, None, None)
        self.through(x[None], [replace(ctx, tokens=None) for ctx in contexts])
        return recording.seen

    def through(self, x: Tensor, contexts: Sequence[Context], record: Record | None = None) -> Tensor:
        """Apply position, embedding norm, layers and final norm: embeddings (B, T, D) -> hidden states (B, T, D).

        contexts: one for each position encoding of the stack, the run's own first
        """
        x = self.between(self.begin(x, contexts[0]), contexts, range(len(self.layers) - 1))
        return self.finish(x, contexts, record)

    def begin(self, x: Tensor, ctx: Context) -> Tensor:
        """Make what the first layer reads of the embeddings (B, T, D): a residual stream of the placement's shape."""
        if hasattr(self.position, "embed"):
            x = self.position.embed(x, ctx.q_pos)
        x = x if self.embed_norm is None else self.embed_norm(x)
        x = x if self.embedded is None else self.embedded(x)
        x = nn.functional.dropout(x, self.dropout, self.training) if self.dropout else x
        return x if self.stream is None else self.stream.open(x)

    def between(self, x: Tensor, contexts: Sequence[Context], own: range) -> Tensor:
        """Apply the layers `own`, none of which is the last: residual stream -> same."""
        layers = [*self.layers]
        for start, stop, number in self._spans:
            if part := layers[max(start, own.start) : min(stop, own.stop)]:
                x = self.run(part, x, contexts[number])
        return x

    def finish(self, x: Tensor, contexts: Sequence[Context], record: Record | None = None) -> Tensor:
        """Apply the last layer, which runs apart because its siblings read the same, and the final norm."""
        last, ctx = self.layers[-1], contexts[self._spans[-1][2]]
        if record is not None and record.further is not None:
            caches: Sequence[KVCache | None] = record.further_caches or [ctx.cache] * len(self.further)
            for sibling, cache in zip(self.further, caches, strict=True):
                own = ctx if cache is ctx.cache else replace(ctx, cache=cache)
                record.further.append(self._close_stream(self.run([sibling], x, own), own))
        return self._close_stream(self.run([last], x, ctx), ctx)

    def _close_stream(self, x: Tensor, ctx: Context) -> Tensor:
        """Close the residual stream after the last layer and apply the final norm -> hidden states (B, T, D)."""
        x = x if self.shortcut is None else self.shortcut(x, ctx)
        norm = nn.Identity() if self.norm is None else self.norm
        hidden: Tensor = norm(x) if self.stream is None else self.stream.close(x, norm)
        return hidden

    def reaches(self, tokens: int) -> bool:
        """True if the position supports a text of `tokens` tokens after the virtual ones."""
        return self._supports(tokens + (0 if self.virtual is None else self.virtual.tokens))

    def _supports(self, length: int) -> bool:
        # Positions are computed for any length unless they say otherwise: tables end at max_len.
        return length <= self.max_len or all(getattr(p, "extends", True) for p in self.positions)

    @property
    def positions(self) -> tuple[Any, ...]:
        """The positions of the layers, each once: the one of the run, then those that layers have in its place."""
        return (self.position, *self._others)

    @property
    def rotates_cached_keys(self) -> bool:
        """True if a position of some layer depends on the length, so that all cached keys are rotated in each pass."""
        return any(getattr(p, "rotates_cached_keys", False) for p in self.positions)

    def contexts(
        self,
        tokens: Tensor,
        segments: Tensor | None,
        cache: KVCache | None,
        dtype: torch.dtype,
        opened: Tensor | None,
        memory: EncoderOutput | None,
        record: Record | None,
        tree: Tensor | None = None,
    ) -> list[Context]:
        """Make the contexts of one pass over `tokens` (B, T), one for each position encoding of the stack.

        dtype  of the embeddings; the other arguments are those of `forward`
        """
        static = cache is not None and cache.filled is not None  # whose room was asked for once
        length = tokens.shape[1] + (cache.length if cache is not None and not static else 0)
        if not self._supports(length):
            raise UserError(
                f"the text has {length} tokens, but this model's position supports at most model.max_len="
                f"{self.max_len}\n    try: train with model.max_len={length}, or with position=alibi or position=rope"
            )
        first = make_context(
            tokens,
            self.position,
            self.mask,
            segments,
            cache,
            dtype,
            opened=opened,
            memory=memory,
            record=record,
            tree=tree,
        )
        return [first, *(first.with_position(position, dtype) for position in self._others)]
