"""Registries: parts by name.  One decorator creates a part's option, its checks, its help and its catalogue entry."""

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, Literal, TypeVar, cast, get_args

from ablatio.errors import UserError, did_you_mean
from ablatio.registry.describe import describe, place_of
from ablatio.registry.kind_contract import KindContract
from ablatio.registry.part_spec import SESSION as SESSION
from ablatio.registry.part_spec import ContractError as ContractError
from ablatio.registry.part_spec import Distribution as Distribution
from ablatio.registry.part_spec import PartFault, faulty_parts, leave_out
from ablatio.registry.part_spec import PartSpec as PartSpec
from ablatio.registry.part_spec import current_distribution as current_distribution
from ablatio.registry.part_spec import provided_by as provided_by
from ablatio.registry.part_spec import refuse_another_description as refuse_another_description
from ablatio.registry.transactions import HELD
from ablatio.registry.transactions import others_unchanged as others_unchanged
from ablatio.registry.transactions import transaction as transaction
from ablatio.registry.value_schedules import ValueSchedule

T = TypeVar("T")
Target = TypeVar("Target", bound=Callable[..., Any])
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
Scope = Literal[
    "task", "model", "training", "tuning", "memory", "data", "feedback", "use", "measure", "output", "devices", "sweep",
]  # fmt: skip
SCOPES: tuple[Scope, ...] = get_args(Scope)  # in the order in which a config lists the kinds
Place = Literal["", "embedding", "sublayer", "layer", "hidden"]
PerLayer = Literal["", "inside", "also outside"]
ATTACHED_WIRING = ("d_model", "n_layers", "layer", "sublayer", "side", "max_len")


