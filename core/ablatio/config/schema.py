"""The config of a run: a check that finds all problems of a composed config, casts and defaults."""

from collections.abc import Iterator, Mapping
from typing import Any

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
from ablatio.config.sections import SECTIONS as SECTIONS
from ablatio.config.sections import SWEEP as SWEEP
from ablatio.config.sections import Model as Model
from ablatio.config.sections import Run as Run
from ablatio.config.sections import section_knobs as section_knobs
from ablatio.errors import Problem
from ablatio.model.dims import matched_width
from ablatio.registry import per_layer, rules, shared_keys
from ablatio.registry.discovery import refuse_objects
from ablatio.registry.kinds.devices import sharing
from ablatio.registry.knobs import Knob
from ablatio.registry.registry import REGISTRIES, ContractError, PartSpec
from ablatio.registry.value_schedules import is_value_schedule, mapped, mentions_schedule, schedules_of, settled

NAME_PATTERN = "letters, digits, `.`, `_` and `-`, at most 100, the first a letter or digit"


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
        problems += shared_keys.position_problems(config)
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
    varied = per_layer.varied(config)
    for kind, registry in REGISTRIES.items():
        node = config.get(kind) or {}
        options = [*node.items()] if registry.multiple else [(node["name"], node)] if node else []
        if kind in varied:
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
    view: dict[str, Any] = {kind: None for kind, r in REGISTRIES.items() if r.optional and kind not in leave_out}
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
        matched = view.get("match") == "params" and view["facts"].get("activation", {}).get("gated")
        sizes = model["d_model"], model["d_ff"], bool(model.get("bias"))
        model["inner_width"] = matched_width(*sizes) if matched else model["d_ff"]
    trainer, facts = view.get("trainer", {}), view["facts"].get("strategy")
    known = facts and isinstance(trainer, dict) and {"devices", "nodes"} <= set(trainer)
    if known and facts["grouped_by"] in ("", *view["strategy"]):
        world = int(trainer["devices"]) * int(trainer["nodes"])
        view["strategy"]["sharing"] = sharing(facts, view["strategy"], world)
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
