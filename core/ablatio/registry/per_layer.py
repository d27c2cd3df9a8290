"""Options per layer: `layers.KIND=[a*3,b]` is cycled over the depth, `layers.at.KIND={0: a}` names single layers.

An entry is the name of an option, `name*3` for three layers, or `{name: {knob: value}}` for its knobs.  An option takes
its knobs from, in this order: the entry, the run's option if both have the knob, its own defaults.  So
`attention.qk_norm=rmsnorm` and `attention.n_kv_heads=2` hold in every layer whose attention has that knob.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablatio.errors import Problem, did_you_mean
from ablatio.registry import shared_layers
from ablatio.registry.layer_groups import group_problems
from ablatio.registry.part_spec import PartSpec
from ablatio.registry.registry import REGISTRIES, Registry
from ablatio.registry.value_schedules import is_value_schedule

LAYERS, AT = "layers", "at"
EXAMPLE = "layers.attention=[sliding*3,mha]"


@dataclass(frozen=True, slots=True)
class Entry:
    """An option for `times` layers in a row, with the knobs that the entry sets."""

    name: str
    knobs: Mapping[str, Any]
    times: int = 1

    def to_yaml(self) -> Any:
        """The entry in its shortest form: `name`, `name*3`, `{name*3: {knob: value}}`."""
        name = self.name if self.times == 1 else f"{self.name}*{self.times}"
        return {name: dict(self.knobs)} if self.knobs else name


def kinds() -> list[Registry[Any]]:
    """Kinds that may have another option in each layer."""
    return [registry for registry in REGISTRIES.values() if registry.per_layer]


def empty() -> dict[str, Any]:
    """The section `layers` of a config in which all layers are equal: each kind with null."""
    return {registry.kind: None for registry in kinds()} | {AT: {registry.kind: None for registry in kinds()}}


def read_entry(value: Any) -> Entry:
    """Read one entry; raises ValueError if its form is wrong."""
    text, knobs = value, dict[str, Any]()
    if isinstance(value, Mapping):
        if len(value) != 1:
            raise ValueError(f"expected one option with its knobs, such as {{sliding: {{window: 64}}}}, got {value!r}")
        text, knobs = next(iter(value.items()))
    if not isinstance(knobs, Mapping | None):
        raise ValueError(f"expected the knobs of {text}, such as {{window: 64}}, got {str(knobs)[:60]!r}")
    if not isinstance(text, str):
        raise ValueError(f"expected the name of an option, got {str(text)[:60]!r}")
    name, star, times = (part.strip() for part in text.partition("*"))
    # isdigit alone takes "²", and int() of a million digits takes minutes.
    if star and not (times.isascii() and times.isdigit() and 0 < int(times[:9]) <= 10_000):
        raise ValueError(f"expected a number of layers after `*`, such as {name}*3, got {text!r}")
    return Entry(name, dict(knobs or {}), int(times) if star else 1)


def read_list(value: Any) -> list[Entry]:
    """Read a list of entries, or one entry for all layers; raises ValueError if its form is wrong."""
    found = [read_entry(v) for v in (value if isinstance(value, list | tuple) else [value])]
    if not found:
        raise ValueError("expected at least one option, got []")
    return found


def expanded(entries: Sequence[Entry]) -> list[Entry]:
    """The entries of single layers: [a*2, b] -> [a, a, b]."""
    return [Entry(e.name, e.knobs) for e in entries for _ in range(e.times)]


def shortest(entries: Sequence[Entry]) -> list[Entry]:
    """The shortest list with the same cycle: [a, a, b, a, a, b] -> [a*2, b]."""
    cycle = expanded(entries)
    # The smallest period: [a,b,a,b] and [a,b] give the same layers, so they must give one id.
    size = next(n for n in range(1, len(cycle) + 1) if len(cycle) % n == 0 and cycle == cycle[:n] * (len(cycle) // n))
    if size == 1:
        return cycle[:1]
    found = list[Entry]()
    for entry in cycle[:size]:
        same = found and (found[-1].name, found[-1].knobs) == (entry.name, entry.knobs)
        if same:
            found[-1] = Entry(entry.name, entry.knobs, found[-1].times + 1)
        else:
            found.append(entry)
    return found


def section(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(lists by kind, single layers by kind) of a config."""
    node = config.get(LAYERS) or {}
    lists = {kind: value for kind, value in node.items() if kind != AT and value is not None}
    return lists, {kind: value for kind, value in (node.get(AT) or {}).items() if value}


