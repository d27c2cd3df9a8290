"""A study on disk: what was asked (study.json), its jobs (jobs/ID.json), their runs (runs/ID/), and the ledger.

study.json      question, design, axes, refused arms; written before the first run
jobs/ID.json    one planned run: its arm, its seed, its whole config
runs/ID/        the run folder, as `ablatio train` writes one, and log.txt with its output
ledger.jsonl    state changes of each job (ablatio.sweep.ledger)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ablatio.errors import DamagedFile, EnvironmentFault
from ablatio.registry import renamed
from ablatio.registry.kinds import designs
from ablatio.registry.kinds.search_space import Arm, Axis
from ablatio.storage.atomic_write import write_json
from ablatio.storage.json_files import Types, damaged, read_object

NO_DESIGN = "runs"  # what stands for the design of run folders that no study has planned
STUDY, JOBS, RUNS, LEDGER = "study.json", "jobs", "runs", "ledger.jsonl"
SEEDS_ADDED = "seeds added"  # kind of a deviation: seeds came when results of the others were there
Role = Literal["run", "trial", "rung", "stage"]
_NONE = type(None)
_STUDY: dict[str, Types] = {
    "name": str, "question": str, "expected": str, "design": dict, "axes": list, "seeds": list, "baseline":
    (dict, _NONE), "refused": list, "settings": dict, "overrides": list, "tuned": dict, "matched": dict, "same": dict,
    "aliases": list, "stages": list, "registered": dict, "trial_seed": (int, _NONE), "sequential": dict,
    "deviations": list, "parts_file": dict, "files": list,
}  # fmt: skip
_JOB: dict[str, Types] = {
    "id": str, "arm": dict, "seed": int, "overrides": list, "config": dict, "role": str, "until": (int, _NONE),
    "rungs": dict, "stage": str, "takes": list, "tried": dict,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a study.

    id         hash of the config that determines its numbers and of the versions of its parts
    arm, seed  its place in the design; runs of one seed share initial weights, data order and dropout
    overrides  the command that repeats it: `ablatio train *overrides`
    config     whole and checked; values from the environment stay unresolved
    role       run: counts in comparisons; trial: of a search or a tuning; rung: part of a run that a search may stop;
               stage: of a recipe, before its last
    until      step of its own schedule at which a rung ends; None: at the end
    rungs      held-out loss at earlier rungs: step -> loss
    stage      its name in a recipe
    takes      ids of the jobs that must be done first; its config refers to them as `runs/ID`
    tried      of a trial: the tuned settings and their values in it
    """

    id: str
    arm: Arm
    seed: int
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    role: Role = "run"
    until: int | None = None
    rungs: Mapping[str, float] = field(default_factory=dict)
    stage: str = ""
    takes: tuple[str, ...] = ()
    tried: Mapping[str, str] = field(default_factory=dict)

    def shared_with(self, other: Job) -> Job:
        """Merge with the same job of another arm or seed: it keeps what the two have in common."""
        if "run" in (self.role, other.role):
            return self if self.role == "run" else other
        return replace(self, arm={k: v for k, v in self.arm.items() if other.arm.get(k) == v})

    def with_rungs(self, rungs: Mapping[str, float]) -> Job:
        """Copy with the losses at earlier rungs."""
        return replace(self, rungs=rungs)

    @property
    def label(self) -> str:
        """The arm as text."""
        return label_of(self.arm)

    @property
    def title(self) -> str:
        """Name in lists of jobs: `norm=rmsnorm seed=1`, `sft seed=1`."""
        role = "" if self.role in ("run", "stage") else f" ({self.role})"
        arm = self.label if self.arm or not self.stage else ""
        words = [self.stage, arm, *(f"{k}={v}" for k, v in self.tried.items()), f"seed={self.seed}"]
        return " ".join(word for word in words if word) + role


def label_of(arm: Arm) -> str:
    """Name of an arm: `norm=rmsnorm position=rope`."""
    return " ".join(f"{k}={v}" for k, v in arm.items()) or "one arm"


@dataclass(frozen=True, slots=True)
class Refused:
    """An arm that cannot run, and why."""

    arm: Arm
    why: str


