"""Lightning's checkpoint interface on `storage.checkpoints`, and the handling of stop signals."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from ablatio.model.ranks import ranks
from ablatio.model.strategy import Strategy
from ablatio.storage.checkpoints import Checkpoint, Checkpoints
from ablatio.storage.process import stop_signals
from ablatio.training.lightning_module import TRAINING

_PREFIX = "model."


class RunCheckpointIO(CheckpointIO):
    """Lightning plugin that stores checkpoints with `Checkpoints`: atomic, verified, weights in a safetensors file.

    It replaces Lightning's pickled checkpoints.
    """

    def __init__(self, checkpoints: Checkpoints, strategy: Strategy) -> None:
        self.checkpoints, self.strategy = checkpoints, strategy
        self.loaded: Checkpoint | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save the weights and the remaining state; the last component of `path` is the step number.

        All ranks take part, and rank 0 writes; when they return, the checkpoint can be read.
        """
        checkpoint = self.strategy.gather(checkpoint)
        if not ranks().first:
            ranks().wait()
            return
        model = {k.removeprefix(_PREFIX): v for k, v in checkpoint.pop("state_dict").items()}
        self.checkpoints.save(int(Path(path).name), model, checkpoint)
        ranks().wait()

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Return the checkpoint as Lightning's dict: `self.loaded` if set, else that of the step in `path`.

        `state_dict` holds the weights to continue training from, which differ from the saved ones if a part averages
        them.
        """
        found = self.loaded or self.checkpoints.load(int(Path(path).name))
        averaged = {_PREFIX + k: v for k, v in found.model.items()}
        return self.strategy.scatter({**found.state, "state_dict": found.state.get(TRAINING, averaged)})

    def remove_checkpoint(self, path: Any) -> None:
        """Do nothing: `Checkpoints` decides which checkpoints are kept."""


class StopRequest:
    """Flag that a stop signal sets, so that the loop can stop cleanly; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.agreed = False  # True if a rank has received one; several ranks stop after the same step
        self.handled: tuple[signal.Signals, ...] = ()  # the signals to handle, chosen before any handler is installed

    def __bool__(self) -> bool:
        return self.signal is not None if ranks().world == 1 else self.agreed

    @property
    def name(self) -> str:
        """Name of the signal that was received; empty if none was."""
        return self.signal.name if self.signal else "a stop signal" if self.agreed else ""

    def _set(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def take(self) -> None:
        """Install this object's handler for the stop signals; does nothing outside the main thread.

        Called again when `fit` has begun: Lightning installs its own handler before that, which ends the process within
        an accumulated step, without a checkpoint and with exit code 0.
        """
        if threading.current_thread() is threading.main_thread():
            for number in self.handled or stop_signals():
                signal.signal(number, self._set)

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handle the stop signals inside the context and restore the previous handlers on exit.

        Outside the main thread no handler is installed, since Python allows that in the main thread only.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        self.handled = stop_signals()
        old: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}
        for number in self.handled:
            old[number] = signal.getsignal(number)
        self.take()
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
