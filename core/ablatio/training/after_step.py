"""Lightning callback that tells the training loop of a run when an optimizer step is done."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl


class AfterStep(pl.Callback):
    """Lightning callback that calls the loop after each optimizer step; a step may consist of several batches.

    start     steps that were done before
    begin     called when training starts
    after     called with the number of steps, when one is done
    state     what a checkpoint holds of the loop
    """

    def __init__(
        self,
        start: int,
        *,
        begin: Callable[[pl.Trainer], None],
        after: Callable[[pl.Trainer, int], None],
        state: Callable[[], dict[str, Any]],
    ) -> None:
        self.step, self.begin, self.after, self.state = start, begin, after, state

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Let the loop begin."""
        self.begin(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *args: Any) -> None:
        """Log, validate, save and stop as due, if the batch completed a step."""
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            self.after(trainer, self.step)

    def on_save_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the loop's state."""
        checkpoint |= self.state()
