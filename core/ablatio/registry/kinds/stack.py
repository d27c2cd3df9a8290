"""Kinds of parts around the layers: what tokens enter as, what jumps over layers, and what the head does to logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ablatio.model.context import Context


class Embedding(Protocol):
    """Makes the input of the first layer from the rows of the token table: (B, T, W), (B, T) -> (B, T, D).

    The token table `embed_tokens` (V, W) belongs to the stack, so that tied heads, exports and checkpoints know it by
    that name; its rows come scaled by `model.embedding_scale`.  The default option is not built.

    Methods:
    forward(x, tokens, ctx)  x (B, T, W): rows of the token table; tokens (B, T): their ids; ctx: the pass.  A part that
                     looks at earlier tokens keeps to their document (`ctx.segments`) and stores what decoding needs in
                     `ctx.cache` (ablatio.model.local_mixing)

    Wiring:
    d_model          D, width of the residual stream
    vocab_size       number V of token ids
    n_layers         number of layers of the stack
    max_len          longest text of training
    side             stack: encoder | decoder

    Facts:
    waits            why a training step makes the host wait for a GPU; "": it does not
    splits_tokens    True if each token is treated by itself
    splits_layers    False if it hands something on to the layers beside its output

    Attributes:
    width            optional: width W of the token table; by default d_model.  A tied head then has a projection from
                     d_model to W before it, `project_out`
    """

    def forward(self, x: Tensor, tokens: Tensor, ctx: Context) -> Tensor: ...


class Shortcut(Protocol):
    """Jumps over layers: makes what a layer reads from the outputs of all layers before it.  (B, T, D) -> same.

    A stack of L layers has one instance before each layer (`layer` 0 ... L - 1) and one after the last (`layer` = L).
    The default option is not built: a layer reads the output of the layer before.

    Methods:
    forward(x, ctx)  x: output of the layer before, the embeddings for layer 0; returns what the layer reads, or for
                     `layer` = L what the final norm reads.  States for later layers are kept in the pass, not in the
                     module: `ctx.passed_on((key, layer), lambda: x)`.  Each token is treated by itself.  Siblings of
                     the last layer have an instance of their own with the same `layer`

    Wiring:
    d_model          D, width of the residual stream
    d_head           width of a head
    n_heads          number of heads
    vocab_size       number of token ids
    layer            number of the layer that it stands before, from 0; n_layers: after the last
    n_layers         number of layers of the stack
    max_len          longest text of training
    side             stack: encoder | decoder
    value_widths     width of the values of each layer's attention; 0: nothing can be handed to it

    Facts:
    per_depth        True if the weights differ in shape between layers, so that layers cannot share them
    adds_values      True if it changes the values of attentions, through `ctx.hand_values`, or what their keys and
                     values are computed from, through `ctx.hand_inputs`
    waits            why a training step makes the host wait for a GPU; "": it does not
    """

    per_depth: ClassVar[bool]
    adds_values: ClassVar[bool]

    def forward(self, x: Tensor, ctx: Context) -> Tensor: ...


class Head(Protocol):
    """Maps the logits of the output head to those of the model: (..., V) -> (..., V), each token by itself.

    Training, scores and decoding use the mapped logits; the loss forms them by blocks of rows, so a head has no trained
    weights.  The default option is not built.

    Methods:
    forward(logits)  (..., V) -> (..., V), products of hidden states and the head's matrix, in float32 or wider in the
                     loss

    Wiring:
    d_model          D, width of the residual stream
    vocab_size       number V of token ids

    Facts:
    elementwise      True if each result depends on its own logit alone, so that devices can map the logits they have
    """

    def forward(self, logits: Tensor) -> Tensor: ...


embeddings: Registry[nn.Module] = Registry(
    "embedding",
    "What a token enters the first layer as.",
    wiring=("d_model", "vocab_size", "n_layers", "max_len", "side"),
    methods=("forward",),
    facts={"waits": "", "splits_tokens": False, "splits_layers": True},
    scope="model",
    default="plain",
    contract=(Embedding,),
)

shortcuts: Registry[nn.Module] = Registry(
    "shortcut",
    "What jumps over layers.",
    wiring=("d_model", "d_head", "n_heads", "vocab_size", "layer", "n_layers", "max_len", "side", "value_widths"),
    methods=("forward",),
    facts={"per_depth": False, "adds_values": False, "waits": ""},
    scope="model",
    default="none",
    contract=(Shortcut,),
)

heads: Registry[nn.Module] = Registry(
    "head",
    "What the output head makes of its logits.",
    wiring=("d_model", "vocab_size"),
    methods=("forward",),
    facts={"elementwise": False},
    scope="model",
    default="plain",
    contract=(Head,),
)
