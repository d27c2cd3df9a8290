"""The config of a run: sections with typed settings, and a check that finds all problems of a composed config."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ablatio.config import rules as _own_rules  # noqa: F401  (registers them)
from ablatio.config.kind_lists import is_default, needed
from ablatio.config.problems import (
    held_problems,
    knob_problems,
    missing_kinds,
    several_problems,
    with_schedulable,
)
from ablatio.config.problems import no_option as no_option
from ablatio.config.problems import unknown as unknown
from ablatio.config.problems import value_problems as value_problems
from ablatio.errors import Problem
from ablatio.registry import per_layer, rules
from ablatio.registry.discovery import refuse_objects
from ablatio.registry.knobs import (
    Knob,
    NonNegative,
    OptionOf,
    Positive,
    Processes,
    Range,
    Schedulable,
    Size,
    read_signature,
)  # fmt: skip
from ablatio.registry.registry import REGISTRIES, ContractError, PartSpec
from ablatio.registry.value_schedules import is_value_schedule, mapped, mentions_schedule, schedules_of, settled

NAME_PATTERN = "letters, digits, `.`, `_` and `-`, at most 100, the first a letter or digit"


@dataclass(kw_only=True)
class Run:
    """Settings of the whole run, at the top level of the config: `seed=2`."""

    seed: Annotated[int, Range(0, 2**31), "default of all random streams in `seeds`"] = 1
    match: Annotated[
        Literal["none", "params"], "params: gated units get a smaller d_ff, so that parameter counts match"
    ] = "params"
    freeze: Annotated[tuple[str, ...], "weights that are not trained, by role or place: [embedding,layers.0-3]"] = ()
    extend: Annotated[str | None, "folder of a finished run to continue with a longer budget and a new schedule"] = None
    out: Annotated[str, "folder that contains the run folders"] = "runs"
    name: Annotated[str | None, "name of the run folder; by default the current time"] = None


@dataclass(kw_only=True)
class Model:
    """Origin and sizes of the model."""

    start: Annotated[
        Literal["scratch", "run", "hf"], "random initialization, an ablatio run, or a transformers folder"
    ] = "scratch"
    path: Annotated[str | None, "folder of the run or model to start from"] = None
    d_model: Annotated[int, Size, "width of the residual stream"] = 128
    n_layers: Annotated[int, Range(0, 10_000, open_low=True)] = 4
    n_heads: Annotated[int, Size] = 4
    d_head: Annotated[int | None, Size, "width of a head; by default d_model / n_heads"] = None
    d_ff: Annotated[int | None, Size, "inner width of the feed-forward part; by default 4 d_model"] = None
    vocab_size: Annotated[int | None, Size, "rows of the embedding; by default the number of token ids"] = None
    max_len: Annotated[int, Size, "maximum sequence length in training, and size of position tables"] = 128
    tied: Annotated[
        bool, Schedulable(), "the output head shares the embedding matrix; stages(true@0,false@0.66) unties it"
    ] = True
    bias: Annotated[bool, "biases in the linear layers"] = False
    dropout: Annotated[float, Range(0, 1, open_high=True), Schedulable()] = 0.0
    encoder_layers: Annotated[int | None, Positive, "encoder layers of an encoder-decoder; by default n_layers"] = None
    distinct_layers: Annotated[int | None, Positive, "layers with their own weights; the other layers share them"] = (
        None
    )
    sharing: Annotated[
        Literal["cycle", "runs"], "weights of 4 layers with distinct_layers=2: cycle is 0101, runs is 0011"
    ] = "cycle"
    embedding_norm: Annotated[bool | None, "norm after the embedding; by default chosen by the placement"] = None
    embedding_scale: Annotated[float, Positive, "factor on the embeddings"] = 1.0
    final_norm: Annotated[bool | None, "norm after the last layer; by default chosen by the placement"] = None
    attention_scale: Annotated[float | None, Positive, "factor on q k^T; by default d_head^-1/2"] = None
    logit_scale: Annotated[float | None, Positive, "factor on the logits; by default 1"] = None


@dataclass(kw_only=True)
class Data:
    """How documents become batches."""

    length: Annotated[int | None, Size, Schedulable(flops=True), "tokens per row; by default model.max_len"] = None
    val_fraction: Annotated[
        float, Range(0, 0.5, open_low=True), "fraction of documents for validation, of those without a given split"
    ] = 0.02
    val_tokens: Annotated[int | None, Positive, "validation tokens that are scored; null: all"] = 131072
    document_mask: Annotated[bool, "tokens attend only within their own document of a packed row"] = True
    rows: Annotated[
        Literal["windows", "documents"], "windows: rows start anywhere in the token stream; documents: at a document"
    ] = "windows"


@dataclass(kw_only=True)
class Train:
    """Length of training, and intervals of logging, validation and checkpoints."""

    steps: Annotated[int, Range(0, 10**9, open_low=True), "optimizer steps"] = 2400
    tokens: Annotated[float | None, Positive, "training tokens instead of steps, rounded up to whole steps"] = None
    epochs: Annotated[float | None, Positive, "passes over the training data instead of steps"] = None
    batch_tokens: Annotated[float | None, Positive, "tokens per optimizer step, instead of accumulate"] = None
    batch_size: Annotated[int, Size, Schedulable(), "rows per batch"] = 4
    accumulate: Annotated[int, Size, "batches per optimizer step (gradient accumulation)"] = 1
    label_smoothing: Annotated[
        float, Range(0, 1, open_high=True), Schedulable(), "probability mass of a target spread over the vocabulary"
    ] = 0.0
    log_every: Annotated[int, Positive, "steps between logged metrics"] = 20
    val_every: Annotated[int | None, Positive, "steps between validations; null: only before and after"] = 600
    checkpoint_every: Annotated[int | None, Positive, "steps between checkpoints; null: only at the end"] = 600
    keep: Annotated[int, Positive, "number of checkpoints kept"] = 2


RateFactor = Annotated[float, Positive, "factor on the learning rate; weight decay per step is unchanged"]
OwnSchedule = Annotated[str | None, OptionOf("schedule"), "replaces `schedule`; takes over the knobs they share"]


@dataclass(kw_only=True)
class Roles:
    """Learning-rate factors and schedules by role of a parameter, where they differ from the common ones."""

    matrix_rate: RateFactor = 1.0
    vector_rate: RateFactor = 1.0
    embedding_rate: RateFactor = 1.0
    head_rate: RateFactor = 1.0
    matrix_schedule: OwnSchedule = None
    vector_schedule: OwnSchedule = None
    embedding_schedule: OwnSchedule = None
    head_schedule: OwnSchedule = None
    frozen: Annotated[
        tuple[str, ...], Schedulable(), "what keeps its weights: roles (matrix ...) and layers (layers.0 ...)"
    ] = ()


@dataclass(kw_only=True)
class Seeds:
    """Independent random streams; each uses `seed` unless it is set."""

    init: Annotated[int | None, NonNegative, "initial weights, drawn per parameter name"] = None
    data: Annotated[int | None, NonNegative, "order of the data"] = None
    dropout: Annotated[int | None, NonNegative, "dropout masks"] = None


@dataclass(kw_only=True)
class Trainer:
    """Device, precision and processes."""

    device: Annotated[Literal["auto", "cpu", "cuda"], "auto: cuda when there is one"] = "auto"
    precision: Annotated[Literal["auto", "32", "bf16", "16"], "auto: bf16 where the device computes it natively"] = (
        "auto"
    )
    threads: Annotated[int | None, Processes, "threads of torch; by default one per core"] = None
    workers: Annotated[int, Range(0, 1024), "processes that load data"] = 0
    compile: Annotated[bool, "torch.compile each block: 1.2x faster after a minute of compilation"] = False
    progress: Annotated[bool, "show a progress bar"] = True


SECTIONS: dict[str, type] = {
    "model": Model, "data": Data, "train": Train, "roles": Roles, "seeds": Seeds, "trainer": Trainer,
}  # fmt: skip
SWEEP = "sweep"


@functools.cache
def section_knobs(section: type) -> tuple[Knob, ...]:
    """Settings of a section, read from its dataclass as a part's knobs are read from its signature."""
    return read_signature(section, section.__name__.lower())[1]


