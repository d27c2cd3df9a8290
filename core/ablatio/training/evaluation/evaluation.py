"""The evaluations and metrics that a config chooses, and their results for one model."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ablatio.data.items import Item, Request, Respond, Response
from ablatio.errors import UserError, did_you_mean
from ablatio.model.evaluation.measure import PREFIX, Measure, built
from ablatio.registry import kinds
from ablatio.registry.kinds import Eval
from ablatio.training.evaluation.access import Access
from ablatio.training.evaluation.prompting import Prompting, answers_itself, examples_of
from ablatio.training.task_scores import TaskScores

TOKENS = ("tokens_read", "tokens_generated")  # values of a prompt program that answers by itself, means over items
SHOWN = 600  # characters of a text in the file of items: the last ones of a prompt, the first ones of a target


@dataclass(frozen=True, slots=True)
class Measured:
    """One value of an evaluation; error: standard error over the choice of items; None: cannot be estimated."""

    value: float
    error: float | None
    items: int
    better: str

    def to_json(self) -> dict[str, Any]:
        """As in summary.json."""
        return {"value": self.value, "error": self.error, "items": self.items, "better": self.better}


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Results of a model.

    values  by column: `eval/addition/accuracy`
    rows    one for each item: eval, id, item (digest of the question), cluster, prompt, target, answer, values
    """

    values: Mapping[str, Measured]
    rows: Sequence[Mapping[str, Any]]

    @property
    def numbers(self) -> dict[str, float]:
        """The values without their errors."""
        return {column: found.value for column, found in self.values.items()}


class Evaluation:
    """The measures that a config chooses: each metric of `metric`, or those of the evaluation, on each of `eval`.

    Raises UserError if an evaluation has no items or two with one id, or if a metric needs a label that is not there.
    """

    def __init__(self, measures: Sequence[Measure], *, counts_tokens: bool = False) -> None:
        self.measures = measures
        self.counts_tokens = counts_tokens  # True if a prompt program answers: what it asks the model is a value, too

    @classmethod
    def of(cls, config: Mapping[str, Any], access: Access) -> "Evaluation | None":
        """Build what the config chooses; None if it chooses no evaluation."""
        chosen, asked = config.get("eval") or {}, config.get("metric") or {}
        if not chosen:
            if asked:
                raise UserError(
                    f"metric={next(iter(asked))} has nothing to measure: no evaluation is chosen\n"
                    "    try: eval=[addition]; `ablatio list eval` shows all"
                )
            return None
        measures = []
        for name, knobs in chosen.items():
            part = kinds.evals.build(name, knobs or {}, texts=access.texts)
            items, shown = _items(name, part), str(getattr(part, "title", name))
            examples = examples_of(name, knobs or {}, part, access.texts) if config.get("prompt") else []
            for metric in asked or getattr(part, "measured_by", kinds.evals[name].facts["measured_by"]):
                measure = _measure(shown, items, metric, asked.get(metric) or {}, access)
                measures.append(replace(measure, examples=examples, read=getattr(part, "read", None)))
        return cls(measures, counts_tokens=answers_itself(config))

    @property
    def columns(self) -> list[str]:
        """Columns of metrics.csv."""
        return [*(column for measure in self.measures for column in measure.columns), *self._token_columns]

    @property
    def _token_columns(self) -> list[str]:
        names = dict.fromkeys(measure.on for measure in self.measures) if self.counts_tokens else {}
        return [f"{PREFIX}/{on}/{name}" for on in names for name in TOKENS]

    @property
    def digest(self) -> str:
        """sha256 of all items: of a file of questions that was edited it is another one."""
        total = hashlib.sha256()
        for measure in self.measures:
            for item in measure.items:
                total.update(f"{measure.on} {measure.entry.name} {item!r}\n".encode("utf-8", "surrogatepass"))
        return total.hexdigest()

    def better(self, column: str) -> str:
        """Return `lower` or `higher`: which values of a score are better.  Raises UserError for an unknown column."""
        for measure in self.measures:
            if column in measure.columns:
                return str(measure.entry.facts["better"])
        if column in self._token_columns:
            return "lower"
        raise UserError(
            f"there is no score {column}{did_you_mean(column, self.columns)}\n    try: one of {', '.join(self.columns)}"
        )

    def run(self, respond: Respond, prompting: Prompting | None = None) -> EvaluationResult:
        """Ask everything at once, and compute all values.

        prompting  how the questions are put to the model; None: as the items say
        """
        prompted = [_prompted(m, prompting) for m in self.measures]
        asked = [[list(m.metric.requests(item)) for item in p] for m, p in zip(self.measures, prompted, strict=True)]
        values: dict[str, Measured] = {}
        by_program = prompting is not None and not prompting.writes
        if prompting is not None and by_program:
            respond = self._by_program(prompting, asked, values)
        responses = iter(respond([r for of_measure in asked for of_item in of_measure for r in of_item]))
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for measure, items, of_measure in zip(self.measures, prompted, asked, strict=True):
            answered = [[next(responses) for _ in of_item] for of_item in of_measure]
            # A program that votes has read the answers already.
            counted = answered if by_program else [measure.readings(of_item) for of_item in answered]
            scored = measure.score(counted, items)
            found, errors = measure.summary(scored), measure.errors(scored)
            for name in measure.names:
                error = errors[name] if math.isfinite(errors[name]) else None
                better = str(measure.entry.facts["better"])
                values[measure.column(name)] = Measured(found[name], error, len(scored), better)
            for item, one, told in zip(measure.items, scored, answered, strict=True):
                row = rows.setdefault((measure.on, item.id), _row(measure.on, item))
                texts = [text for response in told for text in response.texts[:1]]
                row |= {"answer": texts[0]} if texts else {}
                row["values"] |= {measure.column(n): v for n, v in one.values.items() if n in measure.names}
        return EvaluationResult(values, [*rows.values()])

    def _by_program(
        self, prompting: Prompting, asked: Sequence[Sequence[Sequence[Request]]], values: dict[str, Measured]
    ) -> Respond:
        """Responses by a prompt program that answers by itself; each evaluation is asked once.

        Adds the tokens that the program read and generated to `values`, as means over the items.
        """
        known: dict[Request, Response] = {}
        done = set[str]()
        for measure, of_measure in zip(self.measures, asked, strict=True):
            prompting.refuse_others(measure.entry.name, [r for of_item in of_measure for r in of_item])
            if measure.on not in done:
                found, usage = prompting.answered(measure.items, measure.examples)
                known |= found
                done.add(measure.on)
                count = len(measure.items)
                for name, tokens in zip(TOKENS, (usage.read, usage.generated), strict=True):
                    values[f"{PREFIX}/{measure.on}/{name}"] = Measured(tokens / count, None, count, "lower")
        return lambda requests: [known[request] for request in requests]


