"""TensorBoard's event files."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from ablatio import Positive, loggers
from ablatio_std.loggers._common import needs, quiet


@loggers.register("tensorboard")
class TensorBoard:
    """TensorBoard event files in RUN/tensorboard: `tensorboard --logdir runs` shows all runs side by side.

    With `log_dir` they are in LOG_DIR/FOLDER/RUN, where FOLDER holds the run.
    Source: TensorBoard, https://github.com/tensorflow/tensorboard
    """

    packages = ("tensorboard=ablatio[tensorboard]",)

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        log_dir: Annotated[str | None, "folder for the event files of all runs; null: RUN/tensorboard"] = None,
        flush_secs: Annotated[int, Positive, "seconds between writes to the disk"] = 120,
    ) -> None:
        needs("tensorboard", "tensorboard")
        whole = folder.absolute()
        own = Path(log_dir).expanduser() / whole.parent.name / whole.name if log_dir else folder / "tensorboard"
        self.folder, self.config, self.flush_secs = own, config, flush_secs
        self.writer: Any = None

    def start(self, rows: Sequence[Mapping[str, float]]) -> None:
        with quiet("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            if self.writer:
                self.writer.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.writer = SummaryWriter(str(self.folder), flush_secs=self.flush_secs)
        self.writer.add_text("config", f"```\n{json.dumps(self.config, indent=1)}\n```")
        for row in rows:
            self.log(row)

    def log(self, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(row["step"]), new_style=True)

    def finish(self, status: str) -> None:
        self.writer.close()
