"""Registries: parts by name.  One decorator makes the option, its checks, its help and its catalogue entry."""

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from ablatio.errors import (
    UserError,
    did_you_mean,
)
from ablatio.registry import renamed
from ablatio.registry.knobs import (
    Knob,
    read_signature,
)
from ablatio.registry.source_digest import source_digest

T = TypeVar("T")
Target = TypeVar("Target", bound=Callable[..., Any])
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")


class ContractError(TypeError):
    """A part does not keep the contract of its kind, or takes a name that is taken."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """The distribution that a part comes from."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


SESSION = Distribution("this session", "")
_distribution: ContextVar[Distribution] = ContextVar("distribution", default=SESSION)


@contextmanager
def provided_by(distribution: Distribution) -> Iterator[None]:
    """Everything registered inside belongs to `distribution`."""
    token = _distribution.set(distribution)
    try:
        yield
    finally:
        _distribution.reset(token)


def current_distribution() -> Distribution:
    return _distribution.get()


@dataclass(frozen=True, slots=True)
class PartSpec:
    """All that is known of a part without importing it."""

    kind: str
    name: str
    module: str
    qualname: str
    distribution: Distribution
    wiring: tuple[str, ...]
    knobs: tuple[Knob, ...]
    facts: Mapping[str, Any]
    doc: str = ""
    paper: str = ""
    digest: str = ""

    @property
    def summary(self) -> str:
        return self.doc.strip().split("\n")[0].strip()

    @property
    def defaults(self) -> dict[str, Any]:
        return {k.name: list(k.default) if isinstance(k.default, tuple) else k.default for k in self.knobs}

    def knob(self, name: str) -> Knob | None:
        return next((k for k in self.knobs if k.name == name), None)

    def to_json(self) -> dict[str, Any]:
        plain = {f: getattr(self, f) for f in ("kind", "name", "module", "qualname", "doc", "paper", "digest")}
        return plain | {
            "dist": self.distribution.name,
            "version": self.distribution.version,
            "wiring": list(self.wiring),
            "knobs": [k.to_json() for k in self.knobs],
            "facts": dict(self.facts),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PartSpec":
        plain = {f: data[f] for f in ("kind", "name", "module", "qualname", "doc", "paper", "digest", "facts")}
        return cls(
            distribution=Distribution(data["dist"], data["version"]),
            wiring=tuple(data["wiring"]),
            knobs=tuple(Knob.from_json(k) for k in data["knobs"]),
            **plain,
        )


class Registry(Generic[T]):
    """The parts of one kind.

    wiring   what the model hands over when a part is made; a part takes any of these, by name
    calls    a function part of this kind is the part itself: what it may be called with, and the facts each form means;
             a kind without `calls` takes functions as factories, made from the wiring like a class
    methods  what a class part must define
    base     the class to inherit from, it defines those of `methods` that are optional
    any_of   methods of which a class part may define any; the fact `uses` lists those it has
    facts    class attributes (with defaults) that rules and the model read: plain values, known without importing
    multiple several options may be chosen at once: `stabilizer=[clip,ema]`
    in_run   whether one of them stands in a run's config; what a sweep alone chooses does not
    default  the option of a config that names none: runs from before there was this kind stay what they were
    asks     methods of a class part that are handed what their parameters name, and the words there are; the fact
             `asks` has the parameters of each: `{"loss": ["chosen", "rejected"]}`
    optional a config may choose none: `reward=null`
    """

    distribution: Distribution
    from_catalogue: bool = False

    def __init__(
        self,
        kind: str,
        doc: str,
        *,
        wiring: tuple[str, ...] = (),
        calls: Mapping[tuple[str, ...], Mapping[str, Any]] | None = None,
        methods: tuple[str, ...] = (),
        any_of: tuple[str, ...] = (),
        facts: Mapping[str, Any] | None = None,
        multiple: bool = False,
        in_run: bool = True,
        default: str = "",
        asks: Mapping[str, tuple[str, ...]] | None = None,
        optional: bool = False,
        base: str = "",
    ) -> None:
        if not NAME.match(kind):
            raise ContractError(f"{kind!r} cannot be the name of a kind; use lower-case letters, digits and _")
        old = REGISTRIES.get(kind)
        if old is not None and not old.from_catalogue:
            raise ContractError(f"the kind {kind!r} exists already: {old.distribution} brings it")
        self.kind, self.doc, self.multiple, self.default, self.optional = kind, doc, multiple, default, optional
        self.in_run, self.base = in_run, base
        self.wiring, self.calls, self.facts = wiring, dict(calls or {}), dict(facts or {})
        self.methods, self.any_of = methods, any_of
        self.asks = dict(asks or {})
        self.distribution = current_distribution()
        # A plugin's own kind is known from the catalogue before its module makes it: both share their contents.
        self.entries: dict[str, PartSpec] = old.entries if old else {}
        self._targets: dict[str, Callable[..., T]] = old._targets if old else {}
        REGISTRIES[kind] = self

    def register(self, name: str, *, paper: str = "", **facts: Any) -> Callable[[Target], Target]:
        """Decorator: make a class or a function the option `name` of this kind.

        facts: those of a function, which has no class attributes to state them.
        """

        def add(target: Target) -> Target:
            old = self.entries.get(name)
            listed = old if name not in self._targets else None  # what the catalogue says of the files as they are
            entry = self._describe(name, target, paper, facts, listed.digest if listed else "")
            if old and (old.module, old.qualname) != (entry.module, entry.qualname):
                raise ContractError(
                    f"{self.kind}={name} exists already: {old.distribution} brings it ({old.module}), and now "
                    f"{entry.distribution} ({entry.module}) wants the same name; rename one of them"
                )
            # A part that is imported after its catalogue entry was read keeps the distribution found at the scan.
            if old and entry.distribution == SESSION:
                entry = replace(entry, distribution=old.distribution)
            self.entries[name] = entry
            self._targets[name] = target
            return target

        return add

    def _describe(
        self, name: str, target: Callable[..., Any], paper: str, said: Mapping[str, Any], digest: str
    ) -> PartSpec:
        where = f"{self.kind}={name} ({target.__module__}.{target.__qualname__})"
        if not NAME.match(name):
            raise ContractError(f"{where}: a name has lower-case letters, digits and _, and starts with a letter")
        for old, new in renamed.FACTS.get(self.kind, {}).items():
            if old in said or (inspect.isclass(target) and old in vars(target)):
                raise ContractError(f"{where}: the fact `{old}` is now called `{new}`; rename it")
        if unknown := said.keys() - self.facts:
            known = ", ".join(self.facts) or "none"
            raise ContractError(f"{where}: `{min(unknown)}` is no fact of a {self.kind}; there are {known}")
        wiring, knobs = read_signature(target, where)
        defaults = {k: getattr(target, k, default) for k, default in self.facts.items()}
        facts = {k: _plain(value, k, where) for k, value in (defaults | dict(said)).items()}
        if self.calls and not inspect.isclass(target):
            if wiring not in self.calls:
                forms = " or ".join(f"({', '.join(form)})" for form in self.calls)
                raise ContractError(f"{where}: takes ({', '.join(wiring)}) left of `*`; a {self.kind} takes {forms}")
            facts |= self.calls[wiring]
        else:
            self._check_made(target, wiring, where)
        if self.any_of:
            facts["uses"] = [m for m in self.any_of if callable(getattr(target, m, None))]
        if self.asks:
            facts["asks"] = {m: self._asked(target, m, where) for m in self.asks if hasattr(target, m)}
        if reserved := {k.name for k in knobs} & {"name", *self.wiring}:
            raise ContractError(f"{where}: the knob `{reserved.pop()}` has a name that is taken by the framework")
        return PartSpec(
            kind=self.kind,
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

    def _check_made(self, target: Callable[..., Any], wiring: tuple[str, ...], where: str) -> None:
        if unknown := [w for w in wiring if w not in self.wiring]:
            if new := renamed.WIRING.get(self.kind, {}).get(unknown[0]):
                raise ContractError(f"{where}: the parameter `{unknown[0]}` is now called `{new}`; rename it")
            raise ContractError(
                f"{where}: asks for `{unknown[0]}`, which the model does not hand to a {self.kind}; it hands over "
                f"{', '.join(self.wiring) or 'nothing'}. A knob stands right of a bare `*`"
            )
        found = {m: getattr(target, m, None) for m in self.methods}
        missing = [m for m, f in found.items() if not callable(f) or getattr(f, "__isabstractmethod__", False)]
        if missing and inspect.isclass(target):
            base = f"; inherit from {self.base}, which has the optional ones" if self.base else ""
            raise ContractError(f"{where}: a {self.kind} needs the method `{missing[0]}`{base}")

    def is_default(self, node: Any) -> bool:
        """Whether a config's node says what a config without this kind means."""
        if node is None:
            return self.optional
        if not self.default or node.get("name") != self.default:
            return False
        held = self.entries[self.default].defaults
        return all(held.get(k) == (list(v) if isinstance(v, tuple) else v) for k, v in node.items() if k != "name")

    def _asked(self, target: Callable[..., Any], method: str, where: str) -> list[str]:
        """The parameters of a method, each a word of the kind."""
        names = [name for name in inspect.signature(getattr(target, method)).parameters if name != "self"]
        words = self.asks[method]
        if unknown := [n for n in names if n not in words]:
            near = did_you_mean(unknown[0], words) or f"; there are {', '.join(words)}"
            raise ContractError(f"{where}: `{method}` asks for `{unknown[0]}`, which no {self.kind} is handed{near}")
        return names

    def names(self) -> list[str]:
        _load_plugins()
        return sorted(self.entries)

    def __iter__(self) -> Iterator[PartSpec]:
        return iter([self.entries[n] for n in self.names()])

    def __getitem__(self, name: str) -> PartSpec:
        if name not in self.entries:
            _load_plugins()
        try:
            return self.entries[name]
        except KeyError:
            raise UserError(
                f"there is no {self.kind}={name}{did_you_mean(name, self.entries)}\n"
                f"    `ablatio list {self.kind}` shows all {len(self.entries)}"
            ) from None

    def target(self, name: str) -> Callable[..., T]:
        """The class or function itself, imported when it is needed."""
        entry = self[name]
        if name not in self._targets:
            with provided_by(entry.distribution):
                importlib.import_module(entry.module)
        return self._targets[name]

    def build(self, name: str, knobs: Mapping[str, Any] | None = None, **wiring: Any) -> T:
        """The part, made from the wiring that it asks for and the knobs that were set."""
        entry, target = self[name], self.target(name)
        values = dict(knobs or {})
        for key, value in values.items():
            knob = entry.knob(key)
            if knob is None:
                known = [k.name for k in entry.knobs]
                raise UserError(f"{self.kind}={name} has no knob `{key}`{did_you_mean(key, known)}")
            if problem := knob.problem(value):
                raise UserError(f"{self.kind}.{key}: {problem}")
            values[key] = knob.cast(value)
        if self.calls and not inspect.isclass(target):
            return functools.partial(target, **values)  # type: ignore[return-value]
        if lacking := [w for w in entry.wiring if w not in wiring]:
            raise TypeError(f"{self.kind}={name} asks for `{lacking[0]}`, which was not handed over")
        return target(**{w: wiring[w] for w in entry.wiring}, **values)


def _plain(value: Any, key: str, where: str) -> Any:
    if isinstance(value, tuple | list | set | frozenset):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    if not isinstance(value, bool | int | float | str | None):
        raise ContractError(f"{where}: `{key}` must be a plain value, known from the class alone; got {value!r}")
    return value


REGISTRIES: dict[str, Registry[Any]] = {}
_loader: Callable[[], None] | None = None


def on_first_lookup(loader: Callable[[], None]) -> None:
    """What fills the registries when somebody first asks for a part; the plugin layer says so."""
    global _loader
    _loader = loader


def _load_plugins() -> None:
    if _loader is not None:
        _loader()


@contextmanager
def transaction() -> Iterator[None]:
    """Undo every registration made inside if it raises."""
    kinds = dict(REGISTRIES)
    contents = {k: (dict(r.entries), dict(r._targets)) for k, r in REGISTRIES.items()}
    try:
        yield
    except BaseException:
        REGISTRIES.clear()
        REGISTRIES.update(kinds)
        for kind, (entries, targets) in contents.items():
            REGISTRIES[kind].entries, REGISTRIES[kind]._targets = entries, targets
        raise
