"""A method with another signature than its kind's contract is named in one sentence, for every method of every kind."""

import inspect
import typing
from collections.abc import Callable
from typing import Any, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ablatio.registry import signatures
from ablatio.registry.knobs import SignatureError, read_signature
from ablatio.registry.registry import REGISTRIES, ContractError, Registry, transaction
from ablatio.registry.signatures import Method

OURS = [r for r in REGISTRIES.values() if r.contract]
METHODS = [(r, m) for r in OURS for m in signatures.methods_of(r.contract).values()]
CALLED = [(r, m) for r, m in METHODS if not m.attribute and "*args" not in str(m)]


def method_of(parameters: str) -> Callable[..., Any]:
    """A method with these parameters, written by Python's own compiler."""
    names: dict[str, Any] = {}
    exec(f"def method(self{', ' if parameters else ''}{parameters}): ...", names)
    return names["method"]


def faults(registry: Registry[Any], name: str, parameters: str, base: type = object) -> list[str]:
    part = type("Part", (base,), {name: method_of(parameters)})
    return signatures.faults(part, registry.kind, signatures.methods_of(registry.contract))


def inside(method: Method) -> str:
    return str(method).removeprefix(f"{method.name}(").removesuffix(")")


@pytest.mark.parametrize(("registry", "method"), CALLED, ids=lambda x: getattr(x, "kind", getattr(x, "name", "")))
def test_each_method_of_each_contract(registry: Registry[Any], method: Method) -> None:
    """One parameter too many or too few is named, with both signatures; other names of what has a position are not."""
    one_more = ", ".join(filter(None, ["extra", inside(method)]))
    assert faults(registry, method.name, inside(method)) == []
    assert faults(registry, method.name, "*args, **kwargs") == []
    (said,) = faults(registry, method.name, one_more)
    kind = f"{signatures.article(registry.kind)} {registry.kind}'s"
    assert said == f"{method.name}({one_more}) was found, {kind} {method} was expected"
    if method.positional:
        fewer = ", ".join(f"p{i}" for i in range(len(method.positional) - 1))
        assert len(faults(registry, method.name, fewer)) == 1
        others = [f"p{i}" for i in range(len(method.positional))] + [f"{name}=None" for name in method.named]
        assert faults(registry, method.name, ", ".join([*others, "own=3"])) == []
    for name in method.named:
        assert len(faults(registry, method.name, inside(method).replace(name, "other"))) == 1
    (said,) = signatures.faults(
        type("Part", (), {method.name: property(lambda self: 1)}), registry.kind, {method.name: method}
    )
    assert said == f"the property `{method.name}` was found, {kind} {method} was expected"


def binds(parameters: str, method: Method) -> bool:
    """Oracle: Python binds the framework's call, with what has a default given by name and without it."""
    found = inspect.signature(type("Part", (), {"m": method_of(parameters)})().m)
    try:
        for names in ((), method.named):
            found.bind(*range(len(method.positional)), **dict.fromkeys(names))
    except TypeError:
        return False
    return True


@given(data=st.data(), case=st.sampled_from(CALLED))
def test_a_signature_is_refused_exactly_if_python_refuses_the_call(data: st.DataObject, case: Any) -> None:
    registry, method = case
    names = data.draw(st.permutations([*(p.name for p in method.parameters), "a", "b"]))
    cut = data.draw(st.integers(0, len(names)))
    count, plain, keyword = (data.draw(st.integers(0, n)) for n in (cut, cut, 2))
    found = [n if i < plain else f"{n}=1" for i, n in enumerate(names[:count])]
    found += data.draw(st.sampled_from(([], ["*args"], ["*"]))) if keyword == 0 else ["*"]
    found += [f"{n}{data.draw(st.sampled_from(('', '=1')))}" for n in names[count:][:keyword]]
    found += data.draw(st.sampled_from(([], ["**kwargs"])))
    if "*" in found and found.index("*") == len([f for f in found if f != "**kwargs"]) - 1:
        found.remove("*")  # a bare star needs a name behind it
    parameters = ", ".join(found)
    assert (faults(registry, method.name, parameters) == []) == binds(parameters, method)


@pytest.mark.parametrize("kind", [r.kind for r in OURS])
def test_what_a_kind_requires_is_in_its_contract(kind: str) -> None:
    """Methods that a registry names have a signature there, or in the base class, or are asked for by name."""
    registry = REGISTRIES[kind]
    known = set(signatures.methods_of(registry.contract)) | set(registry.asks)
    if registry.base:
        module, _, name = registry.base.rpartition(".")
        known |= set(vars(getattr(__import__(module, fromlist=[name]), name)))
    wanted = {*registry.methods, *registry.any_of} - ({"forward"} if kind == "activation" else set())
    assert wanted <= known


def test_each_of_our_kinds_has_a_contract() -> None:
    assert {r.kind for r in OURS} == {r.kind for r in REGISTRIES.values()}


