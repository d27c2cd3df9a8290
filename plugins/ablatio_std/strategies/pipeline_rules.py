"""Rules for strategies that divide the layers: what needs more than the residual stream between them is refused."""

from ablatio_std.strategies._refusals import DEVICES, refusals

_refuse = refusals("layers", "the layers")

_refuse(
    f"model.n_layers < {DEVICES}",
    "model.n_layers={model.n_layers} are fewer",
    "model.n_layers",
)
_refuse(
    "strategy.microbatches is not None and train.batch_size % strategy.microbatches != 0",
    "strategy.microbatches={strategy.microbatches} does not divide the train.batch_size={train.batch_size} rows",
    "strategy.microbatches",
    "strategy.microbatches=null",
)
_refuse(
    "len(facts.architecture.stacks) > 1",
    "architecture={architecture.name} has two stacks of them, of which one reads the other in each layer",
    "architecture",
)
_refuse(
    "facts.block.whole_stack",
    "block={block.name} connects them with one another (its fact `whole_stack`)",
    "block",
)
_refuse("shortcut.name != 'none'", "shortcut={shortcut.name} jumps over them", "shortcut")
for _kind in ("attention", "mlp", "embedding", "peft"):
    _refuse(
        f"not facts.{_kind}.splits_layers",
        f"{_kind}={{{_kind}.name}} does more between them than the residual stream (its fact `splits_layers`)",
        _kind,
    )
_refuse(
    "facts.peft.virtual",
    "peft={peft.name} computes keys and values of virtual tokens in all of them (its fact `virtual`)",
    "peft",
)
for _kind in ("task", "objective"):
    _refuse(
        f"not facts.{_kind}.splits_layers",
        f"the loss of {_kind}={{{_kind}.name}} is not a sum over rows from one pass (its fact `splits_layers`)",
        _kind,
    )
for _kind in ("mlp", "placement", "peft"):
    _refuse(
        f"facts.{_kind}.batch_dependent and strategy.microbatches != 1",
        f"{_kind}={{{_kind}.name}} depends on the whole batch (its fact `batch_dependent`), which passes in parts",
        "strategy.microbatches",
        "strategy.microbatches=1",
    )
