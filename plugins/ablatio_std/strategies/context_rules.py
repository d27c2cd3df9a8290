"""Rules for strategies that divide the tokens of rows: what a part does not declare is refused."""

from ablatio_std.strategies._refusals import refusals

_refuse = refusals("tokens", "the tokens of a row")

for _kind in ("attention", "mlp"):
    _refuse(
        f"not facts.{_kind}.splits_tokens and not facts.{_kind}.absent",
        f"{_kind}={{{_kind}.name}} does not have the fact `splits_tokens`",
        _kind,
    )
for _kind in ("embedding", "task", "objective"):
    _refuse(
        f"not facts.{_kind}.splits_tokens", f"{_kind}={{{_kind}.name}} does not have the fact `splits_tokens`", _kind
    )
_refuse(
    "peft.name != 'none' and not facts.peft.splits_tokens",
    "peft={peft.name} does not have the fact `splits_tokens`",
    "peft",
)
for _kind in ("mlp", "placement"):
    _refuse(
        f"facts.{_kind}.batch_dependent",
        f"the output of {_kind}={{{_kind}.name}} for a token depends on others (its fact `batch_dependent`)",
        _kind,
    )
_refuse(
    "facts.architecture.mask not in ('causal', 'full')",
    "in architecture={architecture.name} some tokens of a row see later ones (its fact `mask`)",
    "architecture",
)
_refuse(
    "facts.position.rotates_cached_keys",
    "position={position.name} rotates keys by the length of the whole text",
    "position",
)
_refuse(
    "attention.key_offset > 0",
    "with attention.key_offset={attention.key_offset} a key reads the token before it",
    "attention",
)
_refuse(
    "data.length < trainer.devices * trainer.nodes",
    "data.length={data.length} is less than one token for each",
    "data.length",
)
_refuse("trainer.compile", "trainer.compile expects whole rows", "trainer.compile", "trainer.compile=false")
