"""Lightning's precision plugins, and the loss scale of 16-bit floats."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.optim import Optimizer

from ablatio.errors import Diverged
from ablatio.training.device import Machine

INITIAL_SCALE = 2.0**16
LEAST_SCALE = 1e-4  # below it the gradients of some 30 steps in a row were not finite: no scale would help
SCALE = "train/loss_scale"


def precision_settings(machine: Machine) -> dict[str, Any]:
    """Arguments of `pl.Trainer` for the machine's precision; plugins come as a list."""
    if machine.precision == "16":
        return {"plugins": [LossScaledPrecision(machine.device)]}
    return {"precision": {"bf16": "bf16-mixed"}.get(machine.precision, "32-true"), "plugins": []}


def precision_columns(machine: Machine) -> list[str]:
    """Names of the metrics that a precision adds."""
    return [SCALE] if machine.precision == "16" else []


class LossScaledPrecision(MixedPrecision):
    """16-bit autocast with a dynamic loss scale (arXiv:1710.03740), on the CPU and on a GPU.

    The loss is multiplied by the scale s before the backward pass, and the gradients are divided by s before anything
    reads them: clipping, stabilizers, task and optimizer see unscaled gradients, also with torch's fused optimizers,
    which Lightning leaves to unscale inside their own step.  If a gradient is not finite, s is halved and the step is
    left out: `module.overflowed` tells the module, which raises SkipStep.  After 2000 finite steps s is doubled.  The
    decision reads one number from the device in each step.

    Checkpoints hold the scale.  Raises Diverged if s falls below LEAST_SCALE.
    """

    def __init__(self, device: str) -> None:
        super().__init__("16-mixed", device, torch.amp.GradScaler(device, init_scale=INITIAL_SCALE))

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Optimizer, model: Any, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        """Run the closure (forward and backward pass), unscale the gradients, and step unless they overflowed."""
        closure()
        scaler: Any = self.scaler
        before = scaler.get_scale()
        scaler.unscale_(optimizer)
        scaler.update()
        scale = scaler.get_scale()
        if scale < LEAST_SCALE:
            raise Diverged(
                f"the run diverged: with trainer.precision=16 the loss scale fell to {scale:.3g}, because the "
                "gradients of many steps in a row were not finite\n    try: trainer.precision=bf16"
            )
        model.overflowed = scale < before
        model.metrics[SCALE] = torch.tensor(scale)
        self._after_closure(model, optimizer)
        return optimizer.step(**kwargs)