def make(kind: str, **members: Any) -> Callable[[], Any]:
    return lambda: REGISTRIES[kind].register("mine")(type("Mine", (nn.Module,), members))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (make("mlp", forward=method_of("x")), "forward(x) was found, an mlp's forward(x, ctx) was expected"),
        (make("norm"), "a norm needs the method `forward`"),
        (make("peft"), "a peft needs the method `apply`"),
        (make("quantization"), "a quantization needs the method `apply`"),
        (make("checkpointing", apply=method_of("")), "apply() was found, a checkpointing's apply(model) was expected"),
        (
            make("placement", forward=method_of("x, sublayer")),
            "forward(x, sublayer) was found, a placement's forward(x, sublayer, norm) was expected",
        ),
        (make("activation", forward=method_of("a, b")), "forward(a, b) was found, an activation's forward(x) was"),
        (
            make("activation", forward=method_of("x"), gated=True),
            "forward(x) was found, an activation's forward(gate, up) was expected",
        ),
        (make("schedule", __call__=method_of("step")), "__call__(step) was found, a schedule's __call__(step, total)"),
        (
            make("schedule", __call__=method_of("step, total"), watches=True),
            "__call__(step, total) was found, a schedule's __call__(step, total, scores) was expected",
        ),
        (make("reward", __call__=method_of("a, b")), "__call__(a, b) was found, a reward's __call__(answers) was"),
        (make("position", rotate=method_of("q, k")), "rotate(q, k) was found, a position's rotate(q, k, pos) was"),
        (
            make("stabilizer", batch_rows=method_of("seen")),
            "batch_rows(seen) was found, a stabilizer's batch_rows(seen, full) was expected",
        ),
        (
            lambda: REGISTRIES["activation"].register("mine")(lambda y: y),
            "<lambda>(y) was found, an activation function <lambda>(x) or <lambda>(gate, up) was expected",
        ),
    ],
)
def test_a_wrong_part_is_refused_in_one_sentence(part: Callable[[], Any], said: str) -> None:
    with pytest.raises(ContractError) as caught:
        part()
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hook", "parameters", "expected"),
    [
        ("begin_step", "model", "begin_step(model, step)"),
        ("validation", "", "validation(length=None, tokens=None)"),
        ("samples", "", "samples(model)"),
    ],
)
def test_a_hook_of_a_task_is_compared_with_the_base_class(hook: str, parameters: str, expected: str) -> None:
    from ablatio.model.task import Task

    said = dict.fromkeys(("validation", "tokens", "example", "loss", "score"), "")
    said |= {"tokens": "steps", "example": "batch, generator", "loss": "model, example"}
    said |= {"validation": "length=None, tokens=None", "score": "model, batches, device, between", hook: parameters}
    part = type("Mine", (Task,), {name: method_of(text) for name, text in said.items()})
    with pytest.raises(ContractError) as caught:
        REGISTRIES["task"].register("mine")(part)
    assert str(caught.value).endswith(f": {hook}({parameters}) was found, a task's {expected} was expected")


def test_a_part_that_attaches_is_called_with_one_input() -> None:
    """A plugin's kind without a protocol: the place says how its parts are called."""
    with pytest.raises(ContractError) as caught, transaction():
        gates: Registry[Any] = Registry("gate", "For tests.", optional=True, attaches="layer", methods=("forward",))
        gates.register("good")(type("Good", (nn.Module,), {"forward": method_of("h")}))
        gates.register("bad")(type("Bad", (nn.Module,), {"forward": method_of("x, ctx")}))
    assert str(caught.value).endswith("forward(x, ctx) was found, a gate's forward(x) was expected")


def test_a_method_instead_of_a_property_is_named() -> None:
    (said,) = faults(REGISTRIES["tokenizer"], "vocab_size", "")
    assert said.startswith("the method vocab_size() was found, a tokenizer's vocab_size was expected as a property")


def test_what_a_base_class_of_torch_defines_is_not_the_authors() -> None:
    expected = {"apply": Method("apply"), "state_dict": Method("state_dict")}
    assert signatures.faults(type("Part", (nn.Module,), {}), "thing", expected) == []


class Plain(nn.Module):
    """No __init__: a part without knobs."""

    def forward(self, x: Any) -> Any:
        return x


class Inherits(typing.Generic[typing.TypeVar("T")], nn.Module):  # type: ignore[misc]
    """No __init__, through another base."""


class Contract(Protocol):
    """What an author may inherit from."""


class Follows(Contract):
    """No __init__, through a protocol."""


@pytest.mark.parametrize("part", [Plain, Inherits, Follows, type("Bare", (), {}), type("List", (list,), {})])
def test_a_class_without_init_is_a_part_without_knobs(part: type) -> None:
    assert read_signature(part, "here") == ((), ())


def test_a_module_without_init_registers_and_builds() -> None:
    before = dict(REGISTRIES["norm"].entries)
    try:
        REGISTRIES["norm"].register("plain_module")(Plain)
        assert isinstance(REGISTRIES["norm"].build("plain_module", d_model=4), Plain)
        assert REGISTRIES["norm"]["plain_module"].knobs == ()
    finally:
        REGISTRIES["norm"].entries = before


def test_an_unknown_name_in_an_annotation_is_a_fault_of_the_part() -> None:
    def part(*, eps: "Missing" = 1) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(SignatureError, match="here: an annotation names `Missing`, which its module does not define"):
        read_signature(part, "here")


@pytest.mark.parametrize(
    ("word", "article"), [("mlp", "an"), ("norm", "a"), ("optimizer", "an"), ("reward", "a"), ("gpt", "a")]
)
def test_articles(word: str, article: str) -> None:
    assert signatures.article(word) == article
