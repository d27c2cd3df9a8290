"""Continue a finished run with a longer budget: its weights, optimizer state and data order, and a new schedule."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablatio.errors import UserError
from ablatio.model.builder import PartChoice
from ablatio.registry import kinds
from ablatio.storage.checkpoints import Checkpoint
from ablatio.storage.json_files import read_object
from ablatio.storage.paths import shell_word
from ablatio.training.learning_rates import factor_of
from ablatio.training.restore import SavedRun, read_checkpoint
from ablatio.training.run_folder import refuse_living, resume_command

SAMPLED = 10_000  # steps of the old run at which the two schedules are compared
RECORDS = ("metrics.csv", "samples.jsonl")  # files of the extended run that the new one continues


@dataclass(frozen=True, slots=True)
class Extension:
    """The run that a new one continues.

    folder  of the finished run
    steps   of its budget; its checkpoint is of this step, or of an earlier one if it was stopped early
    """

    folder: Path
    saved: SavedRun
    steps: int

    @property
    def checkpoint(self) -> Checkpoint:
        """Weights and training state at its end."""
        return self.saved.checkpoint

    @property
    def manifest(self) -> dict[str, Any]:
        """Its manifest."""
        return read_object(self.folder / "manifest.json")

    def copy_records(self, folder: Path) -> None:
        """Copy its metrics and samples into the new run's folder, where they go on."""
        for name in RECORDS:
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, folder / name)

    def to_json(self) -> dict[str, Any]:
        """Entry of the new run's manifest."""
        return {"folder": str(self.folder), "run": self.saved.id, "step": self.checkpoint.step}

    def sentence(self, config: Mapping[str, Any]) -> str:
        """What continues and what is new, for the terminal."""
        step, total = self.checkpoint.step, int(config["train"]["steps"])
        text = f"{self.folder} goes on from step {step} to {total}, with its optimizer state and data order"
        if kinds.schedules[config["schedule"]["name"]].facts["watches"]:
            return f"{text}; the schedule watches the score, and continues"
        old, new = (factor_of(PartChoice.of(c["schedule"])) for c in (self.saved.spec.config, config))
        stride = 1 + step // SAMPLED
        if all(old(s, self.steps, ()) == new(s, total, ()) for s in range(0, step, stride)):
            return f"{text}; the schedule gives the same rates, as if {total} steps had been planned from the beginning"
        before, after = old(step - 1, self.steps, ()), new(step, total, ())
        return (
            f"{text}; the schedule is computed anew for {total} steps: the rate goes from {before:.3g} to {after:.3g} "
            "of its peak here, so the run differs from one that was planned with this length"
        )


def extension_of(config: Mapping[str, Any]) -> Extension | None:
    """Read the run that the config extends; None if it extends none.

    Raises UserError if that run is not finished, or has as many steps already.
    """
    if not config.get("extend"):
        return None
    folder = Path(config["extend"]).expanduser()
    refuse_living(folder, "extend")
    saved = read_checkpoint(folder)
    status = read_object(folder / "summary.json").get("status") if (folder / "summary.json").exists() else "begun"
    if status != "done":
        raise UserError(
            f"extend: the run in {folder} is not finished ({status}); it continues with its own schedule\n"
            f"    try: {resume_command(folder)}"
        )
    step, steps = saved.checkpoint.step, int(config["train"]["steps"])
    if steps <= step:
        raise UserError(
            f"extend: the run in {folder} has {step} steps already, and train.steps={steps} is no longer\n"
            f"    try: ablatio train extend={shell_word(folder)} train.steps={2 * step}"
        )
    return Extension(folder, saved, int(saved.spec.config["train"]["steps"]))
