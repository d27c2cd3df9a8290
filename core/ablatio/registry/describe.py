"""Describe a part from its class or function, and collect everything in which it differs from its kind's contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ablatio.errors import did_you_mean
from ablatio.registry import packages, renamed, signatures
from ablatio.registry.kind_contract import KindContract
from ablatio.registry.knobs import Knob, SignatureError, read_signature
from ablatio.registry.part_spec import ContractError, PartSpec, current_distribution, told_together
from ablatio.registry.source_digest import source_digest

Target = Callable[..., Any]


def place_of(kind: str, name: str, target: Target) -> str:
    """How messages name a part and its code: `norm=mine (my_norms.Mine)`."""
    return f"{kind}={name} ({target.__module__}.{target.__qualname__})"


def describe(
    registry: KindContract, name: str, target: Target, paper: str, said: Mapping[str, Any], digest: str
) -> PartSpec:
    """The description of a part.

    Args:
        registry: its kind.
        name: its option.
        target: its class or function.
        paper: source of the idea.
        said: facts of a function; a class states them as class attributes.
        digest: of its source; "": computed here.

    Raises:
        ContractError: one text with all faults of the part.
    """
    where = place_of(registry.kind, name, target)
    # All faults are collected: an author who mends one at a time imports torch each time.
    faults = list(_facts_with_old_or_unknown_names(registry, target, said))
    try:
        wiring, knobs = read_signature(target, where)
    except SignatureError as error:
        faults += error.faults
        wiring, knobs = error.wiring, ()
    facts: dict[str, Any] = {}
    for key, default in registry.facts.items():
        try:
            facts[key] = plain_value(said.get(key, getattr(target, key, default)), key)
        except ContractError as error:
            faults.append(str(error))
    try:
        if needed := packages.declared(said.get(packages.FACT, getattr(target, packages.FACT, ()))):
            facts[packages.FACT] = needed
    except ContractError as error:
        faults.append(str(error))
    faults += _contract_faults(registry, target, wiring, knobs, facts)
    if faults:
        raise ContractError(told_together(where, faults))
    return PartSpec(
        kind=registry.kind,
        name=name,
        module=target.__module__,
        qualname=target.__qualname__,
        distribution=current_distribution(),
        wiring=wiring,
        knobs=knobs,
        facts=facts,
        doc=inspect.getdoc(target) or "",
        paper=paper,
        digest=digest or source_digest(target.__module__, target.__qualname__),
    )


def _facts_with_old_or_unknown_names(registry: KindContract, target: Target, said: Mapping[str, Any]) -> Iterator[str]:
    old_names = renamed.FACTS.get(registry.kind, {})
    for old, new in old_names.items():
        if old in said or (inspect.isclass(target) and old in vars(target)):
            yield f"the fact `{old}` is now called `{new}`; rename it"
    for unknown in sorted(said.keys() - registry.facts - old_names.keys() - {packages.FACT}):
        known = ", ".join(registry.facts) or "none"
        yield f"`{unknown}` is not a fact of the kind {registry.kind}; it has {known}"


def _contract_faults(
    registry: KindContract, target: Target, wiring: tuple[str, ...], knobs: tuple[Knob, ...], facts: dict[str, Any]
) -> list[str]:
    """Faults of wiring, methods and names of knobs; adds the facts that follow from the signature."""
    faults: list[str] = []
    if registry.calls and not inspect.isclass(target):
        if wiring in registry.calls:
            facts.update(registry.calls[wiring])
        else:
            name = target.__name__
            forms = " or ".join(f"{name}({', '.join(form)})" for form in registry.calls)
            kind = f"{signatures.article(registry.kind)} {registry.kind}"
            faults.append(f"{signatures.called(target, wiring)} was found, {kind} function {forms} was expected")
    else:
        faults += _wiring_faults(registry, wiring)
        if inspect.isclass(target):
            faults += _method_faults(registry, target, facts)
    if registry.any_of:
        facts["uses"] = [m for m in registry.any_of if callable(getattr(target, m, None))]
        faults += _unused_faults(registry, target, facts["uses"])
    if registry.asks:
        facts["asks"] = {}
        for method in (m for m in registry.asks if hasattr(target, m)):
            asked = [name for name in inspect.signature(getattr(target, method)).parameters if name != "self"]
            facts["asks"][method] = asked
            faults += _asked_faults(registry, method, asked)
    for name in sorted({k.name for k in knobs} & {"name", *registry.wiring}):
        passed = ", ".join(["name", *registry.wiring])
        faults.append(
            f"the knob `{name}` has a name that is reserved: the framework itself passes {passed} to a "
            f"{registry.kind}. Rename it"
        )
    return faults


def _unused_faults(registry: KindContract, target: Target, uses: Sequence[str]) -> Iterator[str]:
    """A class that has methods of which none is ever called, as after a slip in a name; `none` needs no method."""
    own = [n for n, value in vars(target).items() if inspect.isfunction(value) and not n.startswith("_")]
    if uses or registry.methods or not inspect.isclass(target) or not own:
        return
    near = next((hint for name in own if (hint := did_you_mean(name, registry.any_of))), "")
    yield (
        f"has the method{'s' * (len(own) > 1)} {', '.join(f'`{n}`' for n in own)}, and a {registry.kind} is called by "
        f"one or more of {', '.join(registry.any_of)}{near}"
    )


def _wiring_faults(registry: KindContract, wiring: tuple[str, ...]) -> Iterator[str]:
    for word in (w for w in wiring if w not in registry.wiring):
        if new := renamed.WIRING.get(registry.kind, {}).get(word):
            yield f"the parameter `{word}` is now called `{new}`; rename it"
        else:
            passed = ", ".join(registry.wiring) or "nothing"
            kind = f"{signatures.article(registry.kind)} {registry.kind}"
            yield (
                f"has the parameter `{word}`, which the framework does not pass to {kind}; it passes {passed}. "
                "Knobs go to the right of a bare `*`"
            )


def _method_faults(registry: KindContract, target: type, facts: Mapping[str, Any]) -> Iterator[str]:
    """Methods that are missing, then those with another signature than the contract's."""
    for name in registry.methods:
        member = getattr(target, name, None)
        inherited = signatures.defined(target, name)
        if inherited is None or not callable(member) or getattr(member, "__isabstractmethod__", False):
            base = f"; inherit from {registry.base}, which has the optional ones" if registry.base else ""
            yield f"{signatures.article(registry.kind)} {registry.kind} needs the method `{name}`{base}"
    expected = signatures.methods_of(registry.contract)
    if registry.attaches:
        expected |= {"forward": signatures.Method("forward", (signatures.positional("x"),))}
    for form, implied in registry.calls.items():
        # A class says which form it has by its facts; the method that is called is the first of `methods`.
        if all(facts.get(k) == v for k, v in implied.items()):
            expected |= _form_of(registry, form)
    if base_class := next((c for c in target.__mro__ if f"{c.__module__}.{c.__qualname__}" == registry.base), None):
        own = {name for name in registry.methods if name in vars(base_class)}
        expected |= {name: m for name, m in signatures.methods_of([base_class]).items() if name in own}
    yield from signatures.faults(target, registry.kind, expected)


def _form_of(registry: KindContract, form: tuple[str, ...]) -> dict[str, signatures.Method]:
    """The method that a class of a kind with functions defines, if it is called as a function would be."""
    name = registry.methods[0] if registry.methods else signatures.CALL
    declared = signatures.methods_of(registry.contract).get(name)
    if declared and [p.name for p in declared.parameters][: len(form)] != [*form]:
        return {}  # a class of this kind is called in another way than a function, as a reward on all answers
    return {name: signatures.Method(name, tuple(map(signatures.positional, form)))}


def _asked_faults(registry: KindContract, method: str, asked: list[str]) -> Iterator[str]:
    """Parameters of a method that are not among the names available to it."""
    words = registry.asks[method]
    for name in (n for n in asked if n not in words):
        near = did_you_mean(name, words) or f"; available: {', '.join(words)}"
        yield f"`{method}` has the parameter `{name}`, which no {registry.kind} receives{near}"


def plain_value(value: Any, key: str) -> Any:
    """The value of a fact as plain data; ContractError if it is none."""
    if isinstance(value, tuple | list | set | frozenset):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    if not isinstance(value, bool | int | float | str | None):
        raise ContractError(f"the fact `{key}` must be a plain value set on the class; got {value!r}")
    return value
