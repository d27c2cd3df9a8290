"""Suggest the setting that was meant: by the words of Lightning, transformers and PyTorch, then by its last word.

A suggestion never changes what was meant: another word is not a misspelling (`batch_tokens` is not `batch_size`), and
the config composed with it is checked before it is shown (ablatio.config.compose).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ablatio.config import schema as run_config
from ablatio.config.synonyms import ALIASES, NOTES, VALUES
from ablatio.config.typos import is_typo, nearest
from ablatio.errors import Problem
from ablatio.registry.registry import REGISTRIES

RUN_WORDS = ("resume", "name")  # single words that are not in the composed config, or not shown as a suggestion
NOT_MEANT = ("seeds", "roles")  # `dropout=0.1` means model.dropout, not the seed of the dropout masks


def unknown_key(key: str, value: str, tree: Mapping[str, Any], options: Mapping[str, Any]) -> Problem:
    """Problem of a key that does not exist, with the one that was meant if there is only one.

    value    as given, for the corrected setting
    tree     the composed config
    options  the groups, by name
    """
    first, _, rest = key.partition(".")
    word = key.rpartition(".")[2]
    if listed := _with_option(tree, first, rest):
        what = f"{first}={rest.partition('.')[0]} is not chosen; {first}=[{listed}] chooses it"
        return Problem(key, what)
    if (note := NOTES.get(word)) and not _holds(tree, first, rest):
        return Problem(key, note)
    if problem := _option_as_key(key, value, tree):
        return problem
    for guess in (_in_section, _of_another_library, _by_last_word):
        if found := list(dict.fromkeys(guess(key, tree, options))):
            return _problem(key, value, found)
    if having := _knob_of_others(word):
        forms = " or ".join(f"{kind}=OPTION {kind}.{word}={value}" for kind in having)
        what = "; ".join(f"{kind}={', '.join(options)}" for kind, options in having.items())
        return Problem(key, f"there is no `{word}`; it is a knob of {what}: {forms}")
    if found := list(dict.fromkeys(_misspelled(key, tree, options))):
        return _problem(key, value, found)
    node = tree.get(first)
    if rest and isinstance(node, Mapping):
        for part in rest.split(".")[:-1]:  # an option of a kind with several has its knobs one level deeper
            node = inner if isinstance(inner := node.get(part), Mapping) else node
        known = sorted(k for k in node if k != "name")
        return Problem(key, f"there is no `{word}`; there are {', '.join(known) or 'none'}")
    known = sorted({k for k in tree if k not in ("hydra", "name")} | {g for g in options if "/" not in g})
    return Problem(key, f"there is no `{first}`; there are {', '.join(known)}")


def _problem(key: str, value: str, found: list[str]) -> Problem:
    word = key.rpartition(".")[2]
    if len(found) > 1:
        return Problem(key, f"there is no `{word}`; did you mean {' or '.join(found[:4])}?")
    setting = found[0]
    given = ",".join(VALUES.get(setting, {}).get(single, single) for single in value.split(","))
    within = setting.rpartition(".")[0] == key.rpartition(".")[0]
    shown = setting.rpartition(".")[2] if within else setting
    return Problem(key, f"there is no `{word}`; did you mean {shown}?", f"{setting}={given}" if given else "")


def _option_as_key(key: str, value: str, tree: Mapping[str, Any]) -> Problem | None:
    """Problem of `rope=true`: the name of an option, where its kind was expected."""
    kinds = [kind for kind, registry in REGISTRIES.items() if registry.in_run and key in registry.entries]
    if not kinds:
        return None
    if len(kinds) > 1:
        return Problem(key, f"is an option of {' and of '.join(kinds)}; choose it by {kinds[0]}={key}")
    (kind,) = kinds
    chosen = f"[{','.join([*(tree.get(kind) or {}), key])}]" if REGISTRIES[kind].multiple else key
    return Problem(key, f"is an option of {kind}", f"{kind}={chosen}" if value.lower() in ("true", "1") else "")


def _with_option(tree: Mapping[str, Any], kind: str, rest: str) -> str:
    """Options of a kind that takes several, and the one whose knob was set without choosing it; else empty."""
    option, _, knob = rest.partition(".")
    registry = REGISTRIES.get(kind)
    if registry is None or not registry.multiple or option not in registry.entries or not knob:
        return ""
    chosen = tree.get(kind) or {}
    return "" if option in chosen else ",".join([*chosen, option])


def _holds(tree: Mapping[str, Any], first: str, rest: str) -> bool:
    node = tree.get(first)
    return bool(rest) and isinstance(node, Mapping) and rest in node


def _in_section(key: str, tree: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
    """A misspelling of a setting of the section that the key names."""
    section, _, rest = key.rpartition(".")
    node: Any = tree
    for part in section.split(".") if section else ():
        node = node.get(part) if isinstance(node, Mapping) else None
    if section and isinstance(node, Mapping):
        yield from (f"{section}.{name}" for name in nearest(rest, (k for k in node if k != "name")))


def _of_another_library(key: str, tree: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
    setting = ALIASES.get(key.rpartition(".")[2].lower())
    if setting and ("." in setting or setting in options or setting in tree or setting in RUN_WORDS):
        yield setting
    elif setting:
        yield from _settings(tree, options, lambda last: last == setting)


def _by_last_word(key: str, tree: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
    word = key.rpartition(".")[2]
    found = [*_settings(tree, options, lambda last: last == word)]
    yield from [name for name in found if not name.startswith(tuple(f"{s}." for s in NOT_MEANT))] or found


def _knob_of_others(word: str) -> dict[str, list[str]]:
    """{kind: options that have a knob of this name}, of kinds of which a run has one option."""
    single = {kind: registry for kind, registry in REGISTRIES.items() if registry.in_run and not registry.multiple}
    found = {kind: [entry.name for entry in registry if entry.knob(word)] for kind, registry in single.items()}
    return {kind: options for kind, options in found.items() if options}


def _misspelled(key: str, tree: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
    first, _, rest = key.partition(".")
    if rest:  # `optimiser.lr`: the section is misspelled, and has this setting
        found = [f"{name}.{rest}" for name in nearest(first, tree) if _holds(tree, name, rest)]
    else:
        found = nearest(first, {*options, *(k for k in tree if k != "hydra")})
    word = key.rpartition(".")[2]
    yield from found or _settings(tree, options, lambda last: is_typo(word, last))


def _settings(tree: Mapping[str, Any], options: Mapping[str, Any], fits: Callable[[str], bool]) -> Iterator[str]:
    """Settings whose last word fits: sections before parts; of single settings and kinds their own name."""
    yield from (k for k in (*tree, *options) if "/" not in k and k not in ("hydra", "name") and fits(k))
    for section in (*run_config.SECTIONS, *(kind for kind in tree if kind in REGISTRIES)):
        node = tree.get(section)
        if not isinstance(node, Mapping):
            continue
        for name, value in node.items():
            if isinstance(value, Mapping):
                yield from (f"{section}.{name}.{knob}" for knob in value if fits(knob))
            elif name != "name" and fits(name):
                yield f"{section}.{name}"
