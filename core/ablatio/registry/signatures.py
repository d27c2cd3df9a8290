"""Signatures of the methods that a kind's contract lists, and one sentence for each method that differs.

The contract of a kind is a Protocol, or several: `Registry(..., contract=(Norm, NormMethods))`.  The framework passes
arguments without a default by position and the others by name, so a method of a part may call the first what it likes.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
# Modules whose classes have methods of the same names: nn.Module.apply is not the `apply` of a peft method.
BASES = ("torch.nn.modules.module", "typing", "builtins")
CALL = "__call__"


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a contract: its parameters without `self`; `attribute`: it is read, not called."""

    name: str
    parameters: tuple[Parameter, ...] = ()
    attribute: bool = False
    doc: str = ""

    def __str__(self) -> str:
        return self.name if self.attribute else f"{self.name}({', '.join(map(written, self.parameters))})"

    @property
    def positional(self) -> list[Parameter]:
        """Parameters that the framework passes by position."""
        return [p for p in self.parameters if p.default is p.empty and p.kind in POSITIONAL]

    @property
    def named(self) -> list[str]:
        """Parameters that the framework passes by name, or not at all."""
        return [p.name for p in self.parameters if p.default is not p.empty]


def positional(name: str) -> Parameter:
    """A parameter that is passed by position."""
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD)


def written(parameter: Parameter) -> str:
    """A parameter without its type: `x`, `length=None`, `*args`."""
    return str(parameter.replace(annotation=Parameter.empty)).replace(" ", "")


def methods_of(contract: Iterable[type]) -> dict[str, Method]:
    """Methods and properties that the protocols define themselves, by name."""
    found: dict[str, Method] = {}
    for protocol in contract:
        for name, value in vars(protocol).items():
            if name.startswith("_") and name != CALL:
                continue
            if isinstance(value, property):
                found[name] = Method(name, attribute=True)
            elif inspect.isfunction(value) or isinstance(value, staticmethod | classmethod):
                found[name] = Method(name, _parameters(protocol, name) or ())
    return found


def faults(target: type, kind: str, expected: Mapping[str, Method]) -> list[str]:
    """A sentence for each method of a class that differs from the expected signature; missing ones are no matter."""
    return [said for method in expected.values() if (said := _fault(target, kind, method))]


def _fault(target: type, kind: str, method: Method) -> str:
    found = defined(target, method.name)
    if found is None:
        return ""
    name, value = found
    wanted = f"{article(kind)} {kind}'s {method} was expected"
    if method.attribute:
        return f"the method {name}() was found, {wanted} as a property or an attribute" if _is_method(value) else ""
    if not (_is_method(value) or callable(value)):
        return f"the {'property' if isinstance(value, property) else 'attribute'} `{name}` was found, {wanted}"
    parameters = _parameters(target, name)
    if parameters is None or _takes(parameters, method):
        return ""
    return f"{name}({', '.join(map(written, parameters))}) was found, {wanted.replace(CALL, name)}"


def defined(target: type, name: str) -> tuple[str, Any] | None:
    """(name, value) of a member that a class or a base of the author's defines; a module's call is its `forward`."""
    for owner in target.__mro__:
        if name not in vars(owner):
            continue
        if owner.__module__ == BASES[0]:
            return defined(target, "forward") if name == CALL else None
        protocol = getattr(owner, "_is_protocol", False)
        return None if protocol or owner.__module__ in BASES else (name, vars(owner)[name])
    return None


def _is_method(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, staticmethod | classmethod)


def _parameters(owner: type, name: str) -> tuple[Parameter, ...] | None:
    """Parameters of a method without `self` or `cls`; None if Python does not know them."""
    raw = inspect.getattr_static(owner, name)
    try:
        parameters = tuple(inspect.signature(getattr(owner, name)).parameters.values())
    except (TypeError, ValueError):
        return None
    return parameters[1:] if inspect.isfunction(raw) else parameters


def _takes(found: tuple[Parameter, ...], method: Method) -> bool:
    """True if a method with these parameters can be called as the contract says."""
    if any(p.kind is p.VAR_POSITIONAL for p in method.parameters):
        return True  # the contract leaves it open
    places = [p for p in found if p.kind in POSITIONAL]
    count, any_place = len(method.positional), any(p.kind is p.VAR_POSITIONAL for p in found)
    if len(places) < count and not any_place:
        return False
    # What the framework does not pass by position has to have a default, or the call fails.
    left_out = [*places[count:], *(p for p in found if p.kind is p.KEYWORD_ONLY)]
    if any(p.default is p.empty for p in left_out):
        return False
    names = {p.name for p in left_out if p.kind is not p.POSITIONAL_ONLY}
    any_name = any(p.kind is p.VAR_KEYWORD for p in found)
    return any_name or names >= set(method.named)


def article(word: str) -> str:
    """`an` before a word that is spoken with a vowel first: optimizer, and mlp, which is spelled out."""
    spelled = not set("aeiouy") & set(word)
    return "an" if word[:1] in ("aefhilmnorsx" if spelled else "aeiou") else "a"


def called(target: Callable[..., Any], parameters: Iterable[str]) -> str:
    """A function as it was found: `swish(y)`."""
    return f"{getattr(target, '__name__', 'it')}({', '.join(parameters)})"
