"""Learning rate of each parameter group: base rate x factor of the init and of the role x schedule."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ablatio.config.sections import OWN_SETTINGS
from ablatio.model.builder import PartChoice
from ablatio.model.language_model import LanguageModel
from ablatio.model.parameter_roles import ROLES, ParameterInfo, ProductRate, Rate, Role, describe, stood_for
from ablatio.registry import kinds
from ablatio.registry.registry import ContractError

Factor = Callable[[int, int, Sequence[float]], float]


def factor_of(choice: PartChoice) -> Factor:
    """Return a schedule as factor(step, total steps, held-out losses so far), whether it watches the losses or not."""
    schedule: Any = kinds.schedules.build(choice.name, choice.knobs)
    if kinds.schedules[choice.name].facts["watches"]:
        return lambda step, total, scores: float(schedule(step, total, scores))
    return lambda step, total, scores: float(schedule(step, total))


def own_settings(roles: Mapping[str, Any]) -> dict[Role, dict[str, Any]]:
    """Settings of the optimizer that a role has instead of the common ones: {"head": {"betas": (0.8, 0.95)}}."""
    found: dict[Role, dict[str, Any]] = {
        role: {name: roles.get(f"{role}_{name}") for name in OWN_SETTINGS} for role in ROLES
    }
    return {
        role: {name: tuple(v) if isinstance(v, list) else v for name, v in own.items() if v is not None}
        for role, own in found.items()
    }


class LearningRates:
    """Learning rates of all parameter groups in each step.

    config      of the run; its `roles` section gives factors and schedules by role
    init_rate   the init's factor of a parameter (muP), or None
    rate        attribute: constant factor of a parameter, init's times role's; None if all are 1
    """

    def __init__(self, config: Mapping[str, Any], init_rate: Rate | None) -> None:
        roles = config["roles"]
        by_role = {role: float(roles[f"{role}_rate"]) for role in ROLES}
        self.rate = init_rate
        if any(factor != 1.0 for factor in by_role.values()):

            def of_role(info: ParameterInfo) -> float:
                return by_role[info.role]

            self.rate = ProductRate(of_role, init_rate) if init_rate else of_role
        plain = PartChoice.of(config["schedule"])
        self._schedules = {role: _own(roles[f"{role}_schedule"], plain) for role in ROLES}
        self._factors = {choice.name: factor_of(choice) for choice in self._schedules.values()}
        self._groups: list[str] = []

    def bind(self, optimizer: torch.optim.Optimizer, model: LanguageModel) -> None:
        """Find the schedule of each of the optimizer's groups; must be called before `set`.

        Raises ContractError if the optimizer merged groups with different schedules.
        """
        role = {id(parameter): info.role for parameter, info in describe(model)}
        self._groups = []
        for group in optimizer.param_groups:
            names = {self._schedules[role[id(stood_for(p))]].name for p in group["params"]} or {
                self._schedules["matrix"].name
            }
            if len(names) > 1:
                raise ContractError(
                    f"{type(optimizer).__name__} merges groups of parameters whose schedules are {sorted(names)}; "
                    "an optimizer keeps the groups that it is given, or splits them"
                )
            self._groups.append(names.pop())

    def set(self, optimizer: torch.optim.Optimizer, step: int, total: int, scores: Sequence[float]) -> None:
        """Set the rate of each group for step number `step` (from 0) of `total`."""
        factors = {name: factor(step, total, scores) for name, factor in self._factors.items()}
        for group, name in zip(optimizer.param_groups, self._groups, strict=True):
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factors[name]


def _own(name: str | None, plain: PartChoice) -> PartChoice:
    """Return the schedule of a role: the run's, or the named one with those of the run's knobs that it also has."""
    if name is None or name == plain.name:
        return plain
    known = {knob.name for knob in kinds.schedules[name].knobs}
    return PartChoice(name, {k: v for k, v in plain.knobs.items() if k in known})