def defaults() -> dict[str, Any]:
    """All sections with their default values."""
    top: dict[str, Any] = {k.name: k.default for k in section_knobs(Run)}
    top |= {kind: {} for kind, registry in REGISTRIES.items() if registry.multiple}
    return top | {name: {k.name: _plain(k.default) for k in section_knobs(s)} for name, s in SECTIONS.items()}


def check(config: Mapping[str, Any]) -> list[Problem]:
    """All problems of a composed config (plain nested dicts): types, ranges, choices, names, combinations."""
    try:
        refuse_objects(config, "config")
    except ContractError as error:
        return [Problem("config", str(error))]
    problems = [
        *_top_level(config),
        *_sections(config),
        *_parts(config),
        *missing_kinds(config),
        *held_problems(config),
        *per_layer.problems(config),
    ]
    problems = [with_schedulable(p, settings_of(config)) for p in problems]
    bad = {p.where for p in problems}
    layered = per_layer.varied(config) if not any(w.startswith(per_layer.LAYERS) for w in bad) else []
    if layered and not bad & {*layered, "architecture", "model.n_layers", "model.encoder_layers", "model"}:
        problems += per_layer.stack_problems(config)
        broken = [*_layer_rules(config, bad)]
    else:
        broken = [p for view in _views(config, bad) for p in rules.violated_rules(view)]
    return problems + list({(p.where, p.what): p for p in broken if p.where not in bad}.values())


