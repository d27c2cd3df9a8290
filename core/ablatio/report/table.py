"""Folders of runs as one table: what was asked, and what became of each run.

A study that still runs is read as it stands.  A run that is damaged or half-written is a row that says so, and never
an error: a report must not be lost to the one run that went wrong.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ablatio.errors import UserError
from ablatio.report.curves import Curves, read_curves
from ablatio.sweep.study import JOBS, STUDY, Job, Refused, Study, read_job, run_folder

DONE = "done"
STATES = (DONE, "running", "planned", "paused", "preempted", "diverged", "failed", "damaged")
NO_AXES = ("seed", "seeds", "out", "name", "trainer", "sweep")  # what makes no arm: chance, places, the machine
RATE = "optimizer.lr"


@dataclass(frozen=True, slots=True)
class Run:
    """One run: where it stands in the design, what came out, what it cost, what it was made of.

    state     one of STATES; only `done` has numbers that may be compared
    scores    the numbers at the end of its schedule, by name (`val/loss`)
    main      {name, better} of the score that its task is judged by
    size      parameters, non_embedding, flops_per_token (of a training step), tokens, steps: the same on any machine
    cost      seconds, step_seconds, memory (bytes): this machine's
    command   the words behind `ablatio train` that make it again
    """

    folder: Path
    group: str
    id: str
    arm: Mapping[str, str]
    seed: int
    role: str
    state: str
    why: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    main: Mapping[str, Any] = field(default_factory=dict)
    size: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)
    by_position: Sequence[float | None] = ()
    command: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.state == DONE

    @property
    def rate(self) -> float | None:
        value = (self.config.get("optimizer") or {}).get("lr")
        return float(value) if isinstance(value, int | float) else None

    @property
    def data(self) -> str:
        """Hash of the text; empty when the run has not begun."""
        return str((self.manifest.get("data") or {}).get("fingerprint", ""))

    @property
    def tokenizer(self) -> str:
        """The cut of the text into tokens, and how many ids there are."""
        ids = (self.manifest.get("size") or {}).get("vocab_size", "")
        return f"{(self.config.get('tokenizer') or {}).get('name', '')} {ids}".strip()

    @property
    def code(self) -> str:
        """Hash of the core's source."""
        return str((self.manifest.get("code") or {}).get("core", ""))

    @property
    def parts(self) -> str:
        """Hash of the sources of the chosen parts."""
        parts = (self.manifest.get("code") or {}).get("parts") or {}
        lines = [f"{name} {(part or {}).get('sha256')}" for name, part in sorted(parts.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""

    @property
    def device(self) -> str:
        machine = self.manifest.get("machine") or {}
        return " ".join(str(machine[k]) for k in ("device", "precision") if k in machine)


@dataclass(slots=True)
class Table:
    """Runs of one or several folders, in the order of the design.

    notes   what was left out of the comparison, and why
    """

    study: Study
    folders: list[Path]
    runs: list[Run]
    refused: list[Refused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def counted(self) -> list[Run]:
        """The runs that comparisons rest on."""
        return [r for r in self.runs if r.done and r.role == "run"]

    @property
    def several_data(self) -> bool:
        """Whether the folders hold different texts or budgets, so that only differences within one can be compared."""
        return len({what_must_agree(r) for r in self.counted}) > 1

    def count(self) -> dict[str, int]:
        """How many runs are in each state, of those that occur."""
        states = [r.state for r in self.runs]
        return {state: states.count(state) for state in STATES if state in states}


def what_must_agree(run: Run) -> tuple[str, str, float]:
    """Text, tokenizer and token budget: losses are comparable where these are equal."""
    return run.data, run.tokenizer, run.size.get("tokens", 0)


def read_table(folders: Sequence[Path]) -> Table:
    """All runs of these folders: sweeps, runs, or folders that hold runs.  UserError when there is none."""
    studies: list[Study] = []
    table = Table(Study(""), [Path(f) for f in folders], [])
    plain: list[Path] = []
    for folder in table.folders:
        if (folder / STUDY).exists():
            _add_study(table, studies, folder)
        elif found := _runs_in(folder):
            plain += found
        else:
            raise UserError(
                f"{folder} holds no runs: neither {STUDY} nor a run folder with config.json is in it\n"
                f"    try: ls {folder.parent}"
            )
    table.runs += _plain_runs(plain)
    table.study = _merged(studies, table)
    _sort(table)
    return table


def _add_study(table: Table, studies: list[Study], folder: Path) -> None:
    try:
        study = Study.read(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        table.notes.append(f"{folder / STUDY} cannot be read ({_short(error)}); the axes come from the jobs")
        study = Study(folder.name)
    studies.append(study)
    table.refused += [r for r in study.refused if r not in table.refused]
    for path in sorted((folder / JOBS).glob("*.json")):
        try:
            job = read_job(folder, path.stem)
        except (OSError, ValueError, TypeError, KeyError) as error:
            why = f"{path} cannot be read: {_short(error)}"
            table.runs.append(Run(folder, folder.name, path.stem, {}, 0, "run", "damaged", why))
            continue
        table.runs.append(_read(run_folder(folder, job.id), folder.name, job))


def _runs_in(folder: Path) -> list[Path]:
    if (folder / "config.json").exists():
        return [folder]
    return sorted(p.parent for p in folder.glob("*/config.json"))


def _plain_runs(folders: Sequence[Path]) -> list[Run]:
    """Runs that no study planned: what differs between their configs is the arm."""
    configs = [_json(f / "config.json")[0] for f in folders]
    flat = [flatten({k: v for k, v in c.items() if k not in NO_AXES}) for c in configs]
    keys = list(dict.fromkeys(k for f in flat for k in f))
    axes = [k for k in keys if len({f.get(k) for f in flat}) > 1]
    # A part's own knobs come and go with its name: they say nothing beside it.
    named = {k.removesuffix(".name") for k in axes if k.endswith(".name")}
    axes = [k for k in axes if k.endswith(".name") or k.split(".")[0] not in named or _knob_varies(k, flat)]
    runs = []
    for folder, config, values in zip(folders, configs, flat, strict=True):
        arm = {k.removesuffix(".name"): values[k] for k in axes if k in values}
        command = tuple(f"{k.removesuffix('.name')}={v}" for k, v in values.items() if k in axes)
        seed = config.get("seed")
        job = Job(folder.name, arm, seed if isinstance(seed, int) else 0, (*command, f"seed={seed}"), config)
        runs.append(_read(folder, folder.parent.name, job))
    return runs


def _knob_varies(key: str, flat: Sequence[Mapping[str, str]]) -> bool:
    """Whether a knob differs between runs that chose the same part."""
    part = key.split(".")[0] + ".name"
    seen: dict[str, set[str]] = {}
    for values in flat:
        if key in values:
            seen.setdefault(values.get(part, ""), set()).add(values[key])
    return any(len(s) > 1 for s in seen.values())


def flatten(node: Any, prefix: str = "") -> dict[str, str]:
    """{"norm": {"name": "rmsnorm"}} -> {"norm.name": "rmsnorm"}; every leaf as text."""
    if isinstance(node, Mapping) and node:
        return {k: v for key, child in node.items() for k, v in flatten(child, f"{prefix}.{key}").items()}
    text = node if isinstance(node, str) else json.dumps(node, default=str)
    return {prefix.lstrip("."): text}


def _read(folder: Path, group: str, job: Job) -> Run:
    """What stands in a run folder, whatever its state."""
    summary, trouble = _json(folder / "summary.json")
    manifest, config = _json(folder / "manifest.json")[0], _json(folder / "config.json")[0] or job.config
    state, why = _state(folder, summary, trouble)
    curves, bad = read_curves(folder / "metrics.csv")
    if bad and state == DONE:
        why = f"{bad} rows of metrics.csv cannot be read"
    after = summary.get("after")
    after = after if isinstance(after, Mapping) else {}
    places = [k for k in after if k.startswith("position/")]
    return Run(
        folder, group, job.id, job.arm, job.seed, job.role, state, why,
        main=summary["score"] if isinstance(summary.get("score"), Mapping) else {},
        scores={k: v for k, v in summary.items() if "/" in k and _number(v)},
        size=_size(summary, manifest),
        cost=_cost(summary, curves),
        curves=curves,
        by_position=[v if _number(v := after.get(f"position/{i}")) else None for i in range(1, len(places) + 1)],
        command=_again(job.overrides),
        config=config,
        manifest=manifest,
    )  # fmt: skip


def _state(folder: Path, summary: Mapping[str, Any], trouble: str) -> tuple[str, str]:
    if trouble:
        return "damaged", trouble
    if not summary:
        if (folder / "error.txt").exists():
            return "failed", _first_line(folder / "error.txt")
        return ("running", "") if (folder / "config.json").exists() else ("planned", "")
    state = str(summary.get("status"))
    if state not in STATES:
        return "damaged", f"{folder / 'summary.json'} names no state that is known: {state[:40]!r}"
    return state, str(summary.get("error") or "")


def _size(summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, float]:
    """What the run is, on any machine; before its end from its manifest."""
    planned = manifest.get("size") if isinstance(manifest.get("size"), Mapping) else {}
    tokens, flops = summary.get("tokens"), summary.get("train_flops")
    per_token = flops / tokens if _number(flops) and _number(tokens) and tokens else None
    if per_token is None and _number((planned or {}).get("flops_per_token")):
        per_token = 3 * planned["flops_per_token"]  # type: ignore[index]
    found = {
        "parameters": summary.get("parameters", (planned or {}).get("parameters")),
        "non_embedding": summary.get("non_embedding_parameters", (planned or {}).get("non_embedding")),
        "flops_per_token": per_token,
        "flops": flops,
        "tokens": tokens,
        "steps": summary.get("steps"),
    }
    return {k: v for k, v in found.items() if _number(v)}


def _cost(summary: Mapping[str, Any], curves: Curves) -> dict[str, float]:
    """Seconds of the run and of a step (the median between two logs: a validation between them is no step), memory."""
    found = {k: summary[k] for k in ("seconds", "memory") if _number(summary.get(k))}
    if "seconds" in curves:
        steps, clock = curves["seconds"]
        spans = zip(steps, steps[1:], clock, clock[1:], strict=False)
        each = [(t1 - t0) / (s1 - s0) for s0, s1, t0, t1 in spans if s1 > s0 and t1 > t0]
        if each:
            found["step_seconds"] = median(each)
    return found


def _again(overrides: Iterable[str]) -> tuple[str, ...]:
    """The overrides that make the numbers; the folder of this run is no part of them."""
    return tuple(o for o in overrides if o.lstrip("+").split("=")[0] not in ("out", "name"))


def _merged(studies: Sequence[Study], table: Table) -> Study:
    """One study of several: their questions and seeds; axes and baseline of the first that has them."""
    if len(studies) == 1:
        return studies[0]
    if not studies:
        return Study(" ".join(f.name for f in table.folders), design={"name": "runs"})
    first = studies[0]
    names = list(dict.fromkeys(s.name for s in studies))
    return Study(
        name=" + ".join(names),
        question=" ".join(dict.fromkeys(s.question for s in studies if s.question)),
        expected=" ".join(dict.fromkeys(s.expected for s in studies if s.expected)),
        design=first.design,
        axes=next((s.axes for s in studies if s.axes), ()),
        seeds=sorted({n for s in studies for n in s.seeds}),
        baseline=next((s.baseline for s in studies if s.baseline is not None), None),
        settings=first.settings,
        overrides=first.overrides,
        tuned={k: v for s in reversed(studies) for k, v in s.tuned.items()},
        aliases=first.aliases,
    )


def _sort(table: Table) -> None:
    """By folder, then as the axes list their values, then by seed: the order in which they finished says nothing."""
    places = {a.key: {v: i for i, v in enumerate(a.values)} for a in table.study.axes}
    groups = {g: i for i, g in enumerate(dict.fromkeys(r.group for r in table.runs))}

    def where(run: Run) -> tuple[Any, ...]:
        axes = [*places, *sorted(k for k in run.arm if k not in places)]
        values = [(places.get(k, {}).get(run.arm.get(k, ""), 1 << 30), run.arm.get(k, "")) for k in axes]
        return groups[run.group], run.role != "run", values, run.seed, run.id

    table.runs.sort(key=where)


def _json(path: Path) -> tuple[dict[str, Any], str]:
    """An object from a file, and what was wrong with it; a file that is not there is an empty object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}, ""
    except (OSError, ValueError) as error:
        return {}, f"{path} cannot be read: {_short(error)}"
    if not isinstance(data, dict):
        return {}, f"{path} holds {type(data).__name__}, not an object"
    return data, ""


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError as error:
        return _short(error)
    # The last line of a traceback says what it was; of a sentence of ours, the first.
    return (lines[-1] if lines[0].startswith("Traceback") else lines[0]) if lines else ""


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
