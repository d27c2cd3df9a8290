"""Set the scheduled values on the model, the optimizer and the parts before each step."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch

from ablatio.model.language_model import LanguageModel
from ablatio.registry.registry import REGISTRIES, ContractError
from ablatio.registry.value_schedules import COLUMN
from ablatio.training.timeline import BATCH, LENGTH, Timeline

OPTIMIZER = "optimizer"
Setter = Callable[[Any], None]


class ScheduledSettings:
    """The scheduled settings of a run and the objects that they are set on.

    timeline  values of each step
    model     before quantization and peft, whose modules keep settings of their own
    """

    def __init__(self, timeline: Timeline, model: LanguageModel) -> None:
        self.timeline, self.now = timeline, dict[str, Any]()
        self._dropouts = [m for m in model.modules() if type(getattr(m, "dropout", None)) is float]
        self._model, self._setters = model, dict[str, Setter]()

    def __bool__(self) -> bool:
        return bool(self.timeline.schedules)

    def sets(self, sections: Collection[str]) -> bool:
        """True if a setting of one of these sections changes."""
        return any(path.split(".", 1)[0] in sections for path in self.timeline.schedules)

    def connect(self, parts: Mapping[str, list[Any]]) -> None:
        """Find the objects behind the settings.

        parts  objects outside of the model, by the path of their knobs ("objective", "stabilizer.clip")

        Raises ContractError if a part declares a knob schedulable and has no attribute of its name.
        """
        for path in self.timeline.schedules:
            section, name = path.rsplit(".", 1)
            if path in (BATCH, LENGTH) or section == OPTIMIZER:
                continue  # rows are made by the plan, and the optimizer does not exist yet
            if path == "model.dropout":
                found: list[Any] = self._dropouts
            elif path == "train.label_smoothing":
                found, name = [self._model], "smoothing"
            else:
                built: list[Any] = [m for m in self._model.modules() if getattr(m, "built_as", "") == section]
                # Not the layers that set the knob themselves, or whose option has an attribute of its name only.
                in_model = [m for m in built if name in getattr(m, "scheduled_knobs", (name,))]
                found = [part for part in (*parts.get(section, ()), *in_model) if hasattr(part, name)]
            if not found:
                raise ContractError(
                    f"{path} is declared schedulable, but nothing that {section} builds has the attribute `{name}`"
                )
            self._setters[path] = _on_attribute(found, name)

    def bind(self, optimizer: torch.optim.Optimizer) -> None:
        """Connect the schedules of the optimizer's knobs, after it is built and before its state is loaded.

        A group whose value differs from the knob's, such as the weight decay 0 of vectors, keeps its ratio to it.
        """
        for path in self.timeline.schedules:
            section, name = path.rsplit(".", 1)
            if section == OPTIMIZER:
                built = self.timeline.config[OPTIMIZER][name]
                self._setters[path] = on_groups(optimizer, name, tuple(built) if isinstance(built, list) else built)

    def set(self, step: int) -> None:
        """Set the values of step number `step`, from 0; an optimizer that does not exist yet is left out."""
        self.now = self.timeline.values(step)
        for path, setter in self._setters.items():
            setter(self.now[path])

    def metrics(self) -> dict[str, float]:
        """Return the current values for the log, each number of a tuple under its own name."""
        return {name: float(value) for path, found in self.now.items() for name, value in columns(path, found)}

    @property
    def columns(self) -> list[str]:
        """Names of the logged values."""
        return [name for path, found in self.timeline.values(0).items() for name, _ in columns(path, found)]


def columns(path: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield (column, number) for the value of a setting; words and lists of words have no number."""
    if isinstance(value, tuple):
        for i, number in enumerate(value):
            yield from columns(f"{path}.{i}", number)
    elif not isinstance(value, str):
        yield f"{COLUMN}{path}", float(value)


def parts_of(parts: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Parts by kind as lists: {"stabilizer.clip": [part]} for a kind of which several are chosen."""
    found = dict[str, list[Any]]()
    for kind, part in parts.items():
        if kind in REGISTRIES and REGISTRIES[kind].multiple:
            found |= {f"{kind}.{name}": [one] for name, one in part.items()}
        else:
            found[kind] = list(part) if isinstance(part, list) else [part]
    return found


def _on_attribute(objects: list[Any], name: str) -> Setter:
    def set_(value: Any) -> None:
        for one in objects:
            setattr(one, name, value)

    return set_


def on_groups(optimizer: torch.optim.Optimizer, name: str, built: Any) -> Setter:
    """Setter of a knob in all parameter groups; built: the value with which the optimizer was built."""
    if missing := [group for group in optimizer.param_groups if name not in group]:
        raise ContractError(
            f"optimizer.{name} is declared schedulable, but {len(missing)} of the parameter groups of "
            f"{type(optimizer).__name__} have no `{name}`"
        )
    own = [group[name] for group in optimizer.param_groups]

    def set_(value: Any) -> None:
        for group, first in zip(optimizer.param_groups, own, strict=True):
            same = first == built or isinstance(first, tuple | list | bool)
            group[name] = value if same else first * (value / built) if built else first

    return set_