@dataclass(slots=True)
class Study:
    """What is asked, and how.

    baseline   arm that the others are compared with; None: all pairs are compared
    settings   settings of the sweep that differ from their defaults (plan, match, tune ...)
    overrides  the user's command line
    tuned      arm label -> settings tuned for it, and their values
    matched    arm label -> quantity held equal (`match=`), what was changed for it, and the residual
    same       arm label -> label of the equal arm that runs for both
    stages     of a recipe, in order: an arm is then one run of each
    registered  metric, unit, alpha, margin and target as they were before the first run; later ones: `settings`
    trial_seed  seed of the trials of tune= or of a search: no comparison may use it; None: there are none
    sequential  planned looks of until=resolved, their boundaries, and what each look decided (`sequential_study`)
    parts_file  path and sha256 of the file of parts that its arms use; empty if they use none
    files       copies of the user's own YAML files that its command chose (`config.kept_files`)
    deviations  what was changed after results had been there (`SEEDS_ADDED`: the seeds before and the added ones)
    """

    name: str
    question: str = ""
    expected: str = ""
    design: Mapping[str, Any] = field(default_factory=lambda: {"name": designs.usual})
    axes: Sequence[Axis] = ()
    seeds: Sequence[int] = (1,)
    baseline: Arm | None = None
    refused: Sequence[Refused] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    tuned: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    matched: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    aliases: Sequence[str] = ()  # effects that a fractional design cannot tell apart
    stages: Sequence[str] = ()
    registered: Mapping[str, Any] = field(default_factory=dict)
    trial_seed: int | None = None
    sequential: dict[str, Any] = field(default_factory=dict)
    deviations: Sequence[Mapping[str, Any]] = ()
    parts_file: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[Mapping[str, str]] = ()

    def write(self, folder: Path) -> None:
        """Write study.json; what was registered stays as it was once there is a run."""
        if (folder / RUNS).exists():
            self.registered = _registered(folder) or self.registered
        write_json(folder / STUDY, {"format": 1} | asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Study:
        """Read study.json, with renamed settings under their present names; DamagedFile if it holds something else."""
        path = folder / STUDY
        data = read_object(path, _STUDY)
        with damaged(str(path), "a study as ablatio writes it"):
            data.pop("format")
            data["axes"] = [Axis(renamed.key(a["key"]), tuple(texts(a["values"]))) for a in data["axes"]]
            data["overrides"] = [renamed.override(text) for text in texts(data.get("overrides", []))]
            data["refused"] = [Refused(plain_arm(r["arm"]), str(r["why"])) for r in data["refused"]]
            data["baseline"] = None if (found := data.get("baseline")) is None else plain_arm(found)
            for key in ("tuned", "matched"):
                data[key] = {label: dict(values) for label, values in data.get(key, {}).items()}
            for key in ("aliases", "stages"):
                data[key] = texts(data.get(key, []))
            data["seeds"] = [whole(seed) for seed in data.get("seeds", [1])]
            return cls(**data)


def _registered(folder: Path) -> Mapping[str, Any]:
    """What study.json in the folder has registered; empty if it has nothing, or cannot be read."""
    with suppress(FileNotFoundError, DamagedFile, EnvironmentFault):
        return dict(read_object(folder / STUDY, _STUDY).get("registered", {}))
    return {}


def write_job(folder: Path, job: Job) -> None:
    """Write jobs/ID.json."""
    write_json(folder / JOBS / f"{job.id}.json", asdict(job))


def read_job(folder: Path, job_id: str) -> Job:
    """Read jobs/ID.json, with renamed settings under their present names; DamagedFile if it holds something else."""
    path = folder / JOBS / f"{job_id}.json"
    data = read_object(path, _JOB)
    with damaged(str(path), f"the job {job_id} as ablatio writes it"):
        if data["id"] != job_id:
            raise ValueError(f"it is the job {data['id']}")
        if data.get("role", "run") not in get_args(Role):
            raise ValueError(f"`role` is {data['role']}")
        data["arm"] = {renamed.key(key): value for key, value in plain_arm(data["arm"]).items()}
        data["overrides"] = tuple(renamed.override(text) for text in texts(data.get("overrides", [])))
        data["takes"] = tuple(texts(data.get("takes", [])))
        return Job(**data)


def texts(values: Sequence[Any]) -> list[str]:
    """The values as they are; ValueError if one is no text."""
    if wrong := [value for value in values if not isinstance(value, str)]:
        raise ValueError(f"{str(wrong[0])[:40]} is no text")
    return list(values)


def plain_arm(arm: Mapping[str, Any]) -> dict[str, str]:
    """An arm read from a file; ValueError if one of its values is no text."""
    return dict(zip(arm, texts([*arm.values()]), strict=True))


def whole(value: Any) -> int:
    """The value as it is; ValueError if it is no whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{str(value)[:40]} is no whole number")
    return value


def jobs_of(folder: Path) -> Iterator[Job]:
    """Yield all jobs; their order is in the ledger, not in the file names."""
    for path in sorted((folder / JOBS).glob("*.json")):
        yield read_job(folder, path.stem)


def run_folder(folder: Path, job_id: str) -> Path:
    """Folder of a job's run."""
    return folder / RUNS / job_id


def run_of(job_id: str) -> str:
    """Reference to a job's run inside configs, independent of where the study lies."""
    return f"{RUNS}/{job_id}"


def placed(node: Any, places: Mapping[str, str]) -> Any:
    """Replace references to runs in a config by their folders."""
    if isinstance(node, Mapping):
        return {key: placed(value, places) for key, value in node.items()}
    if isinstance(node, list):
        return [placed(value, places) for value in node]
    return places.get(node, node) if isinstance(node, str) else node


def is_done(study: Path | None, job: str) -> bool:
    """True if the run of a job is finished; False if there is no study yet."""
    return study is not None and summary_of(run_folder(study, job)).get("status") == "done"


def summary_of(run: Path) -> dict[str, Any]:
    """Read summary.json of a run; empty if it is missing or damaged."""
    with suppress(OSError, EnvironmentFault):
        return read_object(run / "summary.json")
    return {}


def design_facts(study: Study) -> Mapping[str, Any]:
    """What a study's design says of itself; of one whose plugin is gone, what designs say by default."""
    name = str(study.design.get("name", designs.usual))
    if name in designs.names():
        return designs[name].facts
    return designs.facts | {"factors": name != NO_DESIGN}
