"""Registries: parts by name.  One decorator makes the option, its checks, its help and its catalogue entry."""

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, Literal, TypeVar, get_args

from ablatio.errors import (
    UserError,
    did_you_mean,
)
from ablatio.registry import renamed
from ablatio.registry.knobs import read_signature
from ablatio.registry.part_spec import SESSION as SESSION
from ablatio.registry.part_spec import ContractError as ContractError
from ablatio.registry.part_spec import Distribution as Distribution
from ablatio.registry.part_spec import PartSpec as PartSpec
from ablatio.registry.part_spec import current_distribution as current_distribution
from ablatio.registry.part_spec import provided_by as provided_by
from ablatio.registry.source_digest import source_digest

T = TypeVar("T")
Target = TypeVar("Target", bound=Callable[..., Any])
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
Scope = Literal["task", "model", "training", "tuning", "memory", "data", "feedback", "output", "sweep"]
SCOPES: tuple[Scope, ...] = get_args(Scope)  # in the order in which a config lists the kinds
Place = Literal["", "embedding", "sublayer", "layer", "hidden"]
ATTACHED_WIRING = ("d_model", "n_layers", "layer", "sublayer", "side", "max_len")


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
    asks     methods of a class part that are handed what their parameters name, and the words there are; the fact
             `asks` has the parameters of each: `{"loss": ["chosen", "rejected"]}`

    What a kind is, said here once; every list of kinds is made from it:

    scope    what the kind is a choice of:
             task      what a run learns
             model     the computation of the model: what its forward pass consists of
             training  how the model starts, what it is asked for, how it is changed
             tuning    which weights of a finished model train, and in how many bits it is kept
             memory    how the same numbers are computed in less memory
             data      documents, their ids, their form
             feedback  what preferences and rewards teach
             output    where numbers are written; it makes none of them, so it stands in no run's id and makes no arm
             sweep     which runs there are and where they run; it stands in no run's config
    shapes_model  True if the weights or scales of a model depend on it; by default, True for the scope `model`.
             These kinds stand in an exported model and in one that another run begins with, and decide its size
    usual    the option of a new run that names none; several names for a kind with `multiple`; by default `default`
    default  the option that a config without this kind means: runs from before there was the kind stay what they were
    optional a config may choose none: `reward=null`
    attaches where ModelBuilder puts the parts of this kind, modules with `forward(x)`, (..., d_model) -> same:
             embedding  once per stack, on the embeddings, before the first layer
             sublayer   on the output of each attention and feed-forward part, before it is added to the residual stream
             layer      on the output of each layer
             hidden     once per stack, on its output
             Wiring: d_model, n_layers, layer (None outside the layers), sublayer (attention | cross | mlp | ""), side
             (encoder | decoder), max_len.  The part becomes the submodule `<kind>` of what it stands on, with initial
             weights seeded by that path.  The kind must have a `default` or be `optional`: then no part is made, and
             the model is what it was before there was the kind

    A kind of a plugin has the scope that fits and a `default` (or is `optional`), so that older runs still load.
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
        asks: Mapping[str, tuple[str, ...]] | None = None,
        multiple: bool = False,
        scope: Scope = "training",
        shapes_model: bool | None = None,
        usual: str | tuple[str, ...] = "",
        default: str = "",
        optional: bool = False,
        attaches: Place = "",
        base: str = "",
    ) -> None:
        if not NAME.match(kind):
            raise ContractError(f"{kind!r} cannot be the name of a kind; use lower-case letters, digits and _")
        old = REGISTRIES.get(kind)
        if old is not None and not old.from_catalogue:
            raise ContractError(f"the kind {kind!r} exists already: {old.distribution} brings it")
        self.kind, self.doc, self.multiple, self.default, self.optional = kind, doc, multiple, default, optional
        self.scope, self.attaches, self.usual, self.base = scope, attaches, usual or default, base
        self.shapes_model = bool(attaches) or scope == "model" if shapes_model is None else shapes_model
        self.wiring, self.calls, self.facts = wiring, dict(calls or {}), dict(facts or {})
        self.methods, self.any_of = methods, any_of
        self.asks = dict(asks or {})
        self._check_scope()
        self.distribution = current_distribution()
        # A plugin's own kind is known from the catalogue before its module makes it: both share their contents.
        self.entries: dict[str, PartSpec] = old.entries if old else {}
        self._targets: dict[str, Callable[..., T]] = old._targets if old else {}
        REGISTRIES[kind] = self

    def _check_scope(self) -> None:
        where = f"the kind {self.kind!r}"
        if self.scope not in SCOPES:
            raise ContractError(f"{where}: there is no scope {self.scope!r}; there are {', '.join(SCOPES)}")
        if self.attaches not in get_args(Place):
            raise ContractError(f"{where}: attaches={self.attaches!r}; there are {', '.join(get_args(Place)[1:])}")
        if not self.attaches:
            return
        if not (self.default or self.optional) or self.multiple:
            raise ContractError(f"{where}: its parts attach to the model, so one option or none is chosen: give it "
                                "default='none' (an option that does nothing) or optional=True")  # fmt: skip
        if unknown := [w for w in self.wiring if w not in ATTACHED_WIRING]:
            what = f"asks for `{unknown[0]}`; a part that attaches is handed {', '.join(ATTACHED_WIRING)}"
            raise ContractError(f"{where}: {what}")

    @property
    def in_run(self) -> bool:
        """True if an option of this kind stands in a run's config."""
        return self.scope != "sweep"

    @property
    def listed(self) -> bool:
        """True if every new run lists the kind, be it with none: then `kind=option` needs no `+`."""
        return self.in_run and bool(self.usual or self.optional or self.multiple)

    @property
    def volatile(self) -> bool:
        """True if the kind makes no number of a run: a run with other options of it is the same run."""
        return self.scope == "output"

    def to_json(self) -> dict[str, Any]:
        """All that was said of the kind, as plain data."""
        data = {name: getattr(self, name) for name in _SAID} | {"calls": [[*pair] for pair in self.calls.items()]}
        return data | {"dist": self.distribution.name, "version": self.distribution.version}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Registry[Any]":
        """The registry of a kind that a catalogue describes; the module that makes it is not imported."""
        said = {name: _tuples(data[name]) for name in _SAID}
        with provided_by(Distribution(data["dist"], data["version"])):
            made = Registry[Any](**said | {"calls": dict(said["calls"])})
        made.from_catalogue = True
        return made

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


_SAID = tuple(inspect.signature(Registry.__init__).parameters)[1:]


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, all through."""
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


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
