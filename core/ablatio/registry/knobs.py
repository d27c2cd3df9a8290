"""Knobs: the settings of a part, read from its signature once and checked everywhere.

A knob is a keyword-only parameter with a type and a default.  Types: bool, int, float, str, Literal, `X | None`,
list[X], tuple[X, ...], tuple[X, Y].  `Annotated[float, Range(0, 1), "what it means"]` adds a range and a help text.
"""

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from ablatio.errors import did_you_mean

Scalar = bool | int | float | str | None
SCALARS = {bool: "bool", int: "int", float: "float", str: "str"}
REQUIRED = "???"


class SignatureError(TypeError):
    """A part's signature does not say what the registry needs to know."""


@dataclass(frozen=True, slots=True)
class Range:
    """low <= x <= high; `open_low` and `open_high` leave the end itself out."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, x: float) -> bool:
        above = x > self.low if self.open_low else x >= self.low
        return above and (x < self.high if self.open_high else x <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"> {self.low:g}" if self.open_low else f">= {self.low:g}"
        if self.low == -math.inf:
            return f"< {self.high:g}" if self.open_high else f"<= {self.high:g}"
        return f"{'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"


Positive = Range(0, open_low=True)
NonNegative = Range(0)
Fraction = Range(0, 1)


NO_OWN_INIT = ("torch.nn.modules.module", "Module.__init__")  # of a module that defines none; torch stays unimported


@dataclass(frozen=True, slots=True)
class OptionOf:
    """The value names an option of another kind: `Annotated[str, OptionOf("norm")]`.

    also   words that are allowed beside the names
    forms  how a name may be written: ("{}", "whole_{}") allows rmsnorm and whole_rmsnorm
    """

    kind: str
    also: tuple[str, ...] = ()
    forms: tuple[str, ...] = ("{}",)


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting.  `length` is None for a scalar, -1 for a list of any length, n for a tuple of n."""

    name: str
    type: str
    default: Any
    optional: bool = False
    length: int | None = None
    choices: tuple[Scalar, ...] = ()
    range: Range | None = None
    option_of: str = ""
    help: str = ""
    also: tuple[str, ...] = ()
    forms: tuple[str, ...] = ("{}",)

    @property
    def type_text(self) -> str:
        """The type as people write it: `float`, `none | tanh`, `list of int`, `float or null`."""
        words = self.choices or (self.named([self.option_of]) if self.also else ())
        text = " | ".join(map(str, words)) or self.type
        if self.length is not None:
            text = f"list of {text}" if self.length < 0 else f"{self.length} x {text}"
        return f"{text} or null" if self.optional else text

    def named(self, options: Iterable[str]) -> list[str]:
        """The values that a knob which names an option of another kind may have, from the names of those options."""
        return [*self.also, *(form.format(name) for form in self.forms for name in options)]

    def problem(self, value: Any) -> str:
        """Why `value` cannot be this knob's, or an empty string."""
        if value is None:
            return "" if self.optional else f"null came, {self.type_text} was expected"
        if self.length is None:
            return self._scalar_problem(value)
        if not isinstance(value, list | tuple):
            return f"{value!r} came, {self.type_text} was expected, such as [{value}]"
        if self.length >= 0 and len(value) != self.length:
            return f"{len(value)} values came, {self.length} were expected"
        return next((p for p in map(self._scalar_problem, value) if p), "")

    def _scalar_problem(self, value: Any) -> str:
        if self.choices:
            if any(self._same(value, c) for c in self.choices):
                return ""
            return f"{value!r} came, one of {', '.join(map(str, self.choices))} was expected" + did_you_mean(
                str(value), map(str, self.choices)
            )
        if value == REQUIRED:
            return f"a value is missing, {self.type_text} was expected"
        if not self._has_type(value):
            return f"{value!r} came ({type(value).__name__}), {self.type_text} was expected"
        if self.type in ("int", "float") and not math.isfinite(value):
            return f"{value} came, a finite number was expected"
        if self.range is not None and value not in self.range:
            return f"{value} came, a value {'in ' if str(self.range)[0] in '([' else ''}{self.range} was expected"
        return ""

    def _has_type(self, value: Any) -> bool:
        if self.type == "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        if self.type == "int":
            return isinstance(value, int) and not isinstance(value, bool)
        return isinstance(value, bool if self.type == "bool" else str)

    def cast(self, value: Any) -> Any:
        """A checked value as Python wants it: an int for a float knob becomes a float, a list a tuple."""
        if value is None:
            return None
        if self.length is not None:
            return tuple(self._cast(v) for v in value)
        return self._cast(value)

    def _cast(self, value: Any) -> Any:
        if self.choices:
            return next(c for c in self.choices if self._same(value, c))
        return float(value) if self.type == "float" else value

    @staticmethod
    def _same(value: Any, choice: Scalar) -> bool:
        """Equal, and no bool for a number; the choice "32" may come as the number 32, as YAML reads it."""
        if isinstance(choice, str):
            return not isinstance(value, bool) and str(value) == choice
        return type(value) is type(choice) and bool(value == choice)

    def to_json(self) -> dict[str, Any]:
        data = {k: v for k, v in asdict(self).items() if k not in ("range",)}
        if self.range:
            r = self.range
            data["range"] = [None if math.isinf(r.low) else r.low, None if math.isinf(r.high) else r.high]
            data["range_open"] = [r.open_low, r.open_high]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Knob":
        rest = {k: v for k, v in data.items() if k not in ("range", "range_open", "choices", "default")}
        rest |= {k: tuple(rest[k]) for k in ("also", "forms")}
        bounds = None
        if "range" in data:
            low, high = data["range"]
            bounds = Range(-math.inf if low is None else low, math.inf if high is None else high, *data["range_open"])
        default = data["default"]
        if isinstance(default, list):
            default = tuple(default)
        return cls(default=default, range=bounds, choices=tuple(data["choices"]), **rest)


