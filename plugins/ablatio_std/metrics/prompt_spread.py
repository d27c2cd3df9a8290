"""How much a measure depends on the wording of the prompt."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from ablatio import OptionOf, metrics
from ablatio.data.items import Item, Request, Response, Scored
from ablatio.errors import UserError
from ablatio.model.evaluation.measure import Agreement

PLACE = "{prompt}"
PROMPTS = ("{prompt}", "Question: {prompt}\nAnswer:", "{prompt}\nThe answer is", "Q: {prompt}\nA:")


@metrics.register("prompt_spread", paper="arXiv:2310.11324")
class PromptSpread:
    """Largest minus smallest mean of a metric over several forms of the prompt.

    mean, worst, best  of the metric over the forms
    """

    labels, scores, better = (), ("spread", "mean", "worst", "best"), "lower"
    bounds = (0.0, None)

    def __init__(
        self,
        *,
        metric: Annotated[str, OptionOf("metric"), "metric whose values are compared"] = "accuracy",
        prompts: Annotated[tuple[str, ...], "forms of the prompt; {prompt} stands for the item's own"] = PROMPTS,
    ) -> None:
        entry = metrics[metric]
        if set(entry.wiring) - {"answer", "target"} or entry.facts["runs_code"] or metric == "prompt_spread":
            raise UserError(
                f"metric.prompt_spread.metric={metric}: expected a metric of the model's responses alone\n"
                "    try: metric.prompt_spread.metric=accuracy"
            )
        if len(prompts) < 2 or any(PLACE not in form for form in prompts):
            raise UserError(
                f"metric.prompt_spread.prompts={list(prompts)}: expected at least two forms, each with {PLACE}\n"
                "    try: leave it out, for four usual forms"
            )
        made: Any = metrics.build(metric)
        self.metric: Any = Agreement(metric, made) if entry.wiring == ("answer", "target") else made
        self.main = (tuple(entry.facts["scores"]) or (metric,))[0]
        self.needed, self.prompts = tuple(entry.facts["labels"]), prompts

    def _forms(self, item: Item) -> list[Item]:
        return [replace(item, prompt=form.replace(PLACE, item.prompt)) for form in self.prompts]

    def requests(self, item: Item) -> list[Request]:
        if lacking := [label for label in self.needed if not item.has(label)]:
            raise UserError(
                f"metric=prompt_spread: its metric needs `{lacking[0]}`, which item {item.id} does not have\n"
                "    try: metric.prompt_spread.metric=accuracy"
            )
        return [request for form in self._forms(item) for request in self.metric.requests(form)]

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        values, rest = list[float](), list(responses)
        for form in self._forms(item):
            size = len(self.metric.requests(form))
            values.append(float(self.metric.score(form, rest[:size])[self.main]))
            rest = rest[size:]
        return _spread(values) | {f"form{i}": value for i, value in enumerate(values)}

    def summary(self, scored: Sequence[Scored]) -> dict[str, float]:
        names = [f"form{i}" for i in range(len(self.prompts))]
        # The spread of the means over items, not the mean of the items' spreads, which is large for any noisy item.
        return _spread([math.fsum(s.values[name] for s in scored) / len(scored) for name in names])


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, high = min(values), max(values)
    return {"spread": high - low, "mean": math.fsum(values) / len(values), "worst": low, "best": high}
