"""Lightning's Trainer as a run's config says, and nothing else.

Lightning fills settings that it is not given from variables (PL_TRAINER_GRADIENT_CLIP_VAL=0.1), and adds callbacks of
every installed package that has an entry point for them: neither stands in a config, and both would change the arms of
a study without a trace.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

_OURS: dict[str, Any] = {  # what a run does itself, and Lightning shall not
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 0,
    "use_distributed_sampler": False,
}


class RunTrainer(pl.Trainer):
    """`pl.Trainer` on one device, from the settings that it is given and Lightning's own defaults alone.

    Logs, checkpoints, progress and validation are the training loop's own, so Lightning's are off.
    """

    # Lightning reads the variable PL_<CLASS>_<PARAMETER> for each parameter of the class: here it finds none.
    __signature__ = inspect.Signature()

    def __init__(self, *, callbacks: Sequence[pl.Callback] = (), **settings: Any) -> None:
        super().__init__(devices=1, callbacks=list(callbacks), **_OURS, **settings)
        self.callbacks = list(callbacks)  # without those that Lightning found in installed packages


def make_trainer(**settings: Any) -> pl.Trainer:
    """The trainer of a run."""
    return RunTrainer(**settings)


class _Idle(pl.LightningModule):
    """A task that learns nothing: a backward pass would start threads of autograd, and a fork loses them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, index: int) -> None:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


def fit_nothing() -> None:
    """Let Lightning find out what it finds out once per process, 7 ms of each run that is forked from this one."""
    trainer = make_trainer(max_steps=1, max_epochs=-1, accelerator="cpu")
    trainer.fit(_Idle(), DataLoader(TensorDataset(torch.zeros(1)), batch_size=None))
