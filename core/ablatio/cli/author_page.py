"""`ablatio show KIND --author`: what a part of a kind receives, defines and declares, and an example that works."""

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import ablatio
from ablatio.cli.pages import columns, rows, wrapped
from ablatio.cli.scaffold import templates
from ablatio.registry import consumers, contract, kinds
from ablatio.registry.kinds.alignment_inputs import WORDS
from ablatio.registry.registry import REGISTRIES, Registry

NAME = 20  # columns of a word; a longer one gets its own line


def author_page(kind: str) -> str:
    """The contract of a kind as text; loads the module of a plugin's kind."""
    registry = REGISTRIES[kind]
    if registry.from_catalogue:  # the protocols of a plugin's kind are in its module
        for entry in list(registry)[:1]:
            registry.target(entry.name)
        registry = REGISTRIES[kind]
    return "\n".join(line.rstrip() for line in _lines(registry, columns())).rstrip() + "\n"


def _lines(registry: Registry[Any], width: int) -> Iterator[str]:
    about = contract.described(registry)
    yield from wrapped(f"{registry.kind}: {registry.doc}", width)
    for paragraph in "\n".join(about.prose).strip().split("\n\n"):
        yield from _block("", wrapped(paragraph, width))
    yield from _block("REGISTER", _register(registry, width))
    wiring = contract.wiring(registry)
    yield from _block(
        "HANDED OVER: parameters left of a bare `*`, by name; take those that you need",
        _words(wiring, width) if wiring else ["nothing"],
    )
    yield from _block("CALLED", _methods(registry, width))
    facts = {f"{name} = {value!r}": said for name, (value, said) in contract.facts(registry).items()}
    title = "FACTS: class attributes, or of a function arguments of `register`; with defaults"
    yield from _block(title, _words(facts, width) if facts else ["none"])
    for method in registry.asks:
        yield from _block(
            f"PARAMETERS of {method}, by the fact `data`", _asked(width) if method == "loss" else ["the same"]
        )
    for title, words in about.sections.items():
        if not title.startswith(("Wiring", "Methods", "Facts")):
            rest = {word: said for word, said in words.items() if word.split("(")[0] not in contract.methods(registry)}
            yield from _block(title, _words(rest, width))
    yield from _block("RULES that read these facts", _rules(registry, width))
    if said := consumers.unused(registry):
        yield from _block("WARNING", wrapped(said, width))
    yield from ("", "EXAMPLE, a whole file", "", *templates.example(registry.kind).rstrip().splitlines(), "")
    yield f"try: ablatio new-plugin my-parts --kind {registry.kind}"


def _block(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield ""
        yield from wrapped(title, columns()) if title else []
        yield from (f"  {line}" if title else line for line in lines)


def _register(registry: Registry[Any], width: int) -> list[str]:
    module, name = import_of(registry)
    lines = [f"from {module} import {name}", f'@{name}.register("my_name", paper="arXiv:...")']
    if registry.calls:
        forms = " or ".join(f"({', '.join(form)}, *, KNOBS)" for form in registry.calls)
        lines += wrapped(f"of a class, or of a function {forms}", width - 2, subsequent_indent="    ")
    else:
        lines.append("of a class, or of a function that takes the wiring and returns the part")
    if registry.base:
        lines.append(f"a class inherits from {registry.base}")
    if registry.default:
        lines.append(f"{registry.kind}={registry.default} is meant where a config names none")
    if registry.multiple:
        lines.append(f"several may be chosen: {registry.kind}=[a,b]")
    return lines


def import_of(registry: Registry[Any]) -> tuple[str, str]:
    """(module, name) from which the registry of a kind is imported."""
    for module in (ablatio, kinds):
        for name, value in vars(module).items():
            if value is registry:
                return module.__name__, name
    for entry in registry:
        home = importlib.import_module(entry.module)
        for name, value in vars(home).items():
            if value is registry:
                return home.__name__, name
    return "its plugin", f"{registry.kind}s"


def _words(words: Mapping[str, str], width: int) -> list[str]:
    return rows(words, width - 2, NAME)


def _methods(registry: Registry[Any], width: int) -> list[str]:
    lines: list[str] = []
    for text, needed, said in contract.methods(registry).values():
        lines += wrapped(f"{text}   [{needed}]", width - 2, subsequent_indent="    ")
        lines += wrapped(said, width - 2, initial_indent="    ", subsequent_indent="    ")
    if registry.base:
        lines += ["", f"hooks of {registry.base}, which does nothing by default"]
        module, _, name = registry.base.rpartition(".")
        base = getattr(importlib.import_module(module), name)
        known = contract.methods(registry)
        for hook in (m for m in registry.methods if m not in known):
            signature = str(inspect.signature(inspect.getattr_static(base, hook).__func__ if _bound(base, hook) else
                                              getattr(base, hook)))  # fmt: skip
            plain = contract.short(signature).replace("'", "").replace("(self, ", "(").replace("(self)", "()")
            lines += wrapped(f"{hook}{plain}", width - 2, subsequent_indent="    ")
            first = (inspect.getdoc(getattr(base, hook)) or "").split("\n")[0]
            lines += wrapped(first, width - 2, initial_indent="    ", subsequent_indent="    ")
    return lines


def _bound(base: type, hook: str) -> bool:
    return isinstance(inspect.getattr_static(base, hook), classmethod)


def _asked(width: int) -> list[str]:
    return [
        line
        for data, words in WORDS.items()
        for line in (f"data = {data!r}", *(f"  {line}" for line in _words(words, width - 2)))
    ]


def _rules(registry: Registry[Any], width: int) -> list[str]:
    lines: list[str] = []
    for rule in contract.rules_about(registry):
        unless = f" unless {rule.unless}" if rule.unless != "False" else ""
        lines += wrapped(f"refused: {rule.when}{unless}", width - 2, subsequent_indent="    ")
        lines += wrapped(rule.why, width - 2, initial_indent="    ", subsequent_indent="    ")
    return lines