def _layer_rules(config: Mapping[str, Any], bad: set[str]) -> Iterator[Problem]:
    """Problems for the rules that a layer violates; the first layer is named."""
    lists, found = per_layer.section(config)[0], dict[tuple[str, str, str], list[int]]()
    for layers, nodes in per_layer.combinations(config):
        for view in _views({**config, **nodes}, bad):
            for p in rules.violated_rules(view):
                found.setdefault((p.where, p.what, p.fix), []).extend(layers)
    varied = per_layer.varied(config)
    for (where, what, fix), layers in found.items():
        kind, option = where.split(".")[0], fix.partition("=")[2]
        if kind in varied:
            where = f"{per_layer.LAYERS}.{kind}" if kind in lists else f"{per_layer.LAYERS}.{per_layer.AT}.{kind}"
            fix = f"{where}=null"
        elif kind == fix.partition("=")[0] and kind in REGISTRIES and REGISTRIES[kind].per_layer:
            fix = per_layer.replaced(config, kind, layers, option)
        yield Problem(where, f"layer {min(layers)}: {what}", fix, combination=True)


def _views(config: Mapping[str, Any], bad: set[str]) -> list[Mapping[str, Any]]:
    """The configs that must keep the rules: with schedules, those with their largest and their smallest values."""
    scheduled = schedules_of(given := cast(config)) if not bad and mentions_schedule(config) else {}
    if not scheduled:
        return [effective(config, bad)]
    extremes = settled(given), mapped(given, lambda path, schedule: schedule.lowest)
    return [effective(view) | {"scheduled": [*scheduled]} for view in extremes]


def settings_of(config: Mapping[str, Any]) -> dict[str, Knob]:
    """All settings of sections and chosen parts, by their paths: {"train.steps": ...}."""
    found = {f"{name}.{k.name}": k for name, section in SECTIONS.items() for k in section_knobs(section)}
    for kind, registry in REGISTRIES.items():
        node = config.get(kind)
        if isinstance(node, Mapping):
            names = {f"{kind}.{n}": n for n in node} if registry.multiple else {kind: str(node.get("name"))}
            parts = {path: registry.entries[name] for path, name in names.items() if name in registry.entries}
            found |= {f"{path}.{k.name}": k for path, part in parts.items() for k in part.knobs}
    return found


def cast(config: Mapping[str, Any]) -> dict[str, Any]:
    """The checked config with each value cast to its knob's type, so that `1` and `1.0` give the same config."""
    knobs: dict[str, tuple[Knob, ...]] = {name: section_knobs(s) for name, s in SECTIONS.items()}
    found = dict(config)
    for kind, registry in REGISTRIES.items():
        if registry.multiple:
            found[kind] = {n: _cast(v or {}, registry.entries[n].knobs) for n, v in (config[kind] or {}).items()}
        elif config.get(kind) is not None:
            knobs[kind] = registry.entries[config[kind]["name"]].knobs
    found.pop(per_layer.LAYERS, None)
    layers = per_layer.cast(config)
    return (
        _cast(found, section_knobs(Run))
        | {name: _cast(found[name], k) for name, k in knobs.items()}
        | ({per_layer.LAYERS: layers} if layers else {})
    )


def _given_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults for everything in `config`: of the sections, and of the knobs of the chosen options."""
    found = defaults()
    for kind, registry in REGISTRIES.items():
        node = config.get(kind)
        if not isinstance(node, Mapping):
            continue
        if registry.multiple:
            found[kind] = {n: registry.entries[n].defaults for n in node if n in registry.entries}
        elif str(node.get("name")) in registry.entries:
            found[kind] = registry.entries[str(node["name"])].defaults
    return found


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with defaults filled in for whatever it does not set."""

    def over(base: Any, given: Any) -> Any:
        if not (isinstance(base, Mapping) and isinstance(given, Mapping)):
            return given
        return {**base, **{k: over(base.get(k), v) for k, v in given.items()}}

    came_later = {
        kind: {"name": registry.default, **registry.entries[registry.default].defaults}
        for kind, registry in REGISTRIES.items()
        if registry.default and config.get(kind) is None
    }
    return dict(over(_given_defaults(config), config)) | came_later


