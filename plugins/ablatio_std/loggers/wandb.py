"""Offline runs of Weights & Biases."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from ablatio import loggers
from ablatio_std.loggers._common import needs, quiet


@loggers.register("wandb")
class Wandb:
    """Offline W&B run in RUN/wandb/offline-run-*: nothing is sent until you call `wandb sync` on that folder.

    Rows with the same step become one row in W&B.
    Source: Weights & Biases, https://docs.wandb.ai
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        project: Annotated[str, "W&B project that `wandb sync` sends the run to"] = "ablatio",
    ) -> None:
        needs("wandb", "wandb")
        self.folder, self.config, self.project = folder, config, project
        self.run: Any = None

    def start(self, rows: Sequence[Mapping[str, float]]) -> None:
        folder = str(self.folder.absolute())
        folders = {f"WANDB_{kind}_DIR": f"{folder}/wandb/{kind.lower()}" for kind in ("CACHE", "CONFIG", "DATA")}
        with quiet("wandb", WANDB_MODE="offline", WANDB_ERROR_REPORTING="false", **folders):
            import wandb

            if self.run:
                self.run.finish()
            shutil.rmtree(self.folder / "wandb", ignore_errors=True)
            settings = wandb.Settings(
                mode="offline", root_dir=folder, project=self.project, run_name=self.folder.name,
                run_id=hashlib.sha256(folder.encode()).hexdigest()[:12], run_group=self.folder.absolute().parent.name,
                silent=True, console="off", save_code=False, disable_code=True, disable_git=True,
                disable_job_creation=True, x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
                x_save_requirements=False,
            )  # fmt: skip
            self.run = wandb.init(settings=settings, config=dict(self.config))
            for row in rows:
                self.log(row)

    def log(self, row: Mapping[str, float]) -> None:
        self.run.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))

    def finish(self, status: str) -> None:
        with quiet("wandb"):
            self.run.finish(exit_code=0 if status == "done" else 1)