def varied(config: Mapping[str, Any]) -> list[str]:
    """Kinds whose option the config sets per layer."""
    lists, single = section(config)
    return [registry.kind for registry in kinds() if registry.kind in lists or registry.kind in single]


def entries_at(config: Mapping[str, Any], kind: str, depth: int) -> list[Entry | None]:
    """The entry that the config names for each of `depth` layers; None: the option of the run."""
    lists, single = section(config)
    cycle: list[Entry | None] = [*expanded(read_list(lists[kind]))] if kind in lists else [None]
    found = [cycle[i % len(cycle)] for i in range(depth)]
    for layer, value in single.get(kind, {}).items():
        # Single layers last, so that they replace what the cycle put there; -1 is Python's own last.
        found[int(layer)] = read_entry(value)
    return found


def nodes(config: Mapping[str, Any], registry: Registry[Any], depth: int) -> list[Mapping[str, Any]]:
    """The option of a kind in each of `depth` layers, with its knobs: {name: ..., knob: ...}."""
    run = config[registry.kind]
    if registry.kind not in varied(config):
        return [run] * depth
    return [run if e is None else _node(registry[e.name], e.knobs, run) for e in
            entries_at(config, registry.kind, depth)]  # fmt: skip


def own_knobs(config: Mapping[str, Any], registry: Registry[Any], depth: int) -> list[frozenset[str]]:
    """Schedulable knobs that the entry of each of `depth` layers sets: a schedule of the run does not reach these."""
    entries = entries_at(config, registry.kind, depth) if registry.kind in varied(config) else [None] * depth
    return [
        frozenset(k.name for k in registry[e.name].knobs if k.schedulable and k.name in e.knobs) if e else frozenset()
        for e in entries
    ]