def changed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config that differ from the defaults; options by name."""

    def beyond(base: Any, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        known = base if isinstance(base, Mapping) else {}
        return {k: beyond(known.get(k), v) for k, v in given.items() if k not in known or _plain(known[k]) != _plain(v)}

    said = {k: v for k, v in config.items() if not (k in REGISTRIES and is_default(REGISTRIES[k], v))}
    return dict(beyond(_given_defaults(config), said))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def chosen(config: Mapping[str, Any]) -> Iterator[tuple[PartSpec, dict[str, Any]]]:
    """(part, its knobs) for each option that the config chooses; a kind added by a plugin may be missing."""
    for kind, registry in REGISTRIES.items():
        node = config.get(kind) or {}
        options = [*node.items()] if registry.multiple else [(node["name"], node)] if node else []
        if kind in per_layer.varied(config):
            options += [(n["name"], n) for n in per_layer.in_use(config, registry) if n["name"] != node["name"]]
        for name, knobs in options:
            yield registry[name], {k: v for k, v in (knobs or {}).items() if k != "name"}


def _cast(node: Mapping[str, Any], knobs: tuple[Knob, ...]) -> dict[str, Any]:
    values = dict(node) | {k.name: k.cast(node[k.name]) for k in knobs if k.name in node}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def effective(config: Mapping[str, Any], leave_out: set[str] | frozenset[str] = frozenset()) -> dict[str, Any]:
    """The config as rules see it: derived sizes filled in, plus `given` (values as set) and `facts` of chosen parts.

    `scheduled` lists the settings that change during training.

    Keys in `leave_out` are removed, so that rules do not report values that are invalid by themselves, and schedules,
    which have no single value.
    """
    view: dict[str, Any] = {}
    for key, value in config.items():
        if key in leave_out:
            continue
        view[key] = (
            {k: v for k, v in value.items() if f"{key}.{k}" not in leave_out and not is_value_schedule(v)}
            if isinstance(value, Mapping)
            else value
        )
    view["scheduled"] = []
    view["given"] = {k: dict(v) for k, v in view.items() if isinstance(v, Mapping)}
    view["facts"] = {
        kind: {**(entry := registry.entries[view[kind]["name"]]).facts, "wiring": entry.wiring}
        for kind, registry in REGISTRIES.items()
        if not registry.multiple
        and isinstance(view.get(kind), dict)
        and str(view[kind].get("name")) in registry.entries
    }
    model = view.get("model", {})
    if isinstance(model, dict) and {"d_model", "n_heads", "d_head", "d_ff"} <= set(model):
        model["d_head"] = model["d_head"] or model["d_model"] // model["n_heads"]
        model["d_ff"] = model["d_ff"] or 4 * model["d_model"]
    data = view.get("data", {})
    if isinstance(data, dict) and "length" in data and "max_len" in model:
        data["length"] = data["length"] or model["max_len"]
    return view


def _top_level(config: Mapping[str, Any]) -> Iterator[Problem]:
    knobs = {k.name: k for k in section_knobs(Run)}
    known = [*knobs, *SECTIONS, *REGISTRIES, SWEEP, per_layer.LAYERS]
    for key, value in config.items():
        if key in knobs:
            yield from value_problems(key, knobs[key], value)
        elif key not in known:
            yield unknown(key, key, known)
    name = config.get("name")
    if isinstance(name, str) and not is_run_name(name):
        yield Problem("name", f"{name!r} is not a valid folder name; expected {NAME_PATTERN}", "name=my-run")
    for key in (*knobs, *SECTIONS, *needed()):
        if key not in config and not (key in REGISTRIES and REGISTRIES[key].default):
            yield Problem(key, "is missing from the config")


def is_run_name(name: str) -> bool:
    """True if `name` may name a run folder; such a name cannot lead outside the parent folder."""
    plain = name.replace(".", "").replace("_", "").replace("-", "")
    return 0 < len(name) <= 100 and plain.isascii() and plain.isalnum() and name[0].isalnum()


def _sections(config: Mapping[str, Any]) -> Iterator[Problem]:
    for name, section in SECTIONS.items():
        if name not in config:
            continue
        node, knobs = config[name], section_knobs(section)
        if not isinstance(node, Mapping):
            first = f"{name}.{knobs[0].name}={knobs[0].default_text}"
            yield Problem(name, f"expected a section of settings, got {str(node)[:60]}", first)
            continue
        yield from knob_problems(name, node, knobs)


def _parts(config: Mapping[str, Any]) -> Iterator[Problem]:
    for kind, registry in REGISTRIES.items():
        node = config.get(kind)
        if not registry.in_run:
            if kind in config:
                yield Problem(kind, "applies only to a sweep, and this is one run; add -m")
        elif registry.multiple:
            yield from several_problems(kind, registry, node)
        elif node is None and registry.optional:
            continue
        elif not isinstance(node, Mapping) or "name" not in node:
            if kind in config:
                yield Problem(kind, f"expected one option, got {node!r}", f"{kind}={next(iter(registry.entries), '')}")
        elif str(node["name"]) not in registry.entries:
            yield no_option(kind, str(node["name"]), registry.entries)
        else:
            yield from knob_problems(kind, node, registry.entries[node["name"]].knobs)
