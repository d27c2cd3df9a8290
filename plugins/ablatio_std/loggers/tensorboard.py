"""TensorBoard's event files."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablatio import loggers
from ablatio_std.loggers._common import needs, quiet


@loggers.register("tensorboard")
class TensorBoard:
    """TensorBoard event files in RUN/tensorboard: `tensorboard --logdir runs` shows all runs side by side.

    Source: TensorBoard, https://github.com/tensorflow/tensorboard
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        needs("tensorboard", "tensorboard")
        self.folder, self.config = folder / "tensorboard", config
        self.writer: Any = None

    def start(self, rows: Sequence[Mapping[str, float]]) -> None:
        with quiet("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            if self.writer:
                self.writer.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.writer = SummaryWriter(str(self.folder))
        self.writer.add_text("config", f"```\n{json.dumps(self.config, indent=1)}\n```")
        for row in rows:
            self.log(row)

    def log(self, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(row["step"]), new_style=True)

    def finish(self, status: str) -> None:
        self.writer.close()