def _node(part: PartSpec, knobs: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    shared = {k: v for k, v in run.items() if part.knob(k)}
    return {"name": part.name} | part.defaults | shared | dict(knobs)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def depths(config: Mapping[str, Any]) -> list[int]:
    """Number of layers of each stack of the config's model."""
    model, stacks = config["model"], REGISTRIES["architecture"][config["architecture"]["name"]].facts["stacks"]
    # The cycle starts anew in each stack, so that each depth has its own combinations.
    own = [model.get("encoder_layers")] if len(stacks) == 2 else []
    return list(dict.fromkeys([model["n_layers"], *(n for n in own if n)]))


def combinations(config: Mapping[str, Any]) -> Iterator[tuple[list[int], dict[str, Mapping[str, Any]]]]:
    """(numbers of the layers, option of each varied kind there) for each combination of parts that some layer has."""
    changing = [REGISTRIES[kind] for kind in varied(config)]
    for depth in depths(config):
        rows = [nodes(config, registry, depth) for registry in changing]
        found = list[tuple[list[int], list[Mapping[str, Any]]]]()
        for layer, chosen in enumerate(map(list, zip(*rows, strict=True))):
            same = next((numbers for numbers, others in found if others == chosen), None)
            if same is None:
                found.append(([layer], chosen))
            else:
                same.append(layer)
        for numbers, chosen in found:
            yield numbers, {registry.kind: node for registry, node in zip(changing, chosen, strict=True)}


def in_use(config: Mapping[str, Any], registry: Registry[Any]) -> list[Mapping[str, Any]]:
    """The different options of a kind that stand in some layer of the config's model."""
    found = list[Mapping[str, Any]]()
    for depth in depths(config):
        found += [node for node in nodes(config, registry, depth) if node not in found]
    return found


def replaced(config: Mapping[str, Any], kind: str, layers: Sequence[int], option: str) -> str:
    """Override that gives these layers another option of a kind and leaves the others that of the run."""
    names = [option if i in layers else str(config[kind]["name"]) for i in range(max(depths(config)))]
    entries = shortest([Entry(name, {}) for name in names])
    if len(entries) == 1:
        return f"{kind}={option}"
    return f"{LAYERS}.{kind}=[{','.join(str(entry.to_yaml()) for entry in entries)}]"


def cast(config: Mapping[str, Any]) -> dict[str, Any]:
    """The checked section `layers` in its shortest form, without kinds that do not vary; {} if none does."""
    lists, single = section(config)
    short = {kind: shortest([_cast(kind, e) for e in read_list(value)]) for kind, value in lists.items()}
    found: dict[str, Any] = {
        kind: [e.to_yaml() for e in entries]
        for kind, entries in short.items()
        if entries != [Entry(config[kind]["name"], {})]  # which is the run's own option
    }
    at = {
        kind: {str(layer): _cast(kind, read_entry(value)).to_yaml() for layer, value in layers.items()}
        for kind, layers in single.items()
    }
    return found | ({AT: at} if at else {})


def _cast(kind: str, entry: Entry) -> Entry:
    knobs = {k.name: k for k in REGISTRIES[kind].entries[entry.name].knobs}
    values = {name: _plain(knobs[name].cast(value)) for name, value in entry.knobs.items()}
    return Entry(entry.name, values, entry.times)


def problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the problems of the section `layers` by itself: forms, names, knobs, numbers of layers."""
    node = config.get(LAYERS)
    if node is None:
        return
    known = [registry.kind for registry in kinds()]
    if not isinstance(node, Mapping) or not isinstance(node.get(AT) or {}, Mapping):
        where = LAYERS if not isinstance(node, Mapping) else f"{LAYERS}.{AT}"
        yield Problem(where, f"expected lists of options by kind, got {str(node)[:60]}", EXAMPLE)
        return
    for where, kind in [(f"{LAYERS}.{k}", k) for k in node if k != AT] + [
        (f"{LAYERS}.{AT}.{k}", k) for k in node.get(AT) or {}
    ]:
        if kind not in known:
            yield kind_problem(where, kind)
    lists, single = section(config)
    for kind in known:
        if kind in lists:
            yield from _list_problems(config, kind, lists[kind])
        if kind in single:
            yield from _single_problems(config, kind, single[kind])


def kind_problem(where: str, kind: str) -> Problem:
    """The problem of a name under `layers` that is no kind which may differ between layers."""
    known = [registry.kind for registry in kinds()]
    if kind.isdigit():
        _, _, rest = where.partition(f".{kind}.")
        what = f"a single layer is named behind its kind: {LAYERS}.{AT}.{rest or 'KIND'}={{{kind}:OPTION}}"
        return Problem(where, what)
    what = f"`{kind}` is the same in all layers" if kind in REGISTRIES else f"there is no kind `{kind}`"
    near = did_you_mean(kind, known)
    return Problem(where, f"{what}{near}; layers may differ in {', '.join(known)}")


def _list_problems(config: Mapping[str, Any], kind: str, value: Any) -> Iterator[Problem]:
    where, depth = f"{LAYERS}.{kind}", _number(config.get("model"), "n_layers")
    try:
        entries = read_list(value)
    except ValueError as error:
        yield Problem(where, str(error), f"{where}=[{REGISTRIES[kind].usual}]")
        return
    for entry in entries:
        yield from _entry_problems(where, kind, entry)
    count = sum(entry.times for entry in entries)
    if depth and count > depth:
        what = f"lists {count} layers, and the model has model.n_layers={depth}"
        yield Problem(where, what, f"model.n_layers={count}", combination=True)


def _single_problems(config: Mapping[str, Any], kind: str, value: Any) -> Iterator[Problem]:
    where, depth = f"{LAYERS}.{AT}.{kind}", _number(config.get("model"), "n_layers")
    form = f"{where}={{0: {REGISTRIES[kind].usual}}}"
    if not isinstance(value, Mapping):
        yield Problem(where, f"expected options by number of the layer, got {str(value)[:60]}", form)
        return
    seen: dict[int, Any] = {}
    for key, option in value.items():
        try:
            # int() would take 1.5 and true, too.
            layer = int(key) if not isinstance(key, bool | float) else int("no number")
        except ValueError:
            yield Problem(where, f"expected numbers of layers (0 is the first, -1 the last), got {key!r}", form)
            continue
        if depth and not -depth <= layer < depth:
            yield Problem(where, f"there is no layer {layer}: model.n_layers={depth} has 0 to {depth - 1}", form)
        if depth and layer % depth in seen:
            yield Problem(where, f"names layer {layer % depth} twice, as {seen[layer % depth]} and as {key}", form)
        seen[layer % (depth or 1)] = key
        try:
            entry = read_entry(option)
        except ValueError as error:
            yield Problem(where, f"layer {layer}: {error}", form)
            continue
        if entry.times != 1:
            yield Problem(where, f"layer {layer}: `*` belongs in a list; here each layer has its own entry", form)
        yield from _entry_problems(where, kind, entry)


def _entry_problems(where: str, kind: str, entry: Entry) -> Iterator[Problem]:
    registry = REGISTRIES[kind]
    if entry.name not in registry.entries:
        near = did_you_mean(entry.name, registry.entries) or f"; `ablatio list {kind}` shows all"
        yield Problem(where, f"there is no {kind}={entry.name}{near}", f"{where}=null")
        return
    part = registry.entries[entry.name]
    if "embed" in part.facts.get("uses", ()):
        what = f"{kind}={entry.name} acts on the embeddings, before the first layer; only the whole run can choose it"
        yield Problem(where, what, f"{where}=null")
    for name, value in entry.knobs.items():
        knob = part.knob(name)
        if knob is None:
            known = [k.name for k in part.knobs]
            near = did_you_mean(name, known) or f"; it has {', '.join(known) or 'none'}"
            yield Problem(where, f"{kind}={entry.name} has no knob `{name}`{near}", f"{where}=null")
        elif wrong := knob.problem(value):
            yield Problem(where, f"{entry.name}.{name}: {wrong}", f"{where}=null")
        elif is_value_schedule(value):
            what = f"{entry.name}.{name}: {value} is a schedule, and a layer's own values are constant; "
            what += (
                f'{kind}={entry.name} "{kind}.{name}={value}" holds in all layers that have the knob and do not set it'
            )
            yield Problem(where, what, f"{where}=null")


def stack_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of the layers taken together, in a config in which each setting is valid by itself."""
    distinct, sharing = config["model"].get("distinct_layers"), config["model"].get("sharing", "cycle")
    for kind in varied(config):
        registry = REGISTRIES[kind]
        where = f"{LAYERS}.{kind}" if kind in section(config)[0] else f"{LAYERS}.{AT}.{kind}"
        usual = f"{where}=null"
        for depth in depths(config):
            found = nodes(config, registry, depth)
            for layer, node in enumerate(found):
                yield from _taken_over(where, registry, layer, node)
            yield from group_problems(where, registry, found)
            # The run's option acts outside the layers as well, and must then fit to those inside.
            stands = [*found, config[kind]] if registry.per_layer == "also outside" else found
            whole = [n for n in dict.fromkeys(str(node["name"]) for node in stands) if _connects_layers(registry[n])]
            if whole and any(node != stands[0] for node in stands):
                yield Problem(where, f"{kind}={whole[0]} must be the same in all layers: it connects them", usual)
            if distinct and distinct < depth:
                owner = shared_layers.owners(depth, distinct, sharing)
                pair = next((i for i in range(depth) if found[i] != found[owner.index(owner[i])]), None)
                if pair is not None:
                    what = f"layers {owner.index(owner[pair])} and {pair} share their weights (model.distinct_layers="
                    what += f"{distinct}), but have different {kind}s"
                    yield Problem(where, what, "model.distinct_layers=null", combination=True)
        yield from _in_no_layer(config, registry, where)
        yield from _reaching_no_layer(config, registry)


def _taken_over(where: str, registry: Registry[Any], layer: int, node: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of knobs that a layer's option takes over from the run."""
    part = registry[node["name"]]
    for name, value in node.items():
        knob = part.knob(name)
        if knob is not None and (wrong := knob.problem(value)):
            what = f"layer {layer} takes over {registry.kind}.{name} from the run, for {part.name}: {wrong}"
            yield Problem(where, what, f"{registry.kind}.{name}={knob.default_text}")


def _connects_layers(part: PartSpec) -> bool:
    """True if all layers must have this part: a block of the whole stack, or a placement that widens the stream."""
    return bool(part.facts.get("whole_stack")) or "open" in part.facts.get("uses", ())


def _in_no_layer(config: Mapping[str, Any], registry: Registry[Any], where: str) -> Iterator[Problem]:
    """The problem of a run's option that stands nowhere: an arm that varies it would change nothing."""
    name = config[registry.kind]["name"]
    if (
        registry.per_layer == "also outside"
        or name == registry.usual
        or any(node["name"] == name for node in in_use(config, registry))
    ):
        return
    what = f"{registry.kind}={name} stands in no layer: {where} chooses another option for each"
    yield Problem(where, what, f"{where}=null")


def _reaching_no_layer(config: Mapping[str, Any], registry: Registry[Any]) -> Iterator[Problem]:
    """Problems of schedules of the run's option that no layer follows."""
    if registry.per_layer == "also outside":
        return
    layers = [
        (registry[node["name"]], own)
        for depth in depths(config)
        for node, own in zip(nodes(config, registry, depth), own_knobs(config, registry, depth), strict=True)
    ]
    for name, value in config[registry.kind].items():
        if is_value_schedule(value) and not any(part.knob(name) and name not in own for part, own in layers):
            what = f"{value} reaches no layer: each has another option or sets {name} itself"
            yield Problem(f"{registry.kind}.{name}", what, f"{LAYERS}.{registry.kind}=null")


def _number(model: Any, key: str) -> int:
    value = model.get(key) if isinstance(model, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
