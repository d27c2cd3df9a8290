"""Rules for kinds and sizes that do not work together, stated on the facts of parts instead of their names."""

from ablatio.registry import kinds as _kinds  # noqa: F401  (registers them)
from ablatio.registry.registry import REGISTRIES
from ablatio.registry.rules import rule


def _usual(kind: str) -> str:
    """Override that chooses the usual option of a kind."""
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
    why="distinct_layers={model.distinct_layers} exceeds n_layers={model.n_layers}",
    fix="model.distinct_layers={model.n_layers}",
    where="model.distinct_layers",
)
rule(
    when="data.length > model.max_len",
    unless="facts.position.extends",
    why="rows have data.length={data.length} tokens, and position={position.name} has only "
    "model.max_len={model.max_len} positions",
    fix="model.max_len={data.length}",
    where="data.length",
)
_GROUPS = "(trainer.devices * trainer.nodes // strategy.sharing)"  # of devices with the same rows
rule(
    when="facts.strategy.several and facts.strategy.splits != 'tokens' and trainer.devices * trainer.nodes > 1 "
    f"and train.batch_size % {_GROUPS} != 0",
    why="trainer.devices * trainer.nodes = {trainer.devices * trainer.nodes} devices"
    "{' in groups of ' if strategy.sharing > 1 else ''}{strategy.sharing if strategy.sharing > 1 else ''} "
    "share the rows of a batch, and train.batch_size={train.batch_size} does not divide",
    fix=f"train.batch_size={{ceil(train.batch_size / {_GROUPS}) * {_GROUPS}}}",
    where="train.batch_size",
)
rule(
    when="trainer.devices * trainer.nodes > 1 and facts.optimizer.samples",
    why="optimizer={optimizer.name} samples targets for the rows of one device, and trainer.devices * trainer.nodes = "
    "{trainer.devices * trainer.nodes}",
    fix=_usual("optimizer"),
    where="optimizer",
)
rule(
    when="trainer.devices * trainer.nodes > 1 and not facts.task.several_devices",
    why="task={task.name} trains on one device, and trainer.devices * trainer.nodes = "
    "{trainer.devices * trainer.nodes}",
    fix="trainer.devices=1",
    where="task",
)
rule(
    when="facts.strategy.shards and trainer.devices * trainer.nodes > 1 and model.distinct_layers is not None",
    why="strategy={strategy.name} divides each layer, and with model.distinct_layers={model.distinct_layers} layers "
    "share their weights",
    fix="model.distinct_layers=null",
    where="model.distinct_layers",
)
rule(
    when="facts.strategy.shards and trainer.devices * trainer.nodes > 1 and trainer.compile",
    why="strategy={strategy.name} divides the weights of layers, which trainer.compile expects whole",
    fix="trainer.compile=false",
    where="trainer.compile",
)
rule(
    when="facts.strategy.shards and trainer.devices * trainer.nodes > 1 and 'model.tied' in scheduled",
    why="model.tied is a schedule: the head takes over the optimizer state of the embedding, and "
    "strategy={strategy.name} divides it",
    fix="model.tied={model.tied}",
    where="model.tied",
)
rule(
    when="facts.strategy.shards and trainer.devices * trainer.nodes > 1 and facts.alignment.moves_reference",
    why="alignment={alignment.name} moves its reference towards the model, and strategy={strategy.name} divides the "
    "model's weights",
    fix="trainer.devices=1",
    where="alignment",
)
rule(
    when="(facts.strategy.shards or facts.strategy.engine) and trainer.devices * trainer.nodes > 1 "
    "and trainer.precision == '16'",
    why="trainer.precision=16 scales losses, and strategy={strategy.name} does not keep the scaled gradients in the "
    "optimizer",
    fix="trainer.precision=bf16",
    where="trainer.precision",
)
rule(
    when="facts.strategy.shards and trainer.devices * trainer.nodes > 1 and facts.peft.reads_gradients",
    why="peft={peft.name} reads the gradients of whole weights, and strategy={strategy.name} divides them",
    fix=_usual("peft"),
    where="peft",
)
rule(
    when="facts.strategy.updates != 'model' and trainer.devices * trainer.nodes > 1 "
    "and facts.optimizer.updates == 'model'",
    why="optimizer={optimizer.name} updates all weights together, and strategy={strategy.name} updates each "
    "{facts.strategy.updates} by itself",
    fix=_usual("optimizer"),
    where="optimizer",
)
rule(
    when="facts.strategy.updates == 'entry' and not facts.strategy.engine and trainer.devices * trainer.nodes > 1 "
    "and facts.optimizer.updates != 'entry'",
    why="optimizer={optimizer.name} updates whole tensors, and strategy={strategy.name} updates each entry by itself",
    fix=_usual("optimizer"),
    where="optimizer",
)
rule(
    when="'train.batch_size' in scheduled and not facts.task.batch_changes",
    why="train.batch_size is a schedule, and task={task.name} takes equally many prompts in each step",
    fix="train.batch_size={train.batch_size}",
    where="train.batch_size",
)
rule(
    when="'data.length' in scheduled and not facts.task.length_changes",
    why="data.length is a schedule, and the rows of task={task.name} have one length",
    fix="data.length={data.length}",
    where="data.length",
)
for _kind in ("decode", "prompt"):
    rule(
        when=f"{_kind}.name != '' and '{_kind}' not in facts.task.reads",
        why=f"task={{task.name}} does not use a {_kind}",
        fix=f"{_kind}=null",
        where=_kind,
    )