def _prompted(measure: Measure, prompting: Prompting | None) -> Sequence[Item]:
    """The items as they are asked."""
    if prompting is None or not prompting.writes:
        return measure.items
    return prompting.written(measure.items, measure.examples)


def evaluation_of(config: Mapping[str, Any], *, code: bool = False) -> Evaluation | None:
    """Build the evaluation of a run and check its `score`; None if it has none.

    code  True if metrics may run programs that the model wrote

    Raises UserError for what `Evaluation` refuses, and for a `score` that the run does not have.
    """
    found = Evaluation.of(config, Access.of(config, code=code))
    name, own = config.get("score"), TaskScores.of(config).columns
    if name is not None and name not in [*own, *(found.columns if found else ())]:
        known = [*own, *(found.columns if found else ())]
        raise UserError(
            f"score={name}: this run has no such score{did_you_mean(name, known)}\n    try: one of {', '.join(known)}"
        )
    return found


def _items(name: str, part: Eval) -> list[Item]:
    items, seen = list(part.items()), set[str]()
    if not items:
        raise UserError(f"eval={name} has no items\n    try: ablatio show eval={name}")
    for item in items:
        if item.id in seen:
            raise UserError(f"eval={name} has two items with the id {item.id}; expected unique ids\n"
                            f"    try: ablatio show eval={name}")  # fmt: skip
        seen.add(item.id)
    return items


def _measure(on: str, items: Sequence[Item], name: str, knobs: Mapping[str, Any], access: Access) -> Measure:
    entry = kinds.metrics[name]
    if entry.facts["runs_code"] and not access.code:
        raise UserError(
            f"metric={name} runs programs that the model wrote, which must be allowed on the command line\n"
            f"    try: ablatio evaluate RUN eval={on} metric={name} --run-code"
        )
    metric = built(entry, kinds.metrics.build, knobs, texts=access.texts, open_run=access.open_run)
    measure = Measure(on, entry, metric, items)
    measure.check_labels()
    measure.check_questions()
    return measure


def _row(on: str, item: Item) -> dict[str, Any]:
    row = {"eval": on, "id": item.id, "item": item.digest, "cluster": item.cluster, "prompt": item.prompt[-SHOWN:]}
    return row | ({} if item.correct is None else {"target": item.correct[:SHOWN]}) | {"values": {}}


def described(values: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each value as in summary.json: `eval/addition/accuracy  0.42 ± 0.02  200 items`."""
    width = max(map(len, values), default=0)
    for column, found in values.items():
        error = "" if found["error"] is None else f" ± {found['error']:.4f}"
        yield f"{column:<{width}}  {found['value']:.4f}{error}  {found['items']} items"
