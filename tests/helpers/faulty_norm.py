"""File of parts (`parts=`) with a norm that does something bad on one rank, once: `norm.fault=kill norm.at=save`.

It is RMSNorm otherwise.  The file that FAULT_MARK names is made at the time of the fault.
"""

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from ablatio import Positive, norms
from ablatio.errors import UserError

MARK = "FAULT_MARK"
Fault = Literal["none", "kill", "hang", "nan_loss", "nan_gradient", "user_error", "memory", "bug", "disk"]
Place = Literal["start", "train", "validate", "save", "write"]


@norms.register("faulty")
class FaultyNorm(nn.Module):
    """RMSNorm with a fault on rank `on`.

    at    start: when the model is made; train: in training step `step` (from 1); validate: in the validation after it;
          save: when the weights are collected for the checkpoint after it; write: when its files are renamed
    """

    def __init__(
        self,
        d_model: int,
        *,
        fault: Fault = "none",
        on: int = 0,
        at: Place = "train",
        step: Annotated[int, Positive] = 5,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.fault, self.at, self.step, self.steps = fault, at, step, 0
        self.here = fault != "none" and os.environ.get("RANK") == str(on)
        self.register_buffer("scale", torch.ones(()), persistent=False)  # its hook is called when weights are saved
        if self.here and at == "start":
            act(fault)
        if self.here and at == "write":
            sys.addaudithook(self._audit)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.rms_norm(x, x.shape[-1:], self.weight)
        if not self.here or x.device.type == "meta":
            return y
        if not self.training:
            if self.at == "validate" and self.steps >= self.step:
                act(self.fault)
            return y
        self.steps += 1
        if self.at == "train" and self.steps == self.step:
            return spoilt(y, self.fault)
        return y

    def _save_to_state_dict(self, *arguments: Any, **options: Any) -> None:
        if self.here and self.at == "save" and self.steps >= self.step:
            act(self.fault)
        super()._save_to_state_dict(*arguments, **options)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and self.steps >= self.step and "checkpoints" in str(arguments[1]):
            act(self.fault)


def spoilt(y: Tensor, fault: Fault) -> Tensor:
    """The output, spoilt by the fault."""
    if fault == "nan_loss":
        mark()
        return y * float("nan")
    if fault == "nan_gradient":
        mark()
        y.register_hook(lambda gradient: gradient * float("nan"))
        return y
    act(fault)
    return y


def act(fault: Fault) -> None:
    """Do what the fault says, in this process."""
    mark()
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "user_error":
        raise UserError("this rank has another file than the others\n    try: copy it to all machines")
    elif fault == "memory":
        raise torch.OutOfMemoryError("tried to allocate 80.00 GiB")
    elif fault == "bug":
        raise ZeroDivisionError("division by zero in a part")
    elif fault == "disk":  # refuses large files as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))


def mark() -> None:
    """Note that the fault has come."""
    Path(os.environ[MARK]).touch()