rule(
    when="'model.tied' in scheduled and peft.name != 'none'",
    why="model.tied is a schedule that unties the head, and peft={peft.name} freezes head and embedding",
    fix="model.tied=true",
    where="model.tied",
)
rule(
    when="facts.objective.produces not in facts.architecture.accepts",
    why="objective={objective.name} produces {facts.objective.produces}, and architecture={architecture.name} accepts "
    "{facts.architecture.accepts}",
    fix="objective={facts.architecture.objective}",
    where="objective",
)
rule(
    when="'encoder' in facts.architecture.stacks and not facts.attention.bidirectional",
    why="architecture={architecture.name} has an encoder with bidirectional attention, and "
    "attention={attention.name} is causal only",
    fix=_usual("attention"),
    where="attention",
)
rule(
    when="facts.architecture.mask == 'prefix' and not facts.attention.bidirectional",
    why="architecture={architecture.name} attends to its prefix in both directions, and "
    "attention={attention.name} is causal only",
    fix=_usual("attention"),
    where="attention",
)
rule(
    when="facts.architecture.mask == 'encoder_decoder' and not facts.attention.cross",
    why="architecture={architecture.name} needs cross-attention, and attention={attention.name} has only "
    "self-attention",
    fix=_usual("attention"),
    where="attention",
)
rule(
    when="facts.architecture.mask == 'encoder_decoder' and not facts.block.cross",
    why="architecture={architecture.name} has cross-attention in each layer, and block={block.name} does not "
    "support it",
    fix=_usual("block"),
    where="block",
)
rule(
    when="('bias' in facts.position.uses or 'score' in facts.position.uses) and not facts.attention.takes_bias",
    why="position={position.name} adds to the attention logits, and attention={attention.name} does not accept that",
    fix=_usual("position"),
    where="position",
)
rule(
    when="facts.position.rotates_cached_keys and not facts.attention.rotates_cached_keys",
    why="position={position.name} rotates all cached keys again as the sequence grows, and "
    "attention={attention.name} rotates each key only once",
    fix=_usual("position"),
    where="position",
)
rule(
    when="'attention' in facts.placement.inner_norm and 'inner_norm' not in facts.attention.wiring "
    "and not facts.attention.absent",
    why="placement={placement.name} puts a norm before the output projection of attention, and "
    "attention={attention.name} does not accept one",
    fix=_usual("attention"),
    where="placement",
)
rule(
    when="'mlp' in facts.placement.inner_norm and 'inner_norm' not in facts.mlp.wiring and not facts.mlp.absent",
    why="placement={placement.name} puts a norm before the last projection of the feed-forward part, and "
    "mlp={mlp.name} does not accept one",
    fix=_usual("mlp"),
    where="placement",
)
rule(  # if n_norms is a plain number, len() is undecided and the rule does not apply
    when="facts.block.joint_sublayer and len(facts.placement.n_norms) == 2",
    why="placement={placement.name} normalizes attention and feed-forward differently, and block={block.name} joins "
    "both in one sublayer",
    fix=_usual("block"),
    where="block",
)
rule(
    when="facts.placement.first_norms is not None and model.distinct_layers is not None "
    "and model.distinct_layers < model.n_layers",
    why="placement={placement.name} normalizes the first layer differently, and model.distinct_layers="
    "{model.distinct_layers} makes later layers share its weights",
    fix="model.distinct_layers=null",
    where="model.distinct_layers",
)
rule(
    when="facts.shortcut.adds_values and not facts.attention.takes_values and not facts.attention.absent",
    why="shortcut={shortcut.name} changes the values of attention, and attention={attention.name} does not accept that",
    fix=_usual("attention"),
    where="shortcut",
)
rule(
    when="facts.shortcut.per_depth and model.distinct_layers is not None and model.distinct_layers < model.n_layers",
    why="shortcut={shortcut.name} has other weights in each layer, and model.distinct_layers={model.distinct_layers} "
    "of model.n_layers={model.n_layers} makes layers share their weights",
    fix="model.distinct_layers=null",
    where="model.distinct_layers",
)
rule(
    when="facts.attention.absent and facts.mlp.absent",
    why="a layer with neither attention nor feed-forward part does nothing",
    fix=_usual("mlp"),
    where="mlp",
)
rule(
    when="(facts.attention.absent or facts.mlp.absent) and not facts.block.optional_sublayers",
    why="attention={attention.name} mlp={mlp.name} leaves a sublayer out, and block={block.name} needs both",
    fix=_usual("block"),
    where="block",
)
rule(
    when="facts.schedule.watches and train.val_every is None",
    why="schedule={schedule.name} depends on the validation loss, and with train.val_every=null it is computed only "
    "before and after training",
    fix="train.val_every=100",
    where="train.val_every",
)
rule(
    when="data.document_mask and not facts.attention.takes_segments",
    why="attention={attention.name} cannot mask between the documents of a packed row",
    fix="data.document_mask=false",
    where="data.document_mask",
)
rule(
    when="model.vocab_size is not None and model.vocab_size < tokenizer.vocab_size",
    why="the embedding needs a row for each token id: tokenizer={tokenizer.name} has {tokenizer.vocab_size} ids, and "
    "model.vocab_size={model.vocab_size}",
    fix="model.vocab_size={tokenizer.vocab_size}",
    where="model.vocab_size",
)
rule(
    when="len(filter) > 0 and facts.task.accepts != 'documents'",
    why="filters read documents, and task={task.name} trains on {facts.task.accepts}",
    fix="filter=[]",
    where="filter",
)
rule(
    when="mixture is not None and not facts.task.mixes",
    why="the rows of task={task.name} are not drawn by a mixture",
    fix="mixture=null",
    where="mixture",
)
rule(
    when="curriculum is not None and not facts.task.mixes",
    why="the rows of task={task.name} are not drawn by a curriculum",
    fix="curriculum=null",
    where="curriculum",
)