class Registry(KindContract, Generic[T]):
    """The parts of one kind, and the contract that they have to keep.

    Arguments that describe a part of this kind:

        kind      name of the kind, as on the command line: `norm`
        doc       one line that says what the kind is
        wiring    what the framework passes to a part when it builds it; a part takes any of these, by parameter name
        calls     for kinds whose parts may be functions that are called directly: each allowed signature (parameters
                  left of `*`) and the facts that it implies.  Without `calls`, a function is a factory: it is called
                  with the wiring, like a class
        methods   methods that a class must define
        base      class that a part must inherit from; it defines those of `methods` that are optional
        contract  protocols that describe the kind to authors (`ablatio show KIND --author`).  A method that a part has
                  of these must take the arguments that it takes there
        any_of    optional methods; the fact `uses` lists those that the part defines
        facts     class attributes, with defaults, that rules and the model read; plain values, known from the catalogue
                  without importing the part.  A part of any kind may also state `packages`: see `registry.packages`
        asks      methods that receive only the values named by their parameters, and the names that are available.
                  The fact `asks` lists the parameters of each: `{"loss": ["chosen", "rejected"]}`
        multiple  True if several options may be chosen at once: `stabilizer=[clip,ema]`
        ordered   True if the order of several options matters: they are then in a run's id in their order

    Arguments that describe the kind; all lists of kinds are derived from them:

        scope     what an option of the kind decides:
                  task      what a run learns
                  model     the computation of the model: what its forward pass consists of
                  training  how the model is initialized and trained: objective, optimizer, schedule
                  tuning    which weights of an existing model are trained, and in how many bits its weights are kept
                  memory    how the same numbers are computed with less memory
                  data      documents, their token ids, their format
                  feedback  how preferences and rewards are used
                  use       how a trained model is used: decoding, prompts
                  measure   what is measured of the trained model beside the task's own scores
                  output    where numbers are written.  Like what is measured, it affects no training, so it is not
                            part of a run's id and never distinguishes two arms
                  devices   on which devices the same numbers are computed; no part of a run's id either
                  sweep     which runs there are and where they run; it is not part of a run's config
        shapes_model
                  True if weights or scales of a model depend on the kind; by default, True for the scope `model`.  Such
                  kinds are exported with a model, inherited by a run that starts from it, and determine its size
        usual     option of a new run that names none (a tuple of names if `multiple`); by default the same as `default`
        default   option that a config without this kind means, so that runs from before the kind existed do not change
        optional  True if a config may choose no option: `reward=null`
        attaches  where ModelBuilder inserts parts of this kind, which are modules with `forward(x)` of shape
                  (..., d_model) -> same:
                  embedding  once per stack, on the embeddings, before the first layer
                  sublayer   on the output of each attention and feed-forward sublayer, before the residual addition
                  layer      on the output of each layer
                  hidden     once per stack, on its final output
                  Their wiring is d_model, n_layers, layer (None outside the layers), sublayer
                  (attention | cross | mlp | ""), side (encoder | decoder) and max_len.  The part becomes the submodule
                  `<kind>` of the module that it is attached to; its initial weights are seeded by that path.  The kind
                  needs a `default` or `optional=True`: if no option is chosen, no part is built, and the model is the
                  same as before the kind existed
        per_layer "inside": each layer may have another option (`layers.KIND=[a*3,b]`), and parts stand in layers only;
                  "also outside": so they do, and the run's own option also acts outside the layers, as a final norm
                  does; "" (the default, unless parts attach to layers or sublayers): one option for the whole run

    A kind added by a plugin needs `default` or `optional=True`, so that older runs still load.

    Raises:
        ContractError: the name is not valid or is taken, or the arguments contradict each other.
    """

    distribution: Distribution

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
        ordered: bool = False,
        scope: Scope = "training",
        shapes_model: bool | None = None,
        usual: str | tuple[str, ...] = "",
        default: str = "",
        optional: bool = False,
        attaches: Place = "",
        base: str = "",
        per_layer: PerLayer = "",
        contract: tuple[type, ...] = (),
    ) -> None:
        if not NAME.match(kind):
            raise ContractError(f"{kind!r} is not a valid name of a kind; use lower-case letters, digits and _")
        if kind == "parts":
            raise ContractError(
                "a kind cannot be called `parts`: on the command line, parts=FILE names a file of parts"
            )
        old = REGISTRIES.get(kind)
        if old is not None and not old.from_catalogue:
            raise ContractError(f"the kind {kind!r} already exists, provided by {old.distribution}")
        self.kind, self.doc, self.multiple, self.default, self.optional = kind, doc, multiple, default, optional
        self.scope, self.attaches, self.usual, self.base = scope, attaches, usual or default, base
        self.shapes_model = bool(attaches) or scope == "model" if shapes_model is None else shapes_model
        self.wiring, self.calls, self.facts = wiring, dict(calls or {}), dict(facts or {})
        self.methods, self.any_of = methods, any_of
        self.asks = dict(asks or {})
        self.ordered = ordered
        self.per_layer: PerLayer = per_layer or ("inside" if attaches in ("sublayer", "layer") else "")
        self.contract = contract
        self._check_scope()
        self.distribution = current_distribution()
        # A kind of a plugin may be known from the catalogue before its module defines it: both share their entries.
        self.entries: dict[str, PartSpec] = old.entries if old else {}
        self._targets: dict[str, Callable[..., T]] = old._targets if old else {}
        REGISTRIES[kind] = self

    def _check_scope(self) -> None:
        where = f"the kind {self.kind!r}"
        if self.scope not in SCOPES:
            raise ContractError(f"{where}: scope={self.scope!r}; expected one of {', '.join(SCOPES)}")
        if self.attaches not in get_args(Place):
            places = ", ".join(get_args(Place)[1:])
            raise ContractError(f"{where}: attaches={self.attaches!r}; expected one of {places}")
        if not self.attaches:
            return
        if not (self.default or self.optional) or self.multiple:
            raise ContractError(f"{where}: a kind whose parts attach to the model has at most one option per run, and "
                                "needs default='none' (an option that does nothing) or optional=True")  # fmt: skip
        if unknown := [w for w in self.wiring if w not in ATTACHED_WIRING]:
            what = f"wiring has `{unknown[0]}`; parts that attach to the model receive {', '.join(ATTACHED_WIRING)}"
            raise ContractError(f"{where}: {what}")

    @property
    def in_run(self) -> bool:
        """True if options of this kind are part of a run's config."""
        return self.scope != "sweep"

    @property
    def listed(self) -> bool:
        """True if the config of every new run lists the kind, possibly as null: then `kind=option` needs no `+`."""
        return self.in_run and bool(self.usual or self.optional or self.multiple)

    @property
    def usual_names(self) -> list[str]:
        """Options of a new run that names none, in their order."""
        return [self.usual] if isinstance(self.usual, str) and self.usual else [*self.usual]

    @property
    def volatile(self) -> bool:
        """True if the kind affects no training: runs that differ only in it have the same id."""
        return self.scope in ("measure", "output", "devices")

    def to_json(self) -> dict[str, Any]:
        """The arguments that describe the kind, as plain data for the catalogue."""
        data = {name: getattr(self, name) for name in _SAID} | {"calls": [[*pair] for pair in self.calls.items()]}
        return data | {"dist": self.distribution.name, "version": self.distribution.version}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Registry[Any]":
        """The registry of a kind described in a catalogue; the module that defines it is not imported."""
        said = {name: _tuples(data[name]) for name in _SAID}
        with provided_by(Distribution(data["dist"], data["version"])):
            made = Registry[Any](**said | {"calls": dict(said["calls"])})
        made.from_catalogue = True
        return made

    def register(self, name: str, *, paper: str = "", **facts: Any) -> Callable[[Target], Target]:
        """Decorator that registers a class or a function as the option `name` of this kind.

        Args:
            name: lower-case letters, digits and `_`; must be free in this kind.
            paper: source of the idea, such as `arXiv:1910.07467`.
            facts: facts of a function; a class states them as class attributes.

        Raises:
            ContractError: the name is taken, a knob has no type, no default or a type that is not supported, or the
                part does not keep the contract of the kind.  Inside `faulty_parts` such a part is left out instead.
        """

        def add(target: Target) -> Target:
            old = self.entries.get(name)
            # The catalogue's entry is current (its cache key covers all files), so its digest can be reused.
            listed = old if name not in self._targets else None
            try:
                entry = self._describe(name, target, paper, facts, listed.digest if listed else "")
                self._refuse_taken(old, entry)
            except ContractError as error:
                where = f"{target.__module__}.{target.__qualname__}"
                reason = str(error).removeprefix(f"{place_of(self.kind, name, target)}: ")
                if not leave_out(PartFault(self.kind, name, where, reason)):
                    raise
                return target
            if listed and listed.distribution != SESSION:
                refuse_another_description(listed, entry)
            # A part imported after its catalogue entry was read keeps the distribution that the scan found, also if a
            # plugin of another distribution imports it.
            if old and (listed or entry.distribution == SESSION):
                entry = replace(entry, distribution=old.distribution)
            self.entries[name] = entry
            self._targets[name] = target
            return target

        return add

    def _refuse_taken(self, old: PartSpec | None, entry: PartSpec) -> None:
        if old and (old.module, old.qualname) != (entry.module, entry.qualname):
            raise ContractError(
                f"{self.kind}={entry.name} already exists, provided by {old.distribution} ({old.module}); "
                f"{entry.distribution} ({entry.module}) registers the same name; rename one of them"
            )

    def _describe(
        self, name: str, target: Callable[..., Any], paper: str, said: Mapping[str, Any], digest: str
    ) -> PartSpec:
        if not NAME.match(name):
            where = place_of(self.kind, name, target)
            raise ContractError(f"{where}: not a valid name; use lower-case letters, digits and _, a letter first")
        return describe(self, name, target, paper, said, digest)

    def is_default(self, node: Any) -> bool:
        """True if a config's node of this kind means the same as leaving the kind out."""
        if node is None:
            return self.optional
        if not self.default or node.get("name") != self.default:
            return False
        held = self.entries[self.default].defaults
        # Knobs that the node lacks have their defaults; a list and a tuple are the same in a config.
        return all(held.get(k) == (list(v) if isinstance(v, tuple) else v) for k, v in node.items() if k != "name")

    def names(self) -> list[str]:
        """Names of all options, sorted; loads the plugins first."""
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
                f"there is no {self.kind}={name}{did_you_mean(name, self.entries)}\n    try: ablatio list {self.kind}"
            ) from None

    def target(self, name: str) -> Callable[..., T]:
        """The class or function of an option; its module is imported if necessary."""
        entry = self[name]
        if name not in self._targets:
            # The guards of the scan hold here, too: a module may do other things when it is imported in a run.
            with others_unchanged(entry.distribution), provided_by(entry.distribution), faulty_parts() as faults:
                importlib.import_module(entry.module)
            # Another faulty part of the module costs that part alone.
            for fault in faults:
                if (fault.kind, fault.name) == (self.kind, name):
                    raise ContractError(f"{self.kind}={name} ({fault.place}): {fault.reason}")
        return self._targets[name]

    def build(self, name: str, knobs: Mapping[str, Any] | None = None, **wiring: Any) -> T:
        """Build a part from the wiring that it takes and the knobs that are set.

        Args:
            name: the option.
            knobs: values of knobs; the others have their defaults.
            wiring: everything the framework offers; the part receives only what it takes.

        Raises:
            UserError: there is no such option or knob, or a value is not allowed.
        """
        entry, target = self[name], self.target(name)
        values = dict(knobs or {})
        for key, value in values.items():
            knob = entry.knob(key)
            if knob is None:
                known = [k.name for k in entry.knobs]
                raise UserError(f"{self.kind}={name} has no knob `{key}`{did_you_mean(key, known)}\n"
                                f"    try: ablatio show {self.kind}={name}")  # fmt: skip
            if problem := knob.problem(value):
                raise UserError(f"{self.kind}.{key}: {problem}\n    try: {self.kind}.{key}={knob.default_text}")
            values[key] = knob.cast(value)
            if isinstance(values[key], ValueSchedule):  # a run takes its schedules out before it builds parts
                where = f"{self.kind}.{key}"
                raise UserError(f"{where}: {value} is a schedule here, where only a constant is supported\n"
                                f"    try: {where}={value}, for the option of the run")  # fmt: skip
        if self.calls and not inspect.isclass(target):
            # A function of a kind with `calls` is the part itself, called with tensors; others build it.
            return functools.partial(target, **values)  # type: ignore[return-value]
        if lacking := [w for w in entry.wiring if w not in wiring]:
            # Not a UserError: the framework itself has forgotten something.
            raise TypeError(f"{self.kind}={name} needs the wiring `{lacking[0]}`, which was not passed")
        return target(**{w: wiring[w] for w in entry.wiring}, **values)


REGISTRIES = cast("dict[str, Registry[Any]]", HELD)

# What a catalogue says of a kind; its contract is code, which is imported with the kind.
_SAID = tuple(name for name in inspect.signature(Registry.__init__).parameters if name not in ("self", "contract"))


def _tuples(value: Any) -> Any:
    """Convert lists to tuples recursively: JSON has no tuples."""
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


_loader: Callable[[], None] | None = None


def on_first_lookup(loader: Callable[[], None]) -> None:
    """Set the function that fills the registries at the first lookup; called by the package at import."""
    global _loader
    _loader = loader


def _load_plugins() -> None:
    if _loader is not None:
        _loader()
