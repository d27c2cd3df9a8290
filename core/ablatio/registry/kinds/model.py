"""What a model is assembled from, from the norm of a vector to the stacks that there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ablatio.model.context import Context
    from ablatio.model.language_model import LanguageModel
    from ablatio.model.parameter_roles import ParameterInfo


class Norm(Protocol):
    """Normalises the last axis: (..., D) -> (..., D).

    for_heads(width)  optional, static: the module for queries, keys or values of a head (`attention.qk_norm`), where it
                      is another than the part itself with its default knobs
    """

    def forward(self, x: Tensor) -> Tensor: ...


class Placement(Protocol):
    """Wraps one sublayer and its norms: (B, T, D) -> (B, T, D).

    around      wiring: the sublayer that it stands around: attention | cross | mlp | both (where they are added up)
    n_norms     norms that each sublayer gets (one module, or a ModuleList of none or several), or a pair: those of
                an attention, and those of a feed-forward part
    first_norms  the same of the first layer, where it has others (None: it has not)
    final_norm  whether the stack ends with a norm of its own
    embedding_norm  whether it starts with one, right after the embedding
    inner_norm  the sublayers (attention, mlp) that get a norm before their last projection
    gain        what the init of value, output and feed-forward matrices is multiplied with (deepnorm's beta)
    batch_dependent  as in an Mlp

    A stream of another shape than (B, T, D) is made by `open(x)` before the first layer and taken back by
    `close(x, norm)` after the last one, which also applies the final norm (the identity where there is none); both are
    called on an instance whose `layer` is None, which needs no weights for a sublayer.
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
    """Elementwise `(x)`, or gated `(gate, up)`: then the MLP adds a gate projection."""

    def __call__(self, *args: Tensor) -> Tensor: ...


class Mlp(Protocol):
    """(B, T, D) -> (B, T, D).

    Extra losses and numbers for the log go through `ctx.add_loss("train/balance", x)` and `ctx.measure(...)`; the fact
    `metrics` lists their names.  The attribute `idle_parameters` counts the weights that a token passes by.

    batch_dependent  in training what becomes of a token also depends on how its row, or the batch, is cut into passes
    """

    batch_dependent: ClassVar[bool]

    def forward(self, x: Tensor, ctx: Context) -> Tensor: ...


class Position(Protocol):
    """Any of these methods; the one that is defined is used.  Positions are (T,) or (B, T) integers.

    embed(x, pos)           (B, T, D) -> (B, T, D), once, on the embeddings
    rotate(q, k, pos)       (B, H, T, d_head) each -> the same, in each layer
    prepare(pos, dtype, length)  optional: made once a pass, and given to `rotate` in place of pos; length: the tokens
                            seen up to now, () or as many as there are positions
    skips(layer)            optional: whether `rotate` is left out in this layer
    bias(q_pos, k_pos)      -> (H, T, S) or (B, H, T, S), once a pass, added to the attention logits
    score(q, k, q_pos, k_pos)  (B, H, T, d_head), (B, H, S, d_head) -> (B, H, T, S), in each layer, added to the logits

    extends  whether it may see positions beyond `max_len`
    rotates_cached_keys  the angles depend on `length`: the cache holds keys unrotated, and all are rotated at each step
    """

    extends: ClassVar[bool]
    rotates_cached_keys: ClassVar[bool]


class Attention(Protocol):
    """(B, T, D) -> (B, T, D), through `ctx` for positions, mask and cache.

    caches          decodes with the KV cache (`ctx.place`, `ctx.cache`)
    takes_bias      adds a position's bias or score to its logits
    takes_segments  keeps packed documents apart
    cross           attends to an encoder's states where `ctx.memory` is given (`ctx.keys_values`)
    bidirectional   may see what comes later, when `ctx.mask` is "full" or a prefix is open
    prefix          its keys and values may begin with those of tokens that are not there
    rotates_cached_keys  caches keys unrotated for a position that rotates all of them at each step

    hidden_flops(ctx)  optional: of one row, the FLOPs of pairs that a counter takes for seen and a pattern hides
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

    cross     whether it has a place for `parts.cross`
    joint_sublayer   whether attention and feed-forward are one sublayer, with one placement around both
    """

    cross: ClassVar[bool]
    joint_sublayer: ClassVar[bool]

    def forward(self, x: Tensor, ctx: Context) -> Tensor: ...


class Architecture(Protocol):
    """A function of the builder that gives a LanguageModel.

    mask       who sees whom: causal | prefix | full | encoder_decoder
    accepts      the kinds of examples that it can learn from (`gives` of an objective)
    stacks     which stacks it has: encoder, decoder or both
    objective  the option that is usual with it
    """

    mask: ClassVar[str]
    accepts: ClassVar[Sequence[str]]
    stacks: ClassVar[Sequence[str]]
    objective: ClassVar[str]


class Init(Protocol):
    """Fills one matrix in place; called for each parameter with a generator that its name seeds.

    Optional: `rate(info)`, a factor on the learning rate of a parameter; `logit_scale(d_model)` and
    `attention_scale(d_head)`, where `model.logit_scale` and `model.attention_scale` are left open.
    """

    def __call__(self, weight: Tensor, info: ParameterInfo, generator: torch.Generator) -> None: ...


norms: Registry[nn.Module] = Registry(
    "norm",
    "Normalises the residual stream.",
    wiring=("d_model",),
    methods=("forward",),
    scope="model",
    usual="rmsnorm",
)

placements: Registry[Placement] = Registry(
    "placement",
    "Where the norms stand around a sublayer, and how the residual is scaled.",
    wiring=("d_model", "n_layers", "layer", "sublayer", "around", "side", "encoder_layers", "decoder_layers"),
    methods=("__call__",),
    facts={
        "n_norms": 1,
        "first_norms": None,
        "final_norm": True,
        "embedding_norm": False,
        "inner_norm": (),
        "batch_dependent": False,
    },
    scope="model",
    usual="pre",
)

activations: Registry[Activation] = Registry(
    "activation",
    "The nonlinearity of the feed-forward part; gated ones take (gate, up).",
    wiring=("d_ff",),
    calls={("x",): {"gated": False}, ("gate", "up"): {"gated": True}},
    methods=("forward",),
    facts={"gated": False},
    scope="model",
    usual="swiglu",
)

mlps: Registry[nn.Module] = Registry(
    "mlp",
    "The feed-forward part of a layer.",
    wiring=("d_model", "d_ff", "activation", "gated", "bias", "dropout", "layer", "n_layers", "inner_norm"),
    methods=("forward",),
    facts={"metrics": (), "batch_dependent": False},
    scope="model",
    usual="dense",
)

positions: Registry[Position] = Registry(
    "position",
    "How the model knows where a token stands.",
    wiring=("d_model", "d_head", "n_heads", "n_layers", "max_len", "causal"),
    any_of=("embed", "rotate", "bias", "score"),
    facts={"extends": True, "rotates_cached_keys": False},
    scope="model",
    usual="rope",
)

attentions: Registry[nn.Module] = Registry(
    "attention",
    "How tokens look at one another.",
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
    facts={
        "caches": True,
        "takes_bias": True,
        "takes_segments": True,
        "cross": False,
        "bidirectional": True,
        "prefix": False,
        "rotates_cached_keys": True,
        "metrics": (),
    },
    scope="model",
    usual="mha",
)

blocks: Registry[nn.Module] = Registry(
    "block",
    "How attention and feed-forward make a layer.",
    wiring=("parts",),
    methods=("forward",),
    facts={"cross": False, "joint_sublayer": False},
    scope="model",
    usual="sequential",
)

architectures: Registry[LanguageModel] = Registry(
    "architecture",
    "Which stacks there are and what each token may see.",
    wiring=("builder",),
    facts={"mask": "causal", "accepts": ("next tokens",), "stacks": ("decoder",), "objective": "lm"},
    scope="model",
    usual="causal",
)

inits: Registry[Init] = Registry(
    "init",
    "How the matrices start; vectors start as their part says.",
    calls={("weight", "info", "generator"): {}},
    methods=("__call__",),
    scope="training",
    shapes_model=True,
    usual="gpt2",
)
