"""Values of a run's scheduled settings at each step; rows and tokens of each step follow from them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ablatio.config.schema import settings_of
from ablatio.data.order import RowPlan
from ablatio.model.cost.parameters import row_length
from ablatio.registry.value_schedules import ValueSchedule

BATCH, LENGTH = "train.batch_size", "data.length"


@dataclass(frozen=True, slots=True)
class _Shape:
    """Rows per batch and tokens per row of a step: scheduled, from a stabilizer's ramp, or constant.

    ramp  stabilizer with `batch_rows`, or None
    """

    rows: int | ValueSchedule
    length: int | ValueSchedule
    total: int
    ramp: Any = None

    def __call__(self, step: int, tokens: int) -> tuple[int, int]:
        rows, length = (
            int(x.at(step, self.total, tokens)) if isinstance(x, ValueSchedule) else x for x in (self.rows, self.length)
        )
        if self.ramp is not None:
            rows = min(rows, max(1, int(self.ramp.batch_rows(tokens, rows))))
        return rows, length


class Timeline:
    """The scheduled settings of a run as functions of the step; a run without schedules has an empty one.

    config     of the run, with the largest value of each schedule
    schedules  by the path of their setting
    """

    def __init__(self, config: Mapping[str, Any], schedules: Mapping[str, ValueSchedule]) -> None:
        self.config, self.schedules, self.total = config, dict(schedules), int(config["train"]["steps"])

    @cached_property
    def plan(self) -> RowPlan:
        """Rows and row lengths of each batch, without a stabilizer's ramp."""
        return self.plan_with(None)

    def plan_with(self, ramp: Any) -> RowPlan:
        """Rows and row lengths of each batch; ramp: stabilizer with `batch_rows`, or None."""
        train = self.config["train"]
        rows, length = (
            self.schedules.get(BATCH, train["batch_size"]),
            self.schedules.get(LENGTH, row_length(self.config)),
        )
        constant = ramp is None and not self.schedules.keys() & {BATCH, LENGTH}
        shape = None if constant else _Shape(rows, length, self.total, ramp)
        return RowPlan(train["batch_size"], train["accumulate"], shape)

    def values(self, step: int) -> dict[str, Any]:
        """Values in step number `step`, from 0; after the last step those of the last."""
        step = min(max(0, step), self.total - 1)
        tokens = self.plan.tokens(step, row_length(self.config)) if self._counts_tokens else 0
        return {path: schedule.at(step, self.total, tokens) for path, schedule in self.schedules.items()}

    @cached_property
    def _counts_tokens(self) -> bool:
        return any(schedule.unit == "tokens" for schedule in self.schedules.values())

    def config_at(self, step: int) -> dict[str, Any]:
        """The config with the values of step number `step`: the model as that step trains it."""
        return with_values(self.config, self.values(step))

    def stretches(self, steps: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Split the first `steps` steps where a value changes on which FLOPs depend: (first, end, these values)."""
        known = settings_of(self.config)
        paths = [path for path in self.schedules if known[path].flops]
        first, values = 0, dict[str, Any]()
        for step in range(steps if paths else 0):
            all_values = self.values(step)
            now = {path: all_values[path] for path in paths}
            if step and now != values:
                yield first, step, values
                first = step
            values = now
        yield first, steps, values


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the config with other values, by the paths of their settings."""
    copy = dict(config)
    for path, value in values.items():
        *sections, name = path.split(".")
        node = copy
        for section in sections:
            node[section] = node = dict(node[section])
        node[name] = list(value) if isinstance(value, tuple) else value
    return copy
