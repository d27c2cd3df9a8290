"""Runs of Weights & Biases, offline or online."""

import hashlib
import netrc
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from ablatio import loggers
from ablatio.errors import UserError
from ablatio_std.loggers._common import needs, quiet

SERVER = "https://api.wandb.ai"
NO_KEY = """\
logger.wandb.mode=online needs the key of an account, and there is none
    try: wandb login, or logger.wandb.mode=offline and later `wandb sync`"""


@loggers.register("wandb")
class Wandb:
    """W&B run in RUN/wandb.  Offline, nothing is sent until you call `wandb sync RUN/wandb/offline-run-*`.

    Online, the rows are sent as they are logged; a resumed run continues the same W&B run after the rows that it has.
    Rows with the same step become one row in W&B.
    Source: Weights & Biases, https://docs.wandb.ai
    """

    packages = ("wandb=ablatio[wandb]",)

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        mode: Annotated[Literal["offline", "online"], "online sends the run, with its config, to W&B"] = "offline",
        project: Annotated[str, "W&B project of the run"] = "ablatio",
        entity: Annotated[str | None, "W&B user or team; null: the account's own"] = None,
        group: Annotated[str | None, "group of the run; null: the folder that holds the run"] = None,
        run_name: Annotated[str | None, "name of the run in W&B; null: that of its folder"] = None,
        tags: Annotated[tuple[str, ...], "tags of the run"] = (),
        notes: Annotated[str | None, "a longer description of the run"] = None,
    ) -> None:
        needs("wandb", "wandb")
        self.folder, self.config, self.online = folder, config, mode == "online"
        if self.online and not has_key():
            raise UserError(NO_KEY)
        self.settings = {
            "mode": mode, "project": project, "entity": entity, "run_tags": tags or None, "run_notes": notes,
            "run_group": group or folder.absolute().parent.name, "run_name": run_name or folder.name,
        }  # fmt: skip
        self.run: Any = None
        self.first = 0  # step from which rows are new to W&B

    def start(self, rows: Sequence[Mapping[str, float]]) -> None:
        folder = str(self.folder.absolute())
        folders = {f"WANDB_{kind}_DIR": f"{folder}/wandb/{kind.lower()}" for kind in ("CACHE", "CONFIG", "DATA")}
        if self.online:
            del folders["WANDB_CONFIG_DIR"]  # the settings of the account are there
        with quiet("wandb", WANDB_MODE=self.settings["mode"], WANDB_ERROR_REPORTING="false", **folders):
            import wandb

            if self.run:
                self.run.finish()
            shutil.rmtree(self.folder / "wandb", ignore_errors=True)
            settings = wandb.Settings(
                root_dir=folder, run_id=hashlib.sha256(folder.encode()).hexdigest()[:12],
                resume="allow" if self.online else None,
                silent=True, console="off", save_code=False, disable_code=True, disable_git=True,
                disable_job_creation=True, x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
                x_save_requirements=False, **self.settings,
            )  # fmt: skip
            self.run = wandb.init(settings=settings, config=dict(self.config))
            self.first = int(self.run.starting_step) if self.online else 0
            for row in rows:
                self.log(row)

    def log(self, row: Mapping[str, float]) -> None:
        if int(row["step"]) >= self.first:
            self.run.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))

    def finish(self, status: str) -> None:
        with quiet("wandb"):
            self.run.finish(exit_code=0 if status == "done" else 1)


def has_key() -> bool:
    """True if W&B would find the key of an account without asking: in the environment, or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or SERVER).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
