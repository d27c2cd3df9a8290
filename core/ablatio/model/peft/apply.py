"""Apply quantization and a PEFT method to a model, so that only some of its weights are trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ablatio.errors import UserError
from ablatio.model.builder import PartChoice
from ablatio.model.freezing import freeze
from ablatio.model.language_model import LanguageModel
from ablatio.model.parameter_roles import ProductRate, Rate
from ablatio.registry import kinds
from ablatio.registry.kinds import Peft
from ablatio.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class AppliedPeft:
    """Result of applying a PEFT method to a model.

    part       the method, for its hooks before and after a step
    trainable  number of trainable parameters
    total      number of all parameters, including quantized ones
    bytes      memory of all weights
    quantization  the part that quantized the weights
    """

    part: Peft
    trainable: int
    total: int
    bytes: int
    quantization: Any = None

    def rate(self, of_init: Rate | None) -> Rate | None:
        """Combine the learning-rate factors of the init and of the method by their product."""
        own: Rate | None = getattr(self.part, "rate", None)
        if own is None or of_init is None:
            return own or of_init
        return ProductRate(own, of_init)

    def to_json(self) -> dict[str, int]:
        """Return the sizes for the run's summary."""
        return {"trainable": self.trainable, "total": self.total, "bytes": self.bytes}


def is_tuned(config: Mapping[str, Any]) -> bool:
    """True if the config has a quantization or a PEFT method, so that a run's weights differ from its model's."""
    return any(_choice(config, registry).name != registry.default for registry in (kinds.quantizations, kinds.pefts))


def tune(
    model: nn.Module, config: Mapping[str, Any], seed: int, feed: Callable[[int], None] | None = None
) -> AppliedPeft:
    """Apply the config's quantization, its PEFT method and `freeze` to a model that holds its base weights.

    feed: runs the model on a number of training batches, for a quantization that is calibrated; None if the quantized
    weights will be loaded
    """
    quantization, peft = _choice(config, kinds.quantizations), _choice(config, kinds.pefts)
    quantizer = kinds.quantizations.build(quantization.name, quantization.knobs)
    if feed is not None and hasattr(quantizer, "calibrate"):
        quantizer.calibrate(model, feed)
    quantizer.apply(model)
    found = replace(apply_peft(model, kinds.pefts.build(peft.name, peft.knobs), seed), quantization=quantizer)
    if not (patterns := config.get("freeze")):
        return found
    freeze(model, patterns)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not trainable:
        raise UserError("all weights are frozen, so nothing is trained\n    try: a shorter list in freeze=")
    return replace(found, trainable=trainable)


def trains_all(config: Mapping[str, Any]) -> bool:
    """True if all weights are trained as they are: no quantization, no PEFT method, nothing frozen."""
    return not (is_tuned(config) or config.get("freeze"))


def _choice(config: Mapping[str, Any], registry: Registry[Any]) -> PartChoice:
    return PartChoice.of(config.get(registry.kind) or {"name": registry.default})


def apply_peft(model: nn.Module, part: Peft, seed: int) -> AppliedPeft:
    """Apply a PEFT method to the model in place; its new weights are initialized from `seed`."""
    if hasattr(part, "prepare"):
        part.prepare(model)
    part.apply(model, seed)
    if isinstance(model, LanguageModel):
        model.shared_prefix = model.shared_prefix and not getattr(part, "batch_dependent", False)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()  # by id: shared tensors count once
    # `coded`: number of weights that a quantized layer stores as codes, which are buffers and no parameters.
    weights = sum(p.numel() for p in model.parameters()) + sum(getattr(m, "coded", 0) for m in model.modules())
    return AppliedPeft(part, trainable, weights, sum(t.numel() * t.element_size() for t in held))


def peak_memory() -> int:
    """Return the peak memory of this process in bytes: of the GPU if it was used, else the resident set size."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB
