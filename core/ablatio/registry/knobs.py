"""Knobs: the settings of a part, read from its signature once and checked wherever they are set.

A knob is a keyword-only parameter with a type and a default.  Types: bool, int, float, str, Literal, `X | None`,
list[X], tuple[X, ...], tuple[X, Y].  `Annotated[float, Range(0, 1), "meaning"]` adds a range and a help text.
"""

import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_origin

from ablatio.errors import did_you_mean
from ablatio.registry.value_schedules import ValueSchedule, is_value_schedule

Scalar = bool | int | float | str | None
SCALARS = {bool: "bool", int: "int", float: "float", str: "str"}
# OmegaConf's mark of a value that is still to be set.
REQUIRED = "???"
CONSTANT = "this setting cannot change during training"


class SignatureError(TypeError):
    """A part's signature lacks information that the registry needs, or has a parameter that it does not support.

    faults: a sentence for each of its faults; wiring: the parameters left of its `*`
    """

    def __init__(self, *faults: str, wiring: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join(faults))
        self.faults, self.wiring = faults, wiring


@dataclass(frozen=True, slots=True)
class Range:
    """The range low <= x <= high; `open_low` and `open_high` exclude the ends."""

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
        return f"{'(' if self.open_low else '['}{self.low:g}, {_bound(self.high)}{')' if self.open_high else ']'}"


def _bound(x: float) -> str:
    """`2^26` for a large power of two, else as usual."""
    exponent = math.log2(x) if x >= 2**16 else 0.5
    return f"2^{exponent:.0f}" if exponent.is_integer() else f"{x:g}"


LARGEST: dict[str, float] = {"int": 2**63 - 1, "float": sys.float_info.max}  # numbers that torch and numpy can hold
Size = Range(0, 2**26, open_low=True)  # of a dimension or a count that memory limits
Processes = Range(0, 4096, open_low=True)
Positive = Range(0, open_low=True)
NonNegative = Range(0)
Fraction = Range(0, 1)


# The inherited __init__ of a class that defines none: recognized by name, so that torch is not imported.
MODULE, PROTOCOL = "torch.nn.modules.module.Module", ("typing", "_no_init_or_replace_init")


@dataclass(frozen=True, slots=True)
class OptionOf:
    """Annotation of a knob whose value names an option of another kind: `Annotated[str, OptionOf("norm")]`.

    also: values that are allowed besides these names
    forms: how a name may be written: ("{}", "whole_{}") allows rmsnorm and whole_rmsnorm
    """

    kind: str
    also: tuple[str, ...] = ()
    forms: tuple[str, ...] = ("{}",)


