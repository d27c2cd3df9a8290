"""A study on disk: what was asked (study.json), its jobs (jobs/ID.json), their runs (runs/ID/), and the ledger.

study.json      the question, the design, the axes, the arms that were refused; written before the first run
jobs/ID.json    one run to do: its arm, its seed, its whole config
runs/ID/        the run folder, as `ablatio train` writes one, and log.txt, what it printed
ledger.jsonl    what became of each job (ablatio.sweep.ledger)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ablatio.writer import write_json

STUDY, JOBS, RUNS, LEDGER = "study.json", "jobs", "runs", "ledger.jsonl"
Role = Literal["run", "trial", "rung"]
Arm = Mapping[str, str]  # axis -> value, as they were written; the seed is no part of it


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting that varies, and its values as Hydra's grammar has them (`norm`: layernorm, rmsnorm).

    An interval is one value, `interval(0.1, 1)`; `tag(log, interval(1e-4, 1e-2))` is even on a logarithmic scale.
    """

    key: str
    values: tuple[str, ...]

    @property
    def interval(self) -> Interval | None:
        return Interval.read(self.values[0]) if len(self.values) == 1 else None

    def at(self, u: float) -> str:
        """The value at the share 0 <= u < 1 of the way through the axis."""
        interval = self.interval
        return interval.at(u) if interval else self.values[int(u * len(self.values))]


@dataclass(frozen=True, slots=True)
class Interval:
    """low <= x <= high, as Hydra writes it; `whole`: integers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @classmethod
    def read(cls, text: str) -> Interval | None:
        found = _INTERVAL.fullmatch(text.replace(" ", ""))
        if found is None:
            return None
        return cls(float(found["low"]), float(found["high"]), "log" in text, "int(" in text)

    def at(self, u: float) -> str:
        if self.log:
            x = self.low * (self.high / self.low) ** u
        elif self.whole:
            x = self.low + u * (self.high + 1 - self.low)  # each integer has an equal share
        else:
            x = self.low + u * (self.high - self.low)
        return str(min(int(x), int(self.high))) if self.whole else f"{x:.6g}"


_INTERVAL = re.compile(r"(?:tag\(log,)?(?:int\()?interval\((?P<low>[-+.\de]+),(?P<high>[-+.\de]+)\)+")


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a study.

    id         hash of the config that makes its numbers and of the versions of its parts
    arm, seed  where it stands in the design; runs of one seed share initial weights, data order and dropout
    overrides  the command that makes it again: `ablatio train *overrides`
    config     whole and checked; values from the environment stay unresolved
    role       run: counts in comparisons; trial: of a search or a tuning; rung: part of a run that a search may stop
    until      a rung ends at this step of its own schedule; None: at the end
    """

    id: str
    arm: Arm
    seed: int
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    role: Role = "run"
    until: int | None = None

    @property
    def label(self) -> str:
        return label_of(self.arm)


def label_of(arm: Arm) -> str:
    """How an arm is called: `norm=rmsnorm position=rope`."""
    return " ".join(f"{k}={v}" for k, v in arm.items()) or "one arm"


@dataclass(frozen=True, slots=True)
class Refused:
    """An arm that cannot run."""

    arm: Arm
    why: str


@dataclass(slots=True)
class Study:
    """What is asked, and how.

    baseline   the arm that others are compared with; None: there is none, all pairs are
    settings   the sweep's own settings that are not at their defaults (plan, match, tune ...)
    overrides  what the user said
    tuned      arm label -> the settings that were tuned for it, and their values
    same       arm label -> the label of the arm that means the same and runs for both
    """

    name: str
    question: str = ""
    expected: str = ""
    design: Mapping[str, Any] = field(default_factory=lambda: {"name": "full"})
    axes: Sequence[Axis] = ()
    seeds: Sequence[int] = (1,)
    baseline: Arm | None = None
    refused: Sequence[Refused] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    tuned: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    aliases: Sequence[str] = ()  # which effects a fractional design cannot tell apart

    def write(self, folder: Path) -> None:
        write_json(folder / STUDY, {"format": 1} | asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Study:
        data = json.loads((folder / STUDY).read_text(encoding="utf-8"))
        data.pop("format")
        data["axes"] = [Axis(a["key"], tuple(a["values"])) for a in data["axes"]]
        data["refused"] = [Refused(**r) for r in data["refused"]]
        return cls(**data)


def write_job(folder: Path, job: Job) -> None:
    write_json(folder / JOBS / f"{job.id}.json", asdict(job))


def read_job(folder: Path, job_id: str) -> Job:
    data = json.loads((folder / JOBS / f"{job_id}.json").read_text(encoding="utf-8"))
    return Job(**data | {"overrides": tuple(data["overrides"])})


def jobs_of(folder: Path) -> Iterator[Job]:
    """All jobs, in the order in which they were planned (file names say nothing of it; the ledger does)."""
    for path in sorted((folder / JOBS).glob("*.json")):
        yield read_job(folder, path.stem)


def run_folder(folder: Path, job_id: str) -> Path:
    return folder / RUNS / job_id
