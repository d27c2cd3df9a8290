"""A stack of blocks on an embedding: tokens to hidden states; the names of the parameters are LLaMA's."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ablatio.errors import UserError
from ablatio.model.context import Context, EncoderOutput, MaskKind, Record, make_context
from ablatio.model.cross_entropy import Tie, compute_dtype
from ablatio.model.kv_cache import KVCache, Recording, Standing

if TYPE_CHECKING:
    from ablatio.model.build import ModelBuilder

Side = Literal["encoder", "decoder"]


def in_turn(layers: Sequence[nn.Module], x: Tensor, ctx: Context) -> Tensor:
    """One layer after the other: (B, T, D) -> same."""
    for layer in layers:
        x = layer(x, ctx)
    return x


Run = Callable[[Sequence[nn.Module], Tensor, Context], Tensor]


class Virtual(nn.Module):
    """Tokens that are not there, before each text of a stack: what its layers would have kept of them.

    tokens  how many
    """

    tokens: int

    def forward(self, stack: "Stack") -> dict[int, tuple[Tensor, Tensor]]:
        """Keys and values of each layer, as they would lie in the cache: (H_kv, n, d_head)."""
        raise NotImplementedError


class Stack(nn.Module):
    """Embedding, position, layers and the last norm: tokens (B, T) -> hidden states (B, T, D).

    virtual  tokens before each text (prefixes, soft prompts), which every document of a row sees
    run      how the stream goes through layers: in turn, or so that less of it is kept (activation checkpointing)

    depth, d_model, gain  what inits ask for: the number of layers, the width, and the factor that the placement puts on
                          some matrices
    further               siblings of the last layer, for an objective that asks for tokens further ahead: they read
                          what it reads, and only training asks them
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
        """opens: whether a prefix is seen in both directions; table: the embedding of another stack, to share it."""
        super().__init__()
        dims, placed = builder.dims, builder.placement(None, side)
        self.mask, self.depth, self.gain = mask, builder.depth(side), float(placed.gain)
        self.d_model = dims.d_model
        self.max_len, self.dropout, self.scale = dims.max_len, dims.dropout, dims.embedding_scale
        self.embed_tokens = table or nn.Embedding(dims.vocab_size, dims.d_model)
        self.embed_norm = builder.embedding_norm(side)
        self.position = builder.position(mask == "causal" and not opens, side)
        self.layers = nn.ModuleList(builder.layers(side))
        self.further = nn.ModuleList(builder.siblings(side))
        self.norm = builder.final_norm(side)
        self.stream = placed if hasattr(placed, "open") else None
        self.virtual: Virtual | None = None
        self.run: Run = in_turn
        path = builder.root(side)
        place = builder.attach("embedding", nn.Identity(), f"{path}.embedded", side)
        self.embedded = place if [*place.children()] else None  # what a kind of a plugin puts there
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
    ) -> Tensor:
        """Hidden states (B, T, D).

        segments (B, T): documents packed in a row; opened (B, T): tokens that all of their document sees; memory: what
        an encoder read; record: collects what the layers say beside their output.
        """
        if self.virtual is not None and (cache is None or cache.length == 0):
            standing = Standing(self.virtual(self))
            cache = standing if cache is None else standing.put_before(cache, len(tokens))
        x = self.embed_tokens(tokens) if tie is None else tie.embed(self.embed_tokens.weight, tokens)
        x = x if self.scale == 1.0 else x * self.scale
        ctx = self._context(tokens, segments, cache, x.dtype, opened, memory, record)
        x = self.through(x, ctx, record)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return x

    def keys_values_of(self, x: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """What each layer makes of embeddings (n, D) at the start of a text: keys and values (H_kv, n, d_head)."""
        recording = Recording()
        ids = torch.zeros(1, len(x), dtype=torch.long, device=x.device)
        self.through(x[None], self._context(ids, None, recording, x.dtype, None, None, None))
        return recording.seen

    def through(self, x: Tensor, ctx: Context, record: Record | None = None) -> Tensor:
        """Embeddings (B, T, D) -> hidden states (B, T, D)."""
        if hasattr(self.position, "embed"):
            x = self.position.embed(x, ctx.q_pos)
        x = x if self.embed_norm is None else self.embed_norm(x)
        x = x if self.embedded is None else self.embedded(x)
        x = nn.functional.dropout(x, self.dropout, self.training) if self.dropout else x
        x = x if self.stream is None else self.stream.open(x)
        *layers, last = self.layers
        x = self.run(layers, x, ctx)
        if record is not None and record.further is not None:
            record.further += [self._leave(self.run([sibling], x, ctx)) for sibling in self.further]
        return self._leave(self.run([last], x, ctx))

    def _leave(self, x: Tensor) -> Tensor:
        """The stream after the last layer -> hidden states (B, T, D)."""
        norm = nn.Identity() if self.norm is None else self.norm
        hidden: Tensor = norm(x) if self.stream is None else self.stream.close(x, norm)
        return hidden

    def reaches(self, tokens: int) -> bool:
        """Whether so many tokens of a text fit behind the virtual ones."""
        return self._knows(tokens + (0 if self.virtual is None else self.virtual.tokens))

    def _knows(self, length: int) -> bool:
        return length <= self.max_len or bool(getattr(self.position, "extends", True))

    def _context(
        self,
        tokens: Tensor,
        segments: Tensor | None,
        cache: KVCache | None,
        dtype: torch.dtype,
        opened: Tensor | None,
        memory: EncoderOutput | None,
        record: Record | None,
    ) -> Context:
        length = tokens.shape[1] + (cache.length if cache is not None else 0)
        if not self._knows(length):
            raise UserError(
                f"{length} tokens came; this model's position knows model.max_len={self.max_len} and no more. "
                f"Train with model.max_len={length}, or choose position=alibi or position=rope"
            )
        dtype = compute_dtype(tokens.device, dtype)
        return make_context(
            tokens, self.position, self.mask, segments, cache, dtype, opened=opened, memory=memory, record=record
        )