@dataclass(frozen=True, slots=True)
class Schedulable:
    """Annotation of a knob that may change during training: `Annotated[float, Fraction, Schedulable()]`.

    The value is then given as a constant, or as `linear(0,0.1)` and the like (registry/value_schedules.py).  The part
    is built with the largest value and has an attribute of the knob's name; setting it takes effect in the next pass
    and leaves the part's `state_dict` unchanged.  For an optimizer, the name is a key of its parameter groups.

    flops: True if the FLOPs of a token depend on the value
    """

    flops: bool = False


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting of a part.

    length: None for a scalar, -1 for a list of any length, n for a tuple of n values
    option_of, also, forms: see OptionOf
    schedulable, flops: see Schedulable
    """

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
    schedulable: bool = False
    flops: bool = False

    @property
    def type_text(self) -> str:
        """Readable type: `float`, `none | tanh`, `list of int`, `float or null`."""
        words = self.choices or (self.named([self.option_of]) if self.also else ())
        text = " | ".join(map(str, words)) or self.type
        if self.length is not None:
            text = f"list of {text}" if self.length < 0 else f"{self.length} x {text}"
        return f"{text} or null" if self.optional else text

    @property
    def note(self) -> str:
        """The help text, and whether the value may be a schedule."""
        return "; ".join(text for text in (self.help, "schedulable" if self.schedulable else "") if text)

    def named(self, options: Iterable[str]) -> list[str]:
        """Allowed values of a knob that names an option of another kind, given the names of these options."""
        return [*self.also, *(form.format(name) for form in self.forms for name in options)]

    def problem(self, value: Any) -> str:
        """Why `value` is not allowed for this knob, or "" if it is; a schedule is checked at each of its values."""
        if self.reads_as_schedule(value):
            return self._schedule_problem(value)
        if value is None:
            return "" if self.optional else f"expected {self.type_text}, got null"
        if self.length is None:
            return self._scalar_problem(value)
        if not isinstance(value, list | tuple):
            example = "" if isinstance(value, dict) else f" such as [{value}],"
            return f"expected {self.type_text},{example} got {value!r}"
        if self.length >= 0 and len(value) != self.length:
            return f"expected {self.length} values, got {len(value)}"
        return next((p for p in map(self._scalar_problem, value) if p), "")

    def reads_as_schedule(self, value: Any) -> bool:
        """True if `value` is a schedule here: not for a knob whose values are free texts."""
        free_text = self.type == "str" and not self.choices and not self.option_of
        return is_value_schedule(value) and (self.schedulable or not free_text)

    def _schedule_problem(self, text: str) -> str:
        if not self.schedulable:
            return f"got {text}, and {CONSTANT}"
        try:
            values = ValueSchedule(text).values
        except ValueError as error:
            return str(error)
        found = next(((v, p) for v in values if (p := self.problem(v))), None)
        return f"{text} has the value {found[0]}: {found[1]}" if found else ""

    def _scalar_problem(self, value: Any) -> str:
        if self.choices:
            if any(self._same(value, c) for c in self.choices):
                return ""
            expected = ", ".join(map(str, self.choices))
            return f"expected one of {expected}, got {value!r}" + did_you_mean(str(value), map(str, self.choices))
        if value == REQUIRED:
            return f"expected {self.type_text}, but no value is set"
        if not self._has_type(value):
            return f"expected {self.type_text}, got {repr(value)[:200]} ({type(value).__name__})"
        largest = LARGEST.get(self.type)
        if largest and not -largest <= value <= largest:  # NaN, too, is not between them
            finite = "finite number" if isinstance(value, float) else f"number up to {largest}"
            return f"expected a {finite}, got {str(value)[:40]}"
        if self.range is not None and value not in self.range:
            return f"expected a value {'in ' if str(self.range)[0] in '([' else ''}{self.range}, got {value}"
        return ""

    def _has_type(self, value: Any) -> bool:
        if self.type == "float":
            # In Python True is an int; `affine=true` for a number is a mistake.
            return isinstance(value, int | float) and not isinstance(value, bool)
        if self.type == "int":
            return isinstance(value, int) and not isinstance(value, bool)
        return isinstance(value, bool if self.type == "bool" else str)

    def cast(self, value: Any) -> Any:
        """A checked value in the knob's Python type: an int becomes a float for a float knob, a list a tuple."""
        if value is None:
            return None
        if self.reads_as_schedule(value):
            return ValueSchedule(value, whole=self.type == "int")
        if self.length is not None:
            return tuple(self._cast(v) for v in value)
        return self._cast(value)

    def _cast(self, value: Any) -> Any:
        if self.choices:
            return next(c for c in self.choices if self._same(value, c))
        return float(value) if self.type == "float" else value

    @staticmethod
    def _same(value: Any, choice: Scalar) -> bool:
        """True if equal and of one type; the choice "32" also accepts the number 32, which is how YAML reads it."""
        if isinstance(choice, str):
            return not isinstance(value, bool) and str(value) == choice
        return type(value) is type(choice) and bool(value == choice)

    @property
    def default_text(self) -> str:
        """The default value, as on the command line."""
        text = "null" if self.default is None else str(self.default)
        return text.replace(" ", "").replace("(", "[").replace(")", "]")

    def to_json(self) -> dict[str, Any]:
        """Plain data for the catalogue; an infinite bound becomes null."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "range"}
        if self.range:
            r = self.range
            # JSON has no infinity.
            data["range"] = [None if math.isinf(r.low) else r.low, None if math.isinf(r.high) else r.high]
            data["range_open"] = [r.open_low, r.open_high]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Knob":
        """The knob described by an entry of the catalogue."""
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
    """Knob for one annotated parameter; raises SignatureError if type or default are missing or not supported."""
    if annotation is inspect.Parameter.empty:
        raise SignatureError(f"{where}: the knob `{name}` has no type; write `{name}: float = ...`")
    if default is inspect.Parameter.empty:
        raise SignatureError(f"{where}: the knob `{name}` has no default; use the paper's value as its default")
    bounds, option, help_, changes = None, OptionOf(""), "", None
    if get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        for extra in extras:
            if isinstance(extra, Range):
                bounds = extra
            elif isinstance(extra, OptionOf):
                option = extra
            elif isinstance(extra, Schedulable):
                changes = extra
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
            f"{where}: the knob `{name}` has the type {annotation!r}; supported types are bool, int, float, str, "
            "Literal, lists of them, or null"
        )
    said = (option.kind, help_, option.also, option.forms, changes is not None, bool(changes and changes.flops))
    # `x: float = None` counts as `float | None`, as type checkers once read it.
    knob = Knob(name, SCALARS[annotation], default, optional or default is None, length, choices, bounds, *said)
    if problem := knob.problem(default):
        raise SignatureError(f"{where}: the default of the knob `{name}` does not match its type: {problem}")
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
    """(wiring, knobs): names of the parameters left of the bare `*`, and the knobs right of it.

    `**wiring: Unpack[SomeWiring]` requests everything named in the TypedDict SomeWiring, to pass it to a base class.
    """
    function = target.__init__ if inspect.isclass(target) else target
    if inspect.isclass(target) and _has_no_own_init(target):
        return (), ()
    try:
        # Resolved here, since `from __future__ import annotations` leaves annotations as text.
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise SignatureError(f"{where}: an annotation names `{error.name}`, which its module does not define") from None
    wiring, knobs, faults = [], [], list[str]()
    for p in list(inspect.signature(function).parameters.values())[1 if inspect.isclass(target) else 0 :]:
        if p.kind is p.VAR_KEYWORD and typing.get_origin(hints.get(p.name)) is typing.Unpack:
            wiring.extend(typing.get_args(hints[p.name])[0].__annotations__)
        elif p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            faults.append(f"{where}: `{p}` hides the knobs; write each one out, with a type and a default")
        elif p.kind is p.KEYWORD_ONLY:
            try:
                knobs.append(knob_from(p.name, hints.get(p.name, p.empty), p.default, where))
            except SignatureError as error:
                faults += error.faults
        else:
            wiring.append(p.name)
    if faults:
        raise SignatureError(*faults, wiring=tuple(wiring))
    return tuple(wiring), tuple(knobs)


def _has_no_own_init(target: type) -> bool:
    """True if a class inherits the __init__ of object or another type written in C, of nn.Module or of Protocol.

    nn.Module is known by its name, not by its function, which other libraries replace.
    """
    owner = next(c for c in target.__mro__ if "__init__" in vars(c))
    function: Any = vars(owner)["__init__"]
    said = (getattr(function, "__module__", ""), getattr(function, "__qualname__", ""))
    return (
        inspect.ismethoddescriptor(function) or f"{owner.__module__}.{owner.__qualname__}" == MODULE or said == PROTOCOL
    )