def knob_from(name: str, annotation: Any, default: Any, where: str) -> Knob:
    """The knob that one annotated parameter means; SignatureError when it does not say enough."""
    if annotation is inspect.Parameter.empty:
        raise SignatureError(f"{where}: the knob `{name}` has no type; write `{name}: float = ...`")
    if default is inspect.Parameter.empty:
        raise SignatureError(f"{where}: the knob `{name}` has no default; give it the paper's value")
    bounds, option, help_ = None, OptionOf(""), ""
    if get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        for extra in extras:
            if isinstance(extra, Range):
                bounds = extra
            elif isinstance(extra, OptionOf):
                option = extra
            elif isinstance(extra, str):
                help_ = extra
    annotation, optional = _split_optional(annotation)
    annotation, length = _split_length(annotation)
    choices: tuple[Scalar, ...] = ()
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        annotation = type(choices[0])
    if annotation not in SCALARS:
        raise SignatureError(
            f"{where}: the knob `{name}` has the type {annotation!r}; a config can hold bool, int, float, str, "
            "Literal, lists of them, or null"
        )
    said = (option.kind, help_, option.also, option.forms)
    knob = Knob(name, SCALARS[annotation], default, optional or default is None, length, choices, bounds, *said)
    if problem := knob.problem(default):
        raise SignatureError(f"{where}: the default of `{name}` does not fit its own type: {problem}")
    return knob


def _split_optional(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation, False
    rest = [a for a in get_args(annotation) if a is not type(None)]
    return (rest[0], True) if len(rest) == 1 else (annotation, False)


def _split_length(annotation: Any) -> tuple[Any, int | None]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is list:
        return args[0], -1
    if origin is tuple:
        return args[0], -1 if args[-1] is Ellipsis else len(args)
    return annotation, None


def read_signature(target: Callable[..., Any], where: str) -> tuple[tuple[str, ...], tuple[Knob, ...]]:
    """(wiring, knobs): the parameters left and right of the bare `*`.

    `**wiring: Unpack[SomeWiring]` asks for all that the TypedDict SomeWiring names, to hand it on to a base class.
    """
    function = target.__init__ if inspect.isclass(target) else target
    if function is object.__init__ or (function.__module__, function.__qualname__) == NO_OWN_INIT:
        return (), ()
    hints = typing.get_type_hints(function, include_extras=True)
    wiring, knobs = [], []
    for p in list(inspect.signature(function).parameters.values())[1 if inspect.isclass(target) else 0 :]:
        if p.kind is p.VAR_KEYWORD and typing.get_origin(hints.get(p.name)) is typing.Unpack:
            wiring.extend(typing.get_args(hints[p.name])[0].__annotations__)
        elif p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise SignatureError(f"{where}: `{p}` hides the knobs; name each one, with a type and a default")
        elif p.kind is p.KEYWORD_ONLY:
            knobs.append(knob_from(p.name, hints.get(p.name, p.empty), p.default, where))
        else:
            wiring.append(p.name)
    return tuple(wiring), tuple(knobs)
