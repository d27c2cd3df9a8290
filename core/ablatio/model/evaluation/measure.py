"""One metric applied to the items of one evaluation."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ablatio.data.items import Generation, Item, Request, Response, Scored
from ablatio.errors import AblatioError, UserError
from ablatio.model.evaluation.item_errors import clustered_error, jackknife_error
from ablatio.registry.kinds import Metric
from ablatio.registry.part_spec import PartSpec

PREFIX = "eval"


class Agreement:
    """Metric of a function (answer, target) -> agreement: the generated answer against each correct one."""

    def __init__(self, name: str, function: Callable[[str, str], float]) -> None:
        self.name, self.function = name, function

    def requests(self, item: Item) -> list[Request]:
        """Ask for the most probable answer."""
        return [Generation.of(item)]

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        """Best agreement with a correct answer."""
        answer = responses[0].texts[0].strip()
        return {self.name: max(float(self.function(answer, target)) for target in item.correct_answers)}


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric on an evaluation.

    on      name of the evaluation
    entry   description of the metric
    metric  the built metric
    items   items of the evaluation
    examples  solved items that are none of these, for prompts that show some
    read    what counts of a generated text; None: all of it
    """

    on: str
    entry: PartSpec
    metric: Metric
    items: Sequence[Item]
    examples: Sequence[Item] = ()
    read: Callable[[str], str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values, the main one first."""
        return tuple(self.entry.facts["scores"]) or (self.entry.name,)

    def column(self, name: str) -> str:
        """Name of a value in files: `eval/addition/accuracy`, `eval/arc/likelihood_choice/acc_norm`."""
        place = f"{PREFIX}/{self.on}/{self.entry.name}"
        return place if name == self.names[0] else f"{place}/{name}"

    @property
    def columns(self) -> list[str]:
        """Names of all values in files."""
        return [self.column(name) for name in self.names]

    def check_labels(self) -> None:
        """Raise UserError if an item lacks a label that the metric needs."""
        for label in self.entry.facts["labels"]:
            lacking = [item for item in self.items if not item.has(label)]
            if lacking:
                share = f"{len(lacking)} of {len(self.items)} items" if len(lacking) < len(self.items) else "its items"
                raise UserError(
                    f"metric={self.entry.name} needs `{label}`, which {share} of eval={self.on} do not have (the first "
                    f"is {lacking[0].id})\n    try: leave out metric={self.entry.name}; `ablatio list metric -v` shows "
                    "what each needs"
                )

    def check_questions(self) -> None:
        """Raise UserError if an answer is to be generated to an item that is a whole text, without a question."""
        for item in self.items:
            if item.prompt or item.question:
                continue
            if any(isinstance(request, Generation) and not request.prompt for request in self.metric.requests(item)):
                raise UserError(
                    f"metric={self.entry.name} compares generated answers, and items of eval={self.on} are whole texts "
                    f"without a question (the first is {item.id})\n    try: metric=[perplexity]"
                )

    def readings(self, responses: Sequence[Response]) -> list[Response]:
        """The responses with what counts of their texts."""
        read = self.read
        return [*responses] if read is None else [replace(r, texts=tuple(map(read, r.texts))) for r in responses]

    def score(self, responses: Sequence[Sequence[Response]], items: Sequence[Item] | None = None) -> list[Scored]:
        """Return the values of each item; UserError if the metric does not give finite numbers.

        items  the items as they were asked, if a prompt program has written their prompts
        """
        found = []
        for item, of_item in zip(self.items if items is None else items, responses, strict=True):
            try:
                values = {str(k): float(v) for k, v in self.metric.score(item, of_item).items()}
            except AblatioError:
                raise
            except Exception as error:  # a plugin's metric may raise any exception
                raise UserError(
                    f"metric={self.entry.name} raised {type(error).__name__}: {error} on item {item.id} of "
                    f"eval={self.on}\n    try: ablatio show metric={self.entry.name}"
                ) from error
            if bad := [name for name, value in values.items() if not math.isfinite(value)]:
                raise UserError(
                    f"metric={self.entry.name} gave {bad[0]}={values[bad[0]]} for item {item.id} of eval={self.on}; "
                    f"expected a finite number\n    try: ablatio show metric={self.entry.name}"
                )
            found.append(Scored(item, of_item, values))
        return found

    def summary(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Return the values of all items: the metric's own summary, or the means over the items."""
        own: Callable[[Sequence[Scored]], Mapping[str, float]] | None = getattr(self.metric, "summary", None)
        if own is not None:
            return {name: float(value) for name, value in own(scored).items()}
        return {name: math.fsum(s.values[name] for s in scored) / len(scored) for name in self.names}

    def errors(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Return the standard errors of the values over the choice of items; nan where they cannot be estimated."""
        clusters = [s.item.cluster or ("item", s.item.id) for s in scored]
        if not hasattr(self.metric, "summary"):
            return {name: clustered_error([s.values[name] for s in scored], clusters) for name in self.names}
        kept: dict[tuple[int, ...], dict[str, float]] = {}

        def value(name: str) -> Callable[[Sequence[int]], float]:
            def of(index: Sequence[int]) -> float:
                key = tuple(index)
                if key not in kept:
                    kept[key] = self.summary([scored[i] for i in index])
                return kept[key][name]

            return of

        return {name: jackknife_error(value(name), clusters) for name in self.names}


def built(entry: PartSpec, build: Callable[..., Any], knobs: Mapping[str, Any], **wiring: Any) -> Metric:
    """Build a metric; a function of an answer and a target becomes one."""
    part: Any = build(entry.name, knobs, **wiring)
    if entry.wiring == ("answer", "target"):
        part = Agreement(entry.name, part)
    found: Metric = part
    return found
