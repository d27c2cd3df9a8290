"""Names of version 0.1 and their present names: old run folders load, plugins are told the new name.

Configs are translated by `current_config`.  Ids of runs are hashed with the first name of each knob (`first_names`), so
a checkpoint of an older run still belongs to it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

# kind=option -> knob -> its new name
KNOBS: Mapping[str, Mapping[str, str]] = {
    "mlp=deepseek_moe": {"normalise": "normalize"},
    "alignment=ppo": {"vf": "vf_coef", "ent": "entropy_coef"},
    "alignment=a2c": {"vf": "vf_coef", "ent": "entropy_coef"},
    "quantization=int4": {"aware": "qat"},
    "quantization=int8": {"aware": "qat"},
    "source=jsonl": {"text": "column"},
    "stabilizer=spike_rewind": {"back": "rewind_steps", "most": "max_rewinds"},
}
# kind -> fact or class attribute of a part -> its new name
FACTS: Mapping[str, Mapping[str, str]] = {
    "position": {"late": "rotates_cached_keys"},
    "attention": {"turns_late": "rotates_cached_keys"},
    "block": {"adds_up": "joint_sublayer"},
    "placement": {"whole_rows": "batch_dependent"},
    "mlp": {"whole_rows": "batch_dependent"},
    "peft": {"whole_rows": "batch_dependent"},
    "architecture": {"takes": "accepts"},
    "task": {"takes": "accepts"},
    "objective": {"gives": "produces"},
}
# kind -> a parameter that the framework passes to parts -> its new name
WIRING: Mapping[str, Mapping[str, str]] = {"architecture": {"assembly": "builder"}}
# old -> new names of modules and classes of the package `ablatio`
MODULES: Mapping[str, str] = {
    "adapter_folder": "model.peft.adapter_files", "alignment": "registry.kinds.alignment_inputs", "catalogue":
    "registry.catalogue", "checkpoint": "storage.checkpoints", "combinations": "config.rules", "compose":
    "config.compose", "config": "config.schema", "data.cache": "data.corpus", "data.rows": "data.packing",
    "data.store": "data.cache_store", "export": "interop.export", "generate": "model.decoding.generate", "hf":
    "interop.transformers_model", "kinds": "registry.kinds", "kinds.data": "registry.kinds.data", "kinds.model":
    "registry.kinds.model", "kinds.sweeps": "registry.kinds.sweep", "kinds.training": "registry.kinds.training",
    "kinds.tuning": "registry.kinds.tuning", "knobs": "registry.knobs", "launching": "sweep.launcher_choice",
    "manifest": "storage.manifest", "model.adapters": "model.peft.adapters", "model.answers": "model.rl.answers",
    "model.assembly": "model.builder", "model.attend": "model.attention.kernels", "model.blocked":
    "model.attention.blocked", "model.branches": "model.decoding.shared_prefix", "model.cache": "model.kv_cache",
    "model.count": "model.cost.parameters", "model.estimates": "model.rl.kl", "model.few_rows":
    "model.matmul_backend", "model.logps": "model.rl.token_logprobs", "model.loss": "model.cross_entropy",
    "model.memory": "model.cost.memory", "model.merging": "model.peft.merge", "model.policy":
    "model.rl.policy_outputs", "model.recompute": "model.activation_checkpointing", "model.roles":
    "model.parameter_roles", "model.rollout": "model.decoding.rollout", "model.shapes": "model.cost.meta_tensors",
    "model.softmax_attention": "model.attention.softmax_attention", "native": "interop.families", "native.decoders":
    "interop.families.decoders", "native.encoder_decoders": "interop.families.encoder_decoders", "native.family":
    "interop.families.base", "native.mapping": "interop.families.weights", "options": "config.hydra_sources",
    "oracles": "registry.oracles", "orders": "registry.kinds.launch_types", "overrides": "config.overrides",
    "paths": "storage.paths", "peft_format": "interop.peft_export", "plugins": "registry.discovery", "presets":
    "config.presets", "pretrained": "storage.pretrained", "pretrained.gguf_folder": "storage.gguf", "recipes":
    "sweep.recipes", "recipes.follow": "sweep.recipes.run", "recipes.plan": "sweep.recipes.plan", "recipes.read":
    "sweep.recipes.schema", "registry": "registry.registry", "report.again": "report.rerun_command",
    "report.arms": "report.analysis.arms", "report.content": "report.html.page_data", "report.curves":
    "report.read.curves", "report.findings": "report.analysis.findings", "report.frontier":
    "report.analysis.reward_kl_frontier", "report.page": "report.html.render", "report.plain":
    "report.read.single_runs", "report.provenance": "report.read.provenance", "report.run": "report.read.run",
    "report.stages": "report.read.stages", "report.statistics.design": "report.statistics.contrasts",
    "report.statistics.factors": "report.statistics.effects", "report.statistics.many":
    "report.statistics.multiple_testing", "report.statistics.pairs": "report.statistics.paired_tests",
    "report.statistics.planning": "report.statistics.power", "report.statistics.scaling":
    "report.statistics.scaling_law", "report.table": "report.read.table", "report.text":
    "report.terminal.arm_table", "report.two": "report.analysis.compare_runs", "report.verdict":
    "report.analysis.verdict", "report.written": "report.markdown", "rules": "registry.rules", "scaffold":
    "cli.scaffold.plugin", "scaffold_parts": "cli.scaffold.templates", "sources": "registry.source_digest", "space":
    "registry.kinds.search_space", "start": "config.inherit", "state": "storage.state_json", "sweep.asked":
    "sweep.request", "sweep.board": "report.terminal.live_table", "sweep.chosen": "sweep.launcher_choice",
    "sweep.compose": "config.compose_many", "sweep.fair": "sweep.size_matching", "sweep.follow": "sweep.adaptive",
    "sweep.forecast": "report.terminal.plan_table", "sweep.multirun": "api.multirun", "sweep.owner": "sweep.lock",
    "sweep.pulse": "sweep.hang_detector", "sweep.recipes": "sweep.recipe_arms", "sweep.rehearsal":
    "sweep.time_probe", "sweep.replaced": "sweep.stale_jobs", "sweep.stages": "report.terminal.stage_table",
    "sweep.weights": "training.estimate", "tasks": "training", "tasks.coordinates": "training.mup_check",
    "tasks.describe": "training.run_summary", "tasks.evaluate": "training.evaluate", "tasks.folder":
    "training.run_folder", "tasks.judge": "training.reward_model", "tasks.keeper": "training.checkpoint_io",
    "tasks.learner": "training.lightning_module", "tasks.load": "training.restore", "tasks.logs":
    "training.loggers", "tasks.machine": "training.device", "tasks.metrics": "training.metrics_csv",
    "tasks.prepared": "training.prepare", "tasks.progress": "training.progress_bar", "tasks.provenance":
    "training.provenance", "tasks.rates": "training.learning_rates", "tasks.reference": "training.reference",
    "tasks.run": "training.run", "tasks.samples": "training.samples_file", "tasks.scores": "training.task_scores",
    "tasks.session": "training.loop", "tasks.setup": "training.task_context", "tasks.start":
    "training.initial_weights", "tasks.step": "model.optimizer_step", "tasks.teacher": "training.teacher",
    "tasks.trainer": "training.lightning_trainer", "tasks.tuning": "model.peft.apply", "tasks.weigh":
    "training.estimate", "tasks.work": "model.cost.flops", "tensorfile": "storage.safetensors_io",
    "testing.alignments": "testing.sample_alignments", "testing.compatibility": "testing.compatibility_table",
    "testing.plugin": "testing.pytest_plugin", "testing.probe": "testing.checks", "testing.record":
    "testing.oracle_records", "testing.samples": "testing.sample_parts", "testing.tiny": "testing.tiny_models",
    "testing.turn": "testing.other_knob_values", "theirs": "config.from_transformers", "words": "config.words",
    "writer": "storage.atomic_write", "yamls": "config.yaml_files",
}  # fmt: skip
CLASSES: Mapping[str, str] = {
    "Ask": "Trial", "Assembly": "ModelBuilder", "Choice": "PartChoice", "Dimensions": "ModelDims", "Division":
    "TrainValSplit", "End": "LaunchOutcome", "Entry": "PartSpec", "Memory": "EncoderOutput", "Order":
    "LaunchRequest", "Piece": "ChatSegment", "Provider": "Distribution", "Said": "PolicyOutputs", "Setup":
    "TaskContext", "Sight": "AttentionView", "Signed": "SpecialTokenTokenizer", "Spoken": "TokenLogProbs", "Step":
    "OptimizerStep", "Told": "TrialResult", "broken": "violated_rules", "current_provider": "current_distribution",
    "dequantise": "dequantize", "fitted": "truncate_to_length", "initialise": "initialize", "quantise": "quantize",
    "roll_out": "sample_rollouts", "said_of": "policy_outputs", "whitened": "whiten", "with_signs":
    "with_special_tokens",
}  # fmt: skip


def current_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the config with present names of knobs, the renamed keys as `mlp.normalise -> mlp.normalize`)."""
    found, told = dict(config), list[str]()
    for where, kind, option, node in _options(config):
        if renamed := KNOBS.get(f"{kind}={option}"):
            told += [f"{where}.{old} -> {where}.{new}" for old, new in renamed.items() if old in node]
            _put(found, kind, where, {renamed.get(str(key), key): value for key, value in node.items()})
    return found, told


