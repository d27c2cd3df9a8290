"""Kinds of model parts, from the norm of a vector to a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ablatio.registry.kinds.model_methods import (
    AttentionMethods,
    NormMethods,
    PlacementMethods,
    PositionMethods,
)
from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ablatio.model.context import Context


class Norm(Protocol):
    """Normalizes the last axis: (..., D) -> (..., D).

    Wiring:
    d_model           D, length of the last axis

    Methods:
    forward(x)        (..., D) -> (..., D)
    for_heads(width)  optional, static: the module for queries, keys or values of a head (`attention.qk_norm`), if it
                      differs from the part itself with its default knobs
    """

    def forward(self, x: Tensor) -> Tensor: ...


class Placement(Protocol):
    """Wraps one sublayer with its norms and its residual connection: (B, T, D) -> (B, T, D).

    Wiring:
    d_model          D, width of the residual stream
    n_layers         number of layers of the stack
    layer            number of the layer, from 0; None for the instance that opens and closes the stream
    sublayer         position of the sublayer in its layer, from 0
    around           which sublayer this instance wraps: attention | cross | mlp | both (attention and feed-forward of a
                     joint sublayer)
    side             encoder | decoder: the stack
    encoder_layers   number of layers of the encoder, 0 without one
    decoder_layers   number of layers of the decoder, 0 without one

    Methods:
    __call__(x, sublayer, norm)  x (B, T, D) -> (B, T, D); `sublayer` is a function (B, T, D) -> (B, T, D); `norm` is
                     one module if `n_norms` is 1, else a ModuleList of `n_norms` modules

    Facts:
    n_norms          norms per sublayer; a pair gives those of an attention and those of a feed-forward part
    first_norms      `n_norms` of the first layer if it differs; None: it does not
    final_norm       True if the stack ends with a norm
    embedding_norm   True if a norm follows the embedding
    inner_norm       sublayers (attention, mlp) that get a norm before their last projection
    batch_dependent  see Mlp
    waits            see Mlp

    Attributes:
    gain             factor on the initial value, output and feed-forward matrices (DeepNorm's beta)

    Optional, for a residual stream whose shape is not (B, T, D):
    open(x)          makes the stream from the embeddings (B, T, D), before the first layer
    close(x, norm)   turns it back into (B, T, D) after the last layer and applies the final norm (the identity if there
                     is none).  Both are called on an instance with `layer` None, which needs no sublayer weights.  All
                     layers of a stack must have such a placement
    """

    n_norms: ClassVar[int | tuple[int, int]]
    first_norms: ClassVar[int | tuple[int, int] | None]
    final_norm: ClassVar[bool]
    embedding_norm: ClassVar[bool]
    inner_norm: ClassVar[Sequence[str]]
    gain: float
    batch_dependent: ClassVar[bool]

    def __call__(self, x: Tensor, sublayer: Any, norm: nn.Module) -> Tensor: ...


class Activation(Protocol):
    """Elementwise function of `(x)`, or gated function of `(gate, up)`, for which the MLP adds a gate projection.

    A class defines `forward` with the same arguments.

    Wiring:
    d_ff               F, width inside the feed-forward part

    Methods:
    forward(x)         (..., F) -> (..., F); for an elementwise one
    forward(gate, up)  (..., F), (..., F) -> (..., F); for a gated one

    Facts:
    gated              True if it takes (gate, up); set from the signature of a function
    across_features    True if a feature of the result depends on other features of its token
    column_parallel    see Attention: tensors with an entry for each of the F features; all others are alike for all
    """

    def __call__(self, *args: Tensor) -> Tensor: ...


class Mlp(Protocol):
    """Feed-forward part of a layer: (B, T, D) -> (B, T, D).

    Auxiliary losses and logged numbers are passed to `ctx.add_loss("train/balance", x)` and `ctx.measure(...)`.

    Wiring:
    d_model          D, width of the residual stream
    d_ff             F, width inside
    activation       the chosen activation, a function of (x) or, if `gated`, of (gate, up)
    gated            True if the activation takes (gate, up)
    bias             True if the linear maps have a bias (`model.bias`)
    dropout          probability of dropout
    layer            number of the layer, from 0
    n_layers         number of layers of the stack
    inner_norm       norm of this width before the last projection, or None: a function width -> module

    Methods:
    forward(x, ctx)  (B, T, D) -> (B, T, D); `ctx` is the pass's Context (ablatio.model.context)

    Facts:
    metrics          names of those losses and numbers
    batch_dependent  True if the output for a token in training depends on the other tokens of the forward pass, as
                     with expert capacity.  Splitting a batch or a row into several passes would change the result, so
                     each answer is then encoded together with its prompt, not after a prompt encoded once for all
    absent           True for the option that leaves the feed-forward part out: layers are built without it
    waits            why a training step makes the host wait for a GPU (it reads values, or shapes depend on them);
                     "": it does not
    column_parallel, row_parallel, replicated, enters  see Attention, with features in place of heads
    splits_tokens    True if each token is treated by itself, in training too
    splits_layers    False if it hands something on to other layers, or reads what they have left

    Attributes:
    idle_parameters  optional: number of weights that one token does not use, as those of experts not routed to
    """

    batch_dependent: ClassVar[bool]

    def forward(self, x: Tensor, ctx: Context) -> Tensor: ...


class Position(Protocol):
    """Position encoding: defines one or more of embed, rotate, bias and score.  Positions are (T,) or (B, T) integers.

    Wiring:
    d_model                  D, width of the residual stream
    d_head                   width of a head
    n_heads                  H, number of heads
    n_layers                 number of layers of the stack
    max_len                  largest number of tokens in training
    causal                   True if tokens attend to earlier tokens only

    Methods:
    embed(x, pos)            (B, T, D) -> (B, T, D); called once per forward pass, on the embeddings
    rotate(q, k, pos)        (B, H, T, d_head) each -> the same shapes; called in every layer
    bias(q_pos, k_pos)       -> (H, T, S) or (B, H, T, S), added to the attention logits; called once per forward pass
    pair_bias()              optional, of a bias without weights: a function (head, query position, key position) ->
                             the bias of one pair, of scalar tensors, for a GPU kernel that computes it as it goes
    score(q, k, q_pos, k_pos)  (B, H, T, d_head), (B, H, S, d_head) -> (B, H, T, S), added to the attention logits;
                             called in every layer
    prepare(pos, dtype, length)  optional: called once per forward pass; its result is passed to `rotate` in place of
                             `pos`.  `length`: number of tokens seen so far, a scalar or one per position
    skips(layer)             optional: True if `rotate` is not applied in this layer

    Facts:
    extends              True if positions beyond `max_len` are supported
    rotates_cached_keys  True if the angles depend on `length`: the cache then holds unrotated keys, all of which are
                         rotated again at each decoding step
    waits                see Mlp
    splits_heads         True if `rotate` and `score` treat each head by itself, whatever the number of heads of q and k
    column_parallel      see Attention: what `rotate` and `score` use head by head

    Under 16-bit autocast a bias or a score, and the attention that they are added to, are computed in float32; `rotate`
    gets 16-bit q and k, and tables in float32 from `prepare`, and rounds once.
    """

    extends: ClassVar[bool]
    rotates_cached_keys: ClassVar[bool]


class Attention(Protocol):
    """Attention sublayer: (B, T, D) -> (B, T, D); `ctx` holds positions, mask and cache.

    Wiring:
    d_model              D, width of the residual stream
    d_head               width of a head
    n_heads              H, number of query heads
    n_layers             number of layers of the stack
    max_len              largest number of tokens in training
    bias                 True if the linear maps have a bias (`model.bias`)
    dropout              probability of dropout on the attention weights
    layer                number of the layer, from 0
    scale                factor on the logits; None: d_head^-1/2
    inner_norm           norm before o_proj, or None: a function width -> module
    head_norm            norm of queries and keys, for a knob `qk_norm`: a function (name, place, width) -> module

    Methods:
    forward(x, ctx)      (B, T, D) -> (B, T, D); `ctx` is the pass's Context (ablatio.model.context)
    hidden_flops(ctx)    optional: FLOPs per row that a FLOP counter counts although the attention pattern masks the
                         pairs; they are subtracted from the count

    Facts: True if the attention ...
    caches               decodes with the KV cache (`ctx.place`, `ctx.cache`)
    takes_bias           adds a position's bias or score to its logits
    takes_segments       keeps the documents of a packed row apart
    cross                can attend to an encoder's states, when `ctx.memory` is given (`ctx.keys_values`)
    bidirectional        can attend to later tokens, when `ctx.mask` is "full" or the row has a visible prefix
    prefix               accepts keys and values of virtual tokens in front of the text, as prefix tuning adds them
    rotates_cached_keys  can cache unrotated keys, for a position with the fact of the same name
    queries_scale        scales its logits where its queries are scaled, which a norm of the queries undoes; False:
                         the factor d_head^-1/2 cannot be folded into q_proj.  With a knob `qk_norm` it is its default's
    absent               is left out: layers are built without attention, its norms and its residual connection
    takes_values         takes what a shortcut hands to its keys and values: it computes them from `ctx.inputs`, passes
                         its values through `ctx.with_values` and has a `value_width`
    metrics              (names, not a flag) numbers logged through `ctx.measure`
    same_in_groups       (a name, not a flag) knob that says how many layers, from a multiple of it on, must have this
                         attention, because the first of them computes what the others use, and the position of the
                         first, whose keys they read; "": none
    float32_products     computes matrix products in float32 under 16-bit autocast, such as running sums over a text:
                         more exact, and slower on a GPU than 16-bit products
    waits                (a reason, not a flag) see Mlp

    Facts for devices that divide the heads (ablatio.model.tensor_parallel): names of its linear maps and tensors.  An
    attention that can be divided names them so that each head is computed from its own rows and columns of these:
    column_parallel      linear maps whose rows make heads, the rows of a head one after another; tensors (H, ...) with
                         an entry for each head
    row_parallel         linear maps whose columns read the heads and whose outputs are summed; (): it cannot be divided
    replicated           modules and tensors that are used on each head in the same way, as a norm of queries
    enters               modules whose output all heads use, computed on every device

    Facts for devices that divide the tokens of a row (ablatio.model.token_parallel):
    splits_tokens        True if a token needs nothing of the others but the keys and values that `ctx.place` returns

    Facts for devices that divide the layers (ablatio.model.stages):
    splits_layers        False if it hands something on to other layers, or reads what they have left (`ctx.passed_on`)
    """

    caches: ClassVar[bool]
    takes_bias: ClassVar[bool]
    takes_segments: ClassVar[bool]
    cross: ClassVar[bool]
    bidirectional: ClassVar[bool]
    prefix: ClassVar[bool]
    rotates_cached_keys: ClassVar[bool]

    def forward(self, x: Tensor, ctx: Context) -> Tensor: ...


class Block(Protocol):
    """One layer: (B, T, D) -> (B, T, D); with `parts.cross` it also attends to an encoder, through `ctx.cross`.

    Wiring:
    parts           functions that make the layer's parts: attention, cross, mlp, norms, placement
                    (ablatio.model.builder.LayerParts)

    Methods:
    forward(x, ctx)  (B, T, D) -> (B, T, D); `ctx` is the pass's Context (ablatio.model.context)

    Facts:
    cross           True if the block uses `parts.cross`
    joint_sublayer  True if attention and feed-forward form one sublayer inside one placement
    optional_sublayers  True if the block can do without attention (`parts.attention` is None) or feed-forward
    whole_stack     True if it connects layers of the stack, so that all of them must have this block
    """

    cross: ClassVar[bool]
    joint_sublayer: ClassVar[bool]
    optional_sublayers: ClassVar[bool]
    whole_stack: ClassVar[bool]

    def forward(self, x: Tensor, ctx: Context) -> Tensor: ...


DIVIDED: dict[str, Any] = {
    "splits_tokens": False, "splits_layers": True,
    "column_parallel": (), "row_parallel": (), "replicated": (), "enters": (),
}  # fmt: skip
ATTENTION: dict[str, Any] = {
    "caches": True, "takes_bias": True, "takes_segments": True, "queries_scale": True, "cross": False,
    "bidirectional": True, "prefix": False, "rotates_cached_keys": True, "takes_values": False, "metrics": (),
    "absent": False, "same_in_groups": "", "float32_products": False, "waits": "", **DIVIDED,
}  # fmt: skip

norms: Registry[nn.Module] = Registry(
    "norm",
    "How the residual stream is normalized.",
    contract=(Norm, NormMethods),
    wiring=("d_model",),
    methods=("forward",),
    scope="model",
    per_layer="also outside",
    usual="rmsnorm",
)

placements: Registry[Placement] = Registry(
    "placement",
    "Where the norms are placed around a sublayer, and how the residual is scaled.",
    contract=(Placement, PlacementMethods),
    wiring=("d_model", "n_layers", "layer", "sublayer", "around", "side", "encoder_layers", "decoder_layers"),
    methods=("__call__",),
    facts={
        "n_norms": 1,
        "first_norms": None,
        "final_norm": True,
        "embedding_norm": False,
        "inner_norm": (),
        "batch_dependent": False,
        "waits": "",
    },
    any_of=("open", "close"),
    scope="model",
    per_layer="also outside",
    usual="pre",
)

activations: Registry[Activation] = Registry(
    "activation",
    "The nonlinearity of the feed-forward part; gated activations take (gate, up).",
    contract=(Activation,),
    wiring=("d_ff",),
    calls={("x",): {"gated": False}, ("gate", "up"): {"gated": True}},
    methods=("forward",),
    facts={"gated": False, "across_features": False, "column_parallel": ()},
    scope="model",
    per_layer="inside",
    usual="swiglu",
)

mlps: Registry[nn.Module] = Registry(
    "mlp",
    "The feed-forward part of a layer.",
    contract=(Mlp,),
    wiring=("d_model", "d_ff", "activation", "gated", "bias", "dropout", "layer", "n_layers", "inner_norm"),
    methods=("forward",),
    facts={"metrics": (), "batch_dependent": False, "absent": False, "waits": "", **DIVIDED},
    scope="model",
    per_layer="inside",
    usual="dense",
)

positions: Registry[Position] = Registry(
    "position",
    "How token positions are encoded.",
    contract=(Position, PositionMethods),
    wiring=("d_model", "d_head", "n_heads", "n_layers", "max_len", "causal"),
    any_of=("embed", "rotate", "bias", "score"),
    facts={
        "extends": True,
        "rotates_cached_keys": False,
        "waits": "",
        "splits_heads": False,
        "column_parallel": (),
    },
    scope="model",
    per_layer="also outside",
    usual="rope",
)

attentions: Registry[nn.Module] = Registry(
    "attention",
    "How tokens attend to one another.",
    contract=(Attention, AttentionMethods),
    wiring=(
        "d_model",
        "d_head",
        "n_heads",
        "n_layers",
        "max_len",
        "bias",
        "dropout",
        "layer",
        "scale",
        "inner_norm",
        "head_norm",
    ),
    methods=("forward",),
    facts=ATTENTION,
    scope="model",
    per_layer="inside",
    usual="mha",
)

blocks: Registry[nn.Module] = Registry(
    "block",
    "How attention and feed-forward are combined into a layer.",
    contract=(Block,),
    wiring=("parts",),
    methods=("forward",),
    facts={"cross": False, "joint_sublayer": False, "optional_sublayers": False, "whole_stack": False},
    scope="model",
    per_layer="inside",
    usual="sequential",
)
