"""Devices and precisions that the steps of a run were computed with: a resumed run may continue in others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ablatio.training.device import Machine

KEY = "machines"


@dataclass(slots=True)
class MachineHistory:
    """Entries {step, device, precision}: from optimizer step `step` on (from 0) this device and precision were used."""

    entries: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, state: Mapping[str, Any], began: Mapping[str, Any]) -> "MachineHistory":
        """History of a checkpoint's state; one of an older version has none, and the manifest says how it began.

        state  of the checkpoint; empty for a new run
        began  the manifest's entry `machine`
        """
        if KEY in state:
            return cls([dict(entry) for entry in state[KEY]])
        known = {key: began[key] for key in ("device", "precision") if key in began}
        return cls([{"step": 0, **known}] if known else [])

    def proceed(self, machine: Machine, step: int) -> str:
        """Add the machine that continues at `step`; return a sentence for the terminal if it differs, else ""."""
        entry = {"step": step, "device": machine.device, "precision": machine.precision}
        before = self.entries[-1] if self.entries else None
        if before is not None and all(entry.get(key) == before[key] for key in before.keys() - {"step"}):
            return ""
        self.entries.append(entry)
        if before is None:
            return ""
        return (
            f"until step {step} this run was computed in precision {before['precision']} on {before['device']}, from "
            f"here on in {machine.precision} on {machine.device}: its numbers are those of neither alone\n"
            f"    to continue as before: trainer.device={before['device']} trainer.precision={before['precision']}"
        )

    @property
    def mixed(self) -> list[dict[str, Any]]:
        """The entries if there are several, for the summary; else empty."""
        return self.entries if len(self.entries) > 1 else []
