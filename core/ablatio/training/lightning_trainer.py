"""Lightning's Trainer, configured by the run's config alone.

Lightning also reads settings from environment variables (PL_TRAINER_GRADIENT_CLIP_VAL=0.1) and adds callbacks from
entry points of installed packages.  Neither appears in a config, and both would change the arms of a study without a
trace.  Nor is Lightning asked for the cluster: `rank_environment` knows the ranks, and Lightning refuses Slurm jobs
whose number of tasks is given as `--ntasks`.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch.utils.data import DataLoader, TensorDataset

_OURS: dict[str, Any] = {  # features of Lightning that the training loop replaces
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 0,
    "use_distributed_sampler": False,
}


class RunTrainer(pl.Trainer):
    """`pl.Trainer` on one device, with the given settings and Lightning's defaults only.

    Logging, checkpoints, progress and validation are turned off, because the training loop does them.
    """

    # Lightning reads PL_<CLASS>_<PARAMETER> for each parameter in the signature; an empty one prevents that.
    __signature__ = inspect.Signature()

    def __init__(self, *, callbacks: Sequence[pl.Callback] = (), **settings: Any) -> None:
        plugins = [LightningEnvironment(), *settings.pop("plugins", ())]
        super().__init__(
            devices=settings.pop("devices", 1), callbacks=list(callbacks), plugins=plugins, **_OURS, **settings
        )
        self.callbacks = list(callbacks)  # drops those that Lightning took from installed packages


def make_trainer(**settings: Any) -> pl.Trainer:
    """Make the trainer of a run; `settings` are arguments of `pl.Trainer`."""
    return RunTrainer(**settings)


class _Idle(pl.LightningModule):
    """Module that trains nothing.

    It has no backward pass, because that would start autograd threads, which do not survive a fork.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, index: int) -> None:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


def fit_nothing() -> None:
    """Run an empty fit, so that Lightning's once-per-process initialization is done before the process is forked.

    Saves 7 ms in each forked run.
    """
    trainer = make_trainer(max_steps=1, max_epochs=-1, accelerator="cpu")
    trainer.fit(_Idle(), DataLoader(TensorDataset(torch.zeros(1)), batch_size=None))
