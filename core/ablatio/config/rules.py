"""Which kinds of parts and which sizes cannot stand together, whatever the parts are called: rules on their facts."""

from ablatio.registry import kinds as _kinds  # noqa: F401  (registers them)
from ablatio.registry.registry import REGISTRIES
from ablatio.registry.rules import rule


def _usual(kind: str) -> str:
    """The override that takes the usual option of a kind."""
    return f"{kind}={REGISTRIES[kind].usual}"


rule(
    when="given.model.d_head is None",
    unless="model.d_model % model.n_heads == 0",
    why="each of the n_heads={model.n_heads} heads takes an equal share of d_model={model.d_model}, "
    "and {model.n_heads} does not divide it",
    fix="model.n_heads={nearest_divisor(model.d_model, model.n_heads)}",
    where="model.n_heads",
)
rule(
    when="model.distinct_layers is not None and model.distinct_layers > model.n_layers",
    why="distinct_layers={model.distinct_layers} of n_layers={model.n_layers} layers cannot have weights of their own",
    fix="model.distinct_layers={model.n_layers}",
    where="model.distinct_layers",
)
rule(
    when="data.length > model.max_len",
    unless="facts.position.extends",
    why="rows of {data.length} tokens came, and position={position.name} knows only model.max_len={model.max_len}",
    fix="model.max_len={data.length}",
    where="data.length",
)
rule(
    when="facts.objective.produces not in facts.architecture.accepts",
    why="objective={objective.name} gives {facts.objective.produces}, and architecture={architecture.name} learns from "
    "{facts.architecture.accepts}",
    fix="objective={facts.architecture.objective}",
    where="objective",
)
rule(
    when="'encoder' in facts.architecture.stacks and not facts.attention.bidirectional",
    why="architecture={architecture.name} has a stack in which tokens see what comes later, and attention="
    "{attention.name} only looks back",
    fix=_usual("attention"),
    where="attention",
)
rule(
    when="facts.architecture.mask == 'prefix' and not facts.attention.bidirectional",
    why="architecture={architecture.name} shows its prefix in both directions, and attention={attention.name} only "
    "looks back",
    fix=_usual("attention"),
    where="attention",
)
rule(
    when="facts.architecture.mask == 'encoder_decoder' and not facts.attention.cross",
    why="architecture={architecture.name} attends to its encoder, and attention={attention.name} attends to its own "
    "tokens alone",
    fix=_usual("attention"),
    where="attention",
)
rule(
    when="facts.architecture.mask == 'encoder_decoder' and not facts.block.cross",
    why="architecture={architecture.name} attends to its encoder in each layer, and block={block.name} has no place "
    "for that",
    fix=_usual("block"),
    where="block",
)
rule(
    when="('bias' in facts.position.uses or 'score' in facts.position.uses) and not facts.attention.takes_bias",
    why="position={position.name} adds to the attention logits, and attention={attention.name} has none to add to",
    fix=_usual("position"),
    where="position",
)
rule(
    when="facts.position.rotates_cached_keys and not facts.attention.rotates_cached_keys",
    why="position={position.name} turns all keys anew when a text grows, and attention={attention.name} turns each "
    "once",
    fix=_usual("position"),
    where="position",
)
rule(
    when="'attention' in facts.placement.inner_norm and 'inner_norm' not in facts.attention.wiring",
    why="placement={placement.name} puts a norm before attention's last projection, and attention={attention.name} "
    "takes none",
    fix=_usual("attention"),
    where="placement",
)
rule(
    when="'mlp' in facts.placement.inner_norm and 'inner_norm' not in facts.mlp.wiring",
    why="placement={placement.name} puts a norm before the last projection of the feed-forward part, and "
    "mlp={mlp.name} takes none",
    fix=_usual("mlp"),
    where="placement",
)
rule(  # one number of norms has no length: then the rule is silent
    when="facts.block.joint_sublayer and len(facts.placement.n_norms) == 2",
    why="placement={placement.name} norms attention and feed-forward in different ways, and block={block.name} makes "
    "one sublayer of both",
    fix=_usual("block"),
    where="block",
)
rule(
    when="facts.placement.first_norms is not None and model.distinct_layers is not None "
    "and model.distinct_layers < model.n_layers",
    why="placement={placement.name} norms the first layer in a way of its own, and model.distinct_layers="
    "{model.distinct_layers} makes later layers share its weights",
    fix="model.distinct_layers=null",
    where="model.distinct_layers",
)
rule(
    when="facts.schedule.watches and train.val_every is None",
    why="schedule={schedule.name} watches the held-out loss, and train.val_every=null scores it only before and after",
    fix="train.val_every=100",
    where="train.val_every",
)
rule(
    when="data.document_mask and not facts.attention.takes_segments",
    why="attention={attention.name} cannot keep the documents of a packed row apart",
    fix="data.document_mask=false",
    where="data.document_mask",
)
rule(
    when="model.vocab_size is not None and model.vocab_size < tokenizer.vocab_size",
    why="the embedding has a row for each id: tokenizer={tokenizer.name} has {tokenizer.vocab_size}, and "
    "model.vocab_size={model.vocab_size}",
    fix="model.vocab_size={tokenizer.vocab_size}",
    where="model.vocab_size",
)
rule(
    when="facts.task.accepts not in facts.source.uses",
    why="task={task.name} learns from {facts.task.accepts}, and source={source.name} gives {facts.source.uses}",
    fix="source={'gsm_symbolic' if facts.task.accepts == 'conversations' else 'sentiment'}",
    where="source",
)
