"""Detection of kinds that no code uses: none builds their parts or reads the option that a config names.

An option of a kind has an effect in one of three ways:

- the kind declares `attaches`: the model is built with the option that the config names
- a part names an option in a knob, `Annotated[str, OptionOf("filler")]`, and builds it
- code of a plugin, such as a task, reads the config's choice and builds it: `setup.part("filler")`, or
  `fillers.build(config["filler"]["name"])`

The third is found in the source of the installed plugins, which is read and not imported.
"""

import ast
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ablatio.registry import discovery
from ablatio.registry.catalogue import OURS
from ablatio.registry.registry import REGISTRIES, SESSION, Registry

GUIDE = "docs/howto/new-kind.md"
BUILDERS = ("build", "target")  # methods of a registry that make a part
BOTH = "part"  # TaskContext.part("filler") builds the config's choice
READERS = ("get", "choice", "of", "pop")  # functions that take the name of a kind and read the config's choice


def unused(registry: Registry[Any]) -> str:
    """Why options of a plugin's kind have no effect in any run; "" if something uses them."""
    if not _of_plugin(registry) or registry.attaches or knobs_of(registry.kind):
        return ""
    if _source_uses(registry)["builds"]:
        return ""
    return (
        f"the kind `{registry.kind}` of {registry.distribution} is used by nothing that is installed: it attaches to "
        f'no place of the model, no knob is an OptionOf("{registry.kind}"), and no plugin builds its parts; {GUIDE} '
        "shows three ways to use a kind"
    )


def without_effect(config: Mapping[str, Any]) -> list[str]:
    """A sentence for each option that a config names and that nothing reads."""
    return [said for kind, node in config.items() if (said := _choice_without_effect(kind, node))]


def axes_without_effect(overrides: Iterable[str]) -> list[str]:
    """The same for the settings of a sweep: `sampler=steady,stuck`."""
    axes = (text.lstrip("+").partition("=") for text in overrides)
    found: dict[str, str] = {}
    for kind, _, names in axes:
        for name in names.split(","):
            if said := _choice_without_effect(kind, {"name": name.strip(" []")}):
                found.setdefault(kind, said)  # the first option stands for all
    return [*found.values()]


def _choice_without_effect(kind: str, node: Any) -> str:
    registry = REGISTRIES.get(kind)
    if registry is None or not node or not registry.in_run or not _of_plugin(registry) or registry.attaches:
        return ""
    name = node["name"] if isinstance(node, Mapping) and isinstance(node.get("name"), str) else ""
    # The default stands in every config, whether or not anything reads it.
    if name and name == registry.default:
        return ""
    chosen = f"{kind}={name or ','.join(map(str, node))}"
    # Built through a knob, the config's own choice may still be read by code; only then has it an effect.
    if knobs := knobs_of(kind):
        if _source_uses(registry)["reads"]:
            return ""
        setting, _, knob = knobs[0].partition(".")
        there = f"{setting} {setting.partition('=')[0]}.{knob}={name}"
        return f"{chosen} has no effect: options of `{kind}` are chosen by a knob\n    try: {there}"
    uses = _source_uses(registry)
    if uses["builds"] and uses["reads"]:
        return ""
    return f"{chosen} has no effect: {unused(registry) or f'nothing reads the choice of a `{kind}` in a config'}"


def _of_plugin(registry: Registry[Any]) -> bool:
    """True for kinds of installed plugins; a kind of the session may be used by code of the session."""
    return registry.distribution.name not in (OURS, SESSION.name)


def knobs_of(kind: str) -> list[str]:
    """Knobs of parts that name an option of a kind: `mlp=gated_output.gate`."""
    return [
        f"{e.kind}={e.name}.{k.name}" for r in REGISTRIES.values() for e in r for k in e.knobs if k.option_of == kind
    ]


def _source_uses(registry: Registry[Any]) -> dict[str, bool]:
    """Return {"builds", "reads"}: code of a plugin builds parts of the kind; code of a plugin reads its choice."""
    found = {"builds": False, "reads": False}
    trees = list(_trees())
    # In all files first: a registry may be defined in one module and used in another.
    names = {name for tree in trees for name in _assigned(tree, registry.kind)}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and node.attr in BUILDERS:
            found["builds"] |= _is_registry(node.value, names, registry.kind)
        elif isinstance(node, ast.Subscript):
            found["reads"] |= _names_kind(node.slice, names, registry.kind) and not _is_registries(node.value)
        elif isinstance(node, ast.Call) and node.args and _last(node.func) in (*READERS, BOTH):
            reads = _names_kind(node.args[0], names, registry.kind)
            found["reads"] |= reads
            found["builds"] |= reads and _last(node.func) == BOTH
    return found


def _trees() -> Iterator[ast.Module]:
    for source in discovery.sources():
        if source.distribution.name != OURS:
            for path in source.files:
                if tree := _parsed(str(path)):
                    yield tree


@functools.cache
def _parsed(path: str) -> ast.Module | None:
    if not path.endswith(".py"):
        return None
    try:
        return ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None


def _assigned(tree: ast.Module, kind: str) -> Iterator[str]:
    """Names of the registry of a kind: `fillers = Registry("filler", ...)`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Call):
            continue
        call = node.value
        of_generic = call.func.value if isinstance(call.func, ast.Subscript) else call.func
        if _last(of_generic) == "Registry" and call.args and _is_text(call.args[0], kind):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (t.id for t in targets if isinstance(t, ast.Name))


def _is_registry(node: ast.expr, names: set[str], kind: str) -> bool:
    """True for `fillers`, `parts.fillers` and `REGISTRIES["filler"]`."""
    if isinstance(node, ast.Subscript):
        return _is_registries(node.value) and _is_text(node.slice, kind)
    return _last(node) in names


def _is_registries(node: ast.expr) -> bool:
    return _last(node) == "REGISTRIES"


def _names_kind(node: ast.expr, names: set[str], kind: str) -> bool:
    """True for "filler" and `fillers.kind`; also inside: `config["filler"]` as an argument."""
    if isinstance(node, ast.Subscript):
        return _names_kind(node.slice, names, kind)
    return _is_text(node, kind) or (
        isinstance(node, ast.Attribute) and node.attr == "kind" and _last(node.value) in names
    )


def _is_text(node: ast.expr, text: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == text


def _last(node: ast.expr) -> str:
    """The last name of a dotted one."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
