"""Weights that do not follow their own gradients: frozen ones, and a head that is tied to the embedding for a while."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch

from ablatio.errors import UserError
from ablatio.model.language_model import LanguageModel
from ablatio.model.parameter_roles import ParameterInfo, describe

FROZEN, TIED = "roles.frozen", "model.tied"


class HeldWeights:
    """Frozen weights, and the head while it is tied to the embedding; both may change during training.

    frozen  roles and layers whose weights keep their values: their gradients are dropped before the step
    tied    True: the head equals the embedding, which gets both gradients.  When this ends, the head continues from the
            embedding's weights and optimizer state.  The model must have been built with an untied head
    """

    def __init__(self, model: LanguageModel, frozen: Iterable[str] = (), *, unties: bool = False) -> None:
        """`unties`: the head is tied at first and untied later."""
        self._tied, self._unties = False, unties
        self.head, self.embedding = model.lm_head.weight, model.model.embed_tokens.weight
        self._model = model
        # By name: a strategy puts parts of the weights in the place of the parameters.
        self._known = {info.name: names_of(info) for _, info in describe(model)}
        self.frozen = tuple(frozen)

    @classmethod
    def of(cls, config: Mapping[str, Any], scheduled: Iterable[str], model: LanguageModel) -> "HeldWeights | None":
        """Return those of a run, None if all of its weights always train; scheduled: paths of scheduled settings.

        Raises UserError if no weight is trained in any step.
        """
        frozen = config["roles"]["frozen"]
        changing = {FROZEN, TIED} & {*scheduled}
        if not (frozen or changing):
            return None
        held = cls(model, frozen, unties=TIED in changing)
        if FROZEN not in changing and not held.trained:
            raise UserError("all weights are frozen, so nothing is trained\n    try: a shorter list in roles.frozen=")
        return held

    @property
    def trained(self) -> bool:
        """True if a weight is neither frozen here nor by other means (`freeze=`, a PEFT method)."""
        kept = {*self._kept}
        return any(self._model.get_parameter(name).requires_grad and name not in kept for name in self._known)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Roles and layers whose weights keep their values."""
        return self._frozen

    @frozen.setter
    def frozen(self, names: Iterable[str]) -> None:
        self._frozen = tuple(names)
        self._kept = [name for name, own in self._known.items() if own & {*self._frozen}]

    @property
    def tied(self) -> bool:
        """True if the head equals the embedding now."""
        return self._tied

    @tied.setter
    def tied(self, value: bool) -> None:
        self._tied = value
        self._copy_to_head()

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of frozen weights; add that of a tied head to the embedding's."""
        if self._tied and self.head.grad is not None:
            own = self.embedding.grad
            self.embedding.grad = self.head.grad if own is None else own + self.head.grad
            self.head.grad = None
        elif self._untied_now(optimizer):
            optimizer.state[self.head] = deepcopy(optimizer.state[self.embedding])
        for name in self._kept:
            self._model.get_parameter(name).grad = None

    def _untied_now(self, optimizer: torch.optim.Optimizer) -> bool:
        """True if the head has no state yet, as it was tied until now, and is trained from here on."""
        state = optimizer.state
        return self._unties and self.head.requires_grad and not state.get(self.head) and bool(state.get(self.embedding))

    def after_step(self) -> None:
        """Make a tied head equal to the embedding again."""
        self._copy_to_head()

    @torch.no_grad()
    def _copy_to_head(self) -> None:
        if self._tied:
            self.head.copy_(self.embedding)


def names_of(info: ParameterInfo) -> set[str]:
    """Names by which `roles.frozen` may refer to a parameter: its role, and its layer."""
    if info.layer is None:
        return {info.role}
    return {info.role, f"{'encoder.' if info.name.startswith('encoder.') else ''}layers.{info.layer}"}
