"""Rules for strategies that divide the heads and features of layers: what a part does not declare is refused."""

from ablatio_std.strategies._refusals import refusals, refuse_uneven

DEGREE = "strategy.sharing"  # devices with the same rows: those that divide each layer
_refuse = refusals("heads", "heads and features", DEGREE)

refuse_uneven("tensor", "degree", "model.n_heads")

for _kind in ("attention", "mlp"):
    _refuse(
        f"len(facts.{_kind}.row_parallel) == 0 and not facts.{_kind}.absent",
        f"{_kind}={{{_kind}.name}} does not declare how: its fact `row_parallel` is empty",
        _kind,
    )
_refuse(
    "('rotate' in facts.position.uses or 'score' in facts.position.uses) and not facts.position.splits_heads",
    "position={position.name} is used on heads without the fact `splits_heads`",
    "position",
)
_refuse(
    "facts.activation.across_features and not facts.mlp.absent",
    "activation={activation.name} has the fact `across_features`: its results depend on other features",
    "activation",
)
_refuse(
    "'d_ff' in facts.activation.wiring and len(facts.activation.column_parallel) == 0 and not facts.mlp.absent",
    "activation={activation.name} knows the number of features; its fact `column_parallel` does not say what is theirs",
    "activation",
)
_refuse(
    "len(facts.placement.inner_norm) > 0",
    "placement={placement.name} normalizes all of them together before the last projection (its fact `inner_norm`)",
    "placement",
)
for _knob in ("qk_norm", "v_norm"):
    _refuse(
        f"'whole_' in attention.{_knob}",
        f"attention.{_knob}={{attention.{_knob}}} normalizes all heads together",
        "attention",
    )
_refuse(
    "facts.shortcut.adds_values",
    "shortcut={shortcut.name} changes the values of all heads (its fact `adds_values`)",
    "shortcut",
)
_refuse(
    f"model.n_heads % {DEGREE} != 0 and not facts.attention.absent",
    "model.n_heads={model.n_heads} does not divide",
    "model.n_heads",
)
_refuse(
    f"attention.n_kv_heads % {DEGREE} != 0 and model.n_heads % {DEGREE} == 0",
    "attention.n_kv_heads={attention.n_kv_heads} does not divide",
    "attention",
)
_refuse(
    f"model.inner_width % {DEGREE} != 0 and not facts.mlp.absent",
    "the inner width {model.inner_width} of mlp={mlp.name} does not divide",
    "model.d_ff",
)
_refuse(
    "model.dropout > 0",
    "model.dropout={model.dropout} draws the attention weights that it drops for all heads together",
    "model.dropout",
    "model.dropout=0",
)
_refuse(
    "peft.name != 'none' and not facts.peft.tensor_parallel",
    "peft={peft.name} does not declare how its weights are divided: its fact `tensor_parallel` is False",
    "peft",
)
_refuse(
    "facts.peft.tensor_parallel and peft.dropout > 0",
    "peft.dropout={peft.dropout} draws what it drops for all of them together",
    "peft",
    "peft.dropout=0",
)
_refuse(
    "facts.quantization.bits < 32", "quantization={quantization.name} stores codes of whole matrices", "quantization"
)
_vocabulary = "strategy.vocabulary and "
_refuse(
    f"{_vocabulary}facts.objective.reads_head",
    "objective={objective.name} reads the whole matrix of the head (its fact `reads_head`)",
    "strategy.vocabulary",
    "strategy.vocabulary=false",
)
_refuse(
    f"{_vocabulary}peft.name != 'none'",
    "peft={peft.name} may change the token table or the head, which strategy.vocabulary divides",
    "strategy.vocabulary",
    "strategy.vocabulary=false",
)
_refuse(
    f"{_vocabulary}model.vocab_size is not None and model.vocab_size % {DEGREE} != 0",
    "model.vocab_size={model.vocab_size} does not divide",
    "model.vocab_size",
    "strategy.vocabulary=false",
)
_refuse(
    f"{_vocabulary}not facts.head.elementwise",
    "head={head.name} maps all logits of a token together (its fact `elementwise` is False)",
    "strategy.vocabulary",
    "strategy.vocabulary=false",
)
