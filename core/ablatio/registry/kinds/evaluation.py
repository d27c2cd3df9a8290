"""Kinds of evaluation: the questions that a model is asked, and how its responses are measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from ablatio.registry.registry import Registry

if TYPE_CHECKING:
    from ablatio.data.items import Item, Request, Response, Scored


class Eval(Protocol):
    """Items that a model is asked: the same ones in the same order each time, whatever the model.

    Wiring:
    texts       texts("train") and texts("validation") iterate over the texts of the run's source

    Methods:
    items()     yields the items (ablatio.data.items.Item); ids are unique

    Optional attributes:
    title       name of its values in files, such as that of a task file; by default the name of the option

    Facts:
    labels       what all its items have: target (a correct answer as a text), choices (with the index of the correct
                 one), or fields of `Item.more`
    measured_by  metrics that apply if the config names none; an object may have an attribute of its own
    reads_tasks  True if its knob `path` is a task file, which `ablatio evaluate RUN task=FILE` names
    """

    labels: ClassVar[Sequence[str]]
    measured_by: ClassVar[Sequence[str]]
    reads_tasks: ClassVar[bool]

    def items(self) -> Iterable[Item]: ...


class EvalMethods(Protocol):
    """Optional methods of an Eval.

    Methods:
    examples()  solved items that are none of `items()`, which a prompt program may show; by default, of an evaluation
                with a knob `seed`, the items of another seed
    read(text)  what counts of a text that the model generated, such as the number after a marker; by default all of it
    """

    def examples(self) -> Iterable[Item]: ...

    def read(self, text: str) -> str: ...


class Metric(Protocol):
    """Measures a model on items: what to ask about an item, the values of one item, and those of all.

    A function part takes the generated answer and one correct answer, and returns their agreement from 0 to 1; of
    several correct answers, the best agreement counts.

    Wiring:
    texts       as of an Eval
    open_run    open_run(folder) returns a function from requests to the responses of that run's model

    Methods:
    requests(item)           what to ask the model about an item (ablatio.data.items.Likelihood, Generation)
    score(item, responses)   {name: value} of one item from the responses to its requests
    summary(scored)          optional: {name: value} of all items; by default the means over the items

    Facts:
    labels     labels that an item must have
    scores     names of the values of all items; the first is the main one
    better     whether a lower or higher main value is better: lower | higher
    bounds     smallest and largest possible main value; null: unbounded
    runs_code  True if it runs programs that the model wrote: then the user must allow it on the command line
    """

    labels: ClassVar[Sequence[str]]
    scores: ClassVar[Sequence[str]]
    better: ClassVar[str]
    bounds: ClassVar[Sequence[float | None]]
    runs_code: ClassVar[bool]

    def requests(self, item: Item) -> Sequence[Request]: ...

    def score(self, item: Item, responses: Sequence[Response]) -> Mapping[str, float]: ...


class MetricMethods(Protocol):
    """Optional methods of a Metric."""

    def summary(self, scored: Sequence[Scored]) -> Mapping[str, float]: ...


evals: Registry[Eval] = Registry(
    "eval",
    "Questions with which a trained model is evaluated; several can be combined.",
    contract=(Eval, EvalMethods),
    wiring=("texts",),
    methods=("items",),
    facts={"labels": ("target",), "measured_by": ("accuracy",), "reads_tasks": False},
    multiple=True,
    scope="measure",
)

metrics: Registry[Metric] = Registry(
    "metric",
    "How a model's responses to an evaluation are measured; several can be combined.",
    contract=(Metric, MetricMethods),
    wiring=("texts", "open_run"),
    calls={("answer", "target"): {"labels": ("target",), "scores": (), "better": "higher", "bounds": (0.0, 1.0)}},
    methods=("requests", "score"),
    facts={
        "labels": ("target",),
        "scores": (),
        "better": "higher",
        "bounds": (0.0, 1.0),
        "runs_code": False,
    },
    multiple=True,
    scope="measure",
)
