"""From a model to one of which few weights train: quantisation, then the adapters, then what the optimizer gets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ablatio.model.build import PartChoice
from ablatio.model.language_model import LanguageModel
from ablatio.model.parameter_roles import Rate
from ablatio.registry import kinds
from ablatio.registry.kinds import Peft
from ablatio.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class AppliedPeft:
    """What came of a model.

    part       the method, for its hooks before and after a step
    trainable  parameters that train
    total      of all parameters, and of the codes that stand for some
    bytes      that the weights take
    """

    part: Peft
    trainable: int
    total: int
    bytes: int

    def rate(self, of_init: Rate | None) -> Rate | None:
        """The init's factor on the learning rate times the method's."""
        own: Rate | None = getattr(self.part, "rate", None)
        if own is None or of_init is None:
            return own or of_init
        return lambda info: own(info) * of_init(info)

    def to_json(self) -> dict[str, int]:
        return {"trainable": self.trainable, "total": self.total, "bytes": self.bytes}


def is_tuned(config: Mapping[str, Any]) -> bool:
    """Whether the weights of such a run are more than those of its model."""
    return any(_choice(config, registry).name != registry.default for registry in (kinds.quantizations, kinds.pefts))


def tune(model: nn.Module, config: Mapping[str, Any], seed: int) -> AppliedPeft:
    """Apply the config's quantization and peft to a model that holds its base weights."""
    quantization, peft = _choice(config, kinds.quantizations), _choice(config, kinds.pefts)
    kinds.quantizations.build(quantization.name, quantization.knobs).apply(model)
    return apply_peft(model, kinds.pefts.build(peft.name, peft.knobs), seed)


def _choice(config: Mapping[str, Any], registry: Registry[Any]) -> PartChoice:
    return PartChoice.of(config.get(registry.kind) or {"name": registry.default})


def apply_peft(model: nn.Module, part: Peft, seed: int) -> AppliedPeft:
    if hasattr(part, "prepare"):
        part.prepare(model)
    part.apply(model, seed)
    if isinstance(model, LanguageModel):
        model.shared_prefix = model.shared_prefix and not getattr(part, "batch_dependent", False)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    weights = sum(p.numel() for p in model.parameters()) + sum(getattr(m, "coded", 0) for m in model.modules())
    return AppliedPeft(part, trainable, weights, sum(t.numel() * t.element_size() for t in held))


def peak_memory() -> int:
    """Bytes that this process has held at most, on the GPU where there is one."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    import resource
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