def first_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the first name of each knob, from which a run's id is hashed."""
    found = dict(config)
    for where, kind, option, node in _options(config):
        if renamed := KNOBS.get(f"{kind}={option}"):
            # The hash of a run must not change with a name, or every earlier checkpoint would belong to another run.
            first = {new: old for old, new in renamed.items()}
            _put(found, kind, where, {first.get(str(key), key): value for key, value in node.items()})
    return found


def _options(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """(dotted key of its settings, kind, option, settings) for each chosen option that has renamed knobs."""
    for kind, option in (key.split("=") for key in KNOBS):
        node = config.get(kind)
        if not isinstance(node, Mapping):
            continue
        if node.get("name") == option:
            yield kind, kind, option, node
        elif "name" not in node and isinstance(node.get(option), Mapping):  # several options at once
            yield f"{kind}.{option}", kind, option, node[option]


def _put(config: dict[str, Any], kind: str, where: str, node: dict[str, Any]) -> None:
    config[kind] = node if where == kind else {**config[kind], where.partition(".")[2]: node}


def key(dotted: str) -> str:
    """Present name of a setting's key: `quantization.aware` -> `quantization.qat`; other keys are unchanged."""
    for where, table in KNOBS.items():
        kind, _, option = where.partition("=")
        for old, new in table.items():
            for prefix in (kind, f"{kind}.{option}"):
                # Also at the end of a longer path, as in `stages.sft.quantization.aware`.
                if dotted == f"{prefix}.{old}" or dotted.endswith(f".{prefix}.{old}"):
                    return dotted.removesuffix(old) + new
    return dotted


def override(text: str) -> str:
    """An override `KEY=VALUE` with the key's present name."""
    name, equals, value = text.partition("=")
    return f"{key(name)}{equals}{value}"


def import_hint(error: BaseException) -> str:
    """'; ablatio.model.roles is now ...' for a failed import of an old module or class, otherwise ""."""
    if not isinstance(error, ImportError) or not (error.name or "").startswith("ablatio."):
        return ""
    module = str(error.name).removeprefix("ablatio.")
    for old in (module, module.rpartition(".")[0]):
        if old in MODULES and isinstance(error, ModuleNotFoundError):
            return f"; ablatio.{old} is now ablatio.{MODULES[old]}"
    text = str(error)
    for old, new in CLASSES.items():
        if f"'{old}'" in text:
            return f"; {old} is now {new}"
    return ""
