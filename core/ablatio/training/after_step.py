"""Lightning callback that tells the training loop of a run when an optimizer step is done."""

import time
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from ablatio.training.run_folder import CHECKPOINTS

if TYPE_CHECKING:
    from ablatio.training.loop import TrainingLoop


class AfterStep(pl.Callback):
    """Lightning callback that calls the loop after each optimizer step; a step may consist of several batches."""

    def __init__(self, loop: "TrainingLoop") -> None:
        self.loop, self.step = loop, loop.start

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Begin to listen for stops, and save the step that a rewind or a resume may go back to."""
        loop = self.loop
        loop.stop.take()
        # A rewind needs a checkpoint to go back to; after one, the skipped batches must survive a crash.  A run that
        # continues another one is resumed from its own folder.
        if loop.rewinds or loop.extends or (loop.run.learner.rewinds and not loop.found):
            loop.extends = False
            trainer.save_checkpoint(loop.folder / CHECKPOINTS / str(loop.start))
        loop.resumed_at = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *args: Any) -> None:
        """Log, validate, save and stop as due, if the batch completed a step."""
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            self.loop.after_step(trainer, self.step)

    def on_save_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the loop's state."""
        checkpoint |= self.loop.extra_state()
