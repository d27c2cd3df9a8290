"""Checkpoints during a run, through our own writer; and the two ways to be stopped without losing anything."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from ablatio.storage.checkpoints import Checkpoint, Checkpoints
from ablatio.training.lightning_module import TRAINING

_PREFIX = "model."


class RunCheckpointIO(CheckpointIO):
    """What Lightning would pickle goes through `Checkpoints`: verified, atomic, weights in a file of their own."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.loaded: Checkpoint | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        model = {k.removeprefix(_PREFIX): v for k, v in checkpoint.pop("state_dict").items()}
        self.checkpoints.save(int(Path(path).name), model, checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        found = self.loaded or self.checkpoints.load(int(Path(path).name))
        averaged = {_PREFIX + k: v for k, v in found.model.items()}
        return {**found.state, "state_dict": found.state.get(TRAINING, averaged)}

    def remove_checkpoint(self, path: Any) -> None:
        """`Checkpoints` decides what stays."""


class StopRequest:
    """Set by SIGTERM or SIGINT; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def name(self) -> str:
        return self.signal.name if self.signal else ""

    def _set(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def take(self) -> None:
        """Make the two signals ours; once more when `fit` has begun, for Lightning puts a handler of its own before it,
        which ends the process in the middle of an accumulated step, without a checkpoint and with code 0."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._set)

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Take the two signals inside; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        old: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            old[number] = signal.getsignal(number)
        self.take()
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
