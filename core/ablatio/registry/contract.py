"""The contract of a kind as data: wiring, methods and facts with their meanings, read from its protocols' docstrings.

A docstring describes words in sections:

    Wiring:
    d_model          D, width of the residual stream

A title stands alone on its line (`Facts: True if the part ...` also begins one), and what continues a meaning is
indented.  All other lines are prose.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ablatio.registry import rules, signatures
from ablatio.registry.registry import Registry

TITLE = re.compile(r"^((?:Wiring|Methods|Facts|Attributes|Optional|Usual knob|A policy method)\b[^:]*):(.*)$")
WORD = re.compile(r"^(\S.*?)(?:  +| (?=optional: ))(\S.*)$")
ATTACHED: Mapping[str, str] = {
    "d_model": "D, width of the residual stream",
    "n_layers": "number of layers of the stack",
    "layer": "number of the layer, from 0; None outside the layers",
    "sublayer": 'attention | cross | mlp, or "" outside the sublayers',
    "side": "encoder | decoder: the stack",
    "max_len": "largest number of tokens in training",
}


@dataclass(slots=True)
class Described:
    """A docstring in parts: its prose, and {title: {word: meaning}}."""

    prose: list[str] = field(default_factory=list)
    sections: dict[str, dict[str, str]] = field(default_factory=dict)

    def meaning(self, word: str) -> str:
        """Return the meaning of a word from any section of the docstring; a method is looked up by its name."""
        for words in self.sections.values():
            for written, meaning in words.items():
                if word in [part.split("(")[0].strip() for part in re.split(r", (?![^(]*\))", written)]:
                    return meaning.removeprefix("optional: ")
        return ""


def described(registry: Registry[Any]) -> Described:
    """The docstrings of a kind's protocols in parts."""
    found = Described()
    for number, protocol in enumerate(registry.contract):
        doc = inspect.getdoc(protocol) or ""
        # The first protocol is the kind itself; others count if they describe something.
        if number == 0 or any(map(TITLE.match, doc.splitlines())):
            _read(f"{doc}\n", found)
    return found


def _read(doc: str, found: Described) -> None:
    section: dict[str, str] | None = None
    word = ""
    for line in doc.splitlines():
        if TITLE.match(line):
            section = found.sections.setdefault(line.rstrip(":"), {})
        elif section is None or not line.strip():
            section, word = (None, "") if not line.strip() else (section, word)
            found.prose.append(line)
        elif line[0] == " ":
            section[word] = f"{section.get(word, '')} {line.strip()}".strip()
        elif split := WORD.match(line):
            word = split[1]
            section[word] = split[2]
        else:
            word = line
            section[word] = ""


def wiring(registry: Registry[Any]) -> dict[str, str]:
    """{word that a part may take left of `*`: its meaning}."""
    about = described(registry)
    known = ATTACHED if registry.attaches else {}
    return {word: about.meaning(word) or known.get(word, "") for word in registry.wiring}


def facts(registry: Registry[Any]) -> dict[str, tuple[Any, str]]:
    """{fact: (its default, its meaning)}."""
    about = described(registry)
    return {name: (default, about.meaning(name)) for name, default in registry.facts.items()}


def methods(registry: Registry[Any]) -> dict[str, tuple[str, str, str]]:
    """{method: (its signature with types, required | one of | optional, its meaning)}."""
    about, found = described(registry), dict[str, tuple[str, str, str]]()
    for protocol in registry.contract:
        for name, method in signatures.methods_of([protocol]).items():
            raw = vars(protocol)[name]
            plain: Any = raw.fget if isinstance(raw, property) else getattr(raw, "__func__", raw)
            typed = str(inspect.signature(plain)).replace("'", "").replace("(self, ", "(").replace("(self)", "()")
            text = f"{name}: {typed.split(' -> ')[-1]}" if method.attribute else f"{name}{short(typed)}"
            if "*args" not in text:  # a protocol that leaves it open; the docstring says more
                found[name] = (text, "attribute" if method.attribute else need(registry, name), about.meaning(name))
    if registry.attaches:
        where = "the embeddings" if registry.attaches == "embedding" else f"the output of each {registry.attaches}"
        where = "the stack's final output" if registry.attaches == "hidden" else where
        found["forward"] = ("forward(x: Tensor) -> Tensor", "required", f"(..., D) -> (..., D), called on {where}")
    for name in [m for m in registry.methods if m not in found and not registry.base]:
        said = {word: meaning for words in about.sections.values() for word, meaning in words.items()}
        for word in [w for w in said if w.split("(")[0] == name] or [f"{name}(...)"]:
            found[word] = (word, "required", said.get(word, ""))
    order = ("attribute", "required", "one or more of these", "optional")
    return dict(sorted(found.items(), key=lambda item: order.index(item[1][1])))


def need(registry: Registry[Any], name: str) -> str:
    """Return "required" or "optional" for a method; the docstring marks methods of `any_of` as optional."""
    if name in registry.methods:
        return "required"
    optional = {
        word.split("(")[0]
        for title, words in described(registry).sections.items()
        for word, said in words.items()
        if title.startswith("Optional") or said.startswith("optional")
    }
    return "one or more of these" if name in registry.any_of and name not in optional else "optional"


def short(signature: str) -> str:
    """A signature with unqualified type names."""
    return re.sub(r"\b(?:(?!torch\.|nn\.)\w+\.)+(?=\w)", "", signature)


def rules_about(registry: Registry[Any]) -> list[rules.Rule]:
    """Rules that read a fact of the kind: what a part agrees to by its facts."""
    return [r for r in rules.RULES if f"facts.{registry.kind}." in f"{r.when} {r.unless}"]
