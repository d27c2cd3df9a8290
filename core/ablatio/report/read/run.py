"""One run as its folder has it, in whatever state.  Reading never raises for what it finds there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ablatio.errors import AblatioError, EnvironmentFault
from ablatio.report.read.curves import Curves, read_curves
from ablatio.report.read.identity import LARGEST, MANIFEST, SUMMARY, contradictions, is_score
from ablatio.report.read.notes import note
from ablatio.report.rerun_command import of_run
from ablatio.storage.json_files import read_object, short_error
from ablatio.sweep.study import Job, label_of
from ablatio.training.evaluation.values_file import read_values

DONE = "done"
STATES = (DONE, "running", "planned", "paused", "preempted", "diverged", "failed", "damaged")
RATE = "optimizer.lr"


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its place in the design, its results, its cost and its provenance.

    state     one of STATES; only `done` runs have comparable numbers
    scores    final scores by name (`val/loss`)
    measured  values of evaluations with their errors, as in summary.json: {column: {value, error, items, better}}
    main      {name, better} of the main score of its task
    size      parameters, trainable (if fewer), non_embedding, flops_per_token (of a training step), tokens, steps:
              the same on any machine
    cost      seconds, step_seconds, memory (bytes) on this machine
    samples   answers before and after training, from the summary
    command   overrides of `ablatio train` that repeat it
    before    main score before the first step
    stage     its name in a recipe; takes: ids of the runs that it starts from
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
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    size: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)
    by_position: Sequence[float | None] = ()
    samples: Sequence[Mapping[str, str]] = ()
    command: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    before: float | None = None
    stage: str = ""
    takes: Sequence[str] = ()

    @property
    def title(self) -> str:
        """Name of the run in a list, without its seed."""
        label = label_of(self.arm) if self.arm else ""
        return " ".join(word for word in (self.stage, label) if word) or self.id

    @property
    def done(self) -> bool:
        """True if the run finished and has comparable numbers."""
        return self.state == DONE

    @property
    def rate(self) -> float | None:
        """Learning rate, if the config has one."""
        value = inner(self.config, "optimizer").get("lr")
        return float(value) if isinstance(value, int | float) else None

    @property
    def data(self) -> str:
        """Hash of the text; empty before the run has started."""
        return str(inner(self.manifest, "data").get("fingerprint", ""))

    @property
    def scored_text(self) -> str:
        """Hash of the held-out text, where the source computes one; else that of all documents, as `data`."""
        return str(inner(self.manifest, "data").get("held_out", "")) or self.data

    @property
    def tokenizer(self) -> str:
        """Name of the tokenizer and size of its vocabulary."""
        ids = inner(self.manifest, "size").get("vocab_size", "")
        return f"{inner(self.config, 'tokenizer').get('name', '')} {ids}".strip()

    @property
    def code(self) -> str:
        """Hash of the core's source."""
        return str(inner(self.manifest, "code").get("core", ""))

    @property
    def parts(self) -> str:
        """Hash of the sources of the chosen parts."""
        parts = inner(inner(self.manifest, "code"), "parts")
        lines = [f"{name} {inner(parts, name).get('sha256')}" for name in sorted(parts)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""

    @property
    def device(self) -> str:
        """Device and precision."""
        machine = inner(self.manifest, "machine")
        return " ".join(str(machine[k]) for k in ("device", "precision") if k in machine)


class Terms(NamedTuple):
    """Properties that two runs must share for their losses to be comparable.

    text       hash of the scored text
    tokenizer  name and vocabulary; scores per byte are comparable without it (`comparability.PER_TOKEN`)
    tokens     token budget as planned
    """

    text: str
    tokenizer: str
    tokens: float


def terms_of(run: Run) -> Terms:
    """Return the terms on which a run was scored."""
    tokens, steps = run.size.get("tokens", 0), run.size.get("steps", 0)
    planned = inner(run.config, "train").get("steps")
    if isinstance(planned, int) and 0 < steps < planned and run.done:  # ended by a stabilizer: the budget is the plan
        tokens = round(tokens * planned / steps)
    return Terms(run.scored_text, run.tokenizer, tokens)


def read_folder(folder: Path, group: str, job: Job, recorded: str = "", planned: bool = False) -> Run:
    """Read a run folder, whatever its state.

    recorded  digests of its result files in the ledger of its study
    planned   True if a study has planned the job: then its config must be that of the run
    """
    summary, bad_summary = object_in(folder / "summary.json", SUMMARY)
    manifest, bad_manifest = object_in(folder / "manifest.json", MANIFEST)
    config, bad_config = object_in(folder / "config.json")
    command = of_run(job.overrides, config or job.config, manifest)
    state, why = _state(folder, summary, bad_summary)
    later, bad_values = _later_values(folder, summary)
    curves, bad_rows = read_curves(folder / "metrics.csv")
    if state == DONE:
        known = config or job.config
        # Only of a finished run: the files of a run that goes on are written one after the other.
        found = contradictions(folder, job.config if planned else {}, recorded, known, manifest, summary, curves)
        why = bad_manifest or bad_config or next(found, "")
        state = "damaged" if why else DONE
        if bad_rows and not why:
            why = note("unreadable rows", n=bad_rows)
        why = why or bad_values
    place = Run(folder, group, job.id, job.arm, job.seed, job.role, state, why, command=command, stage=job.stage,
                takes=job.takes)  # fmt: skip
    if state == "damaged":
        # Nothing of a damaged run is believed, so that no number of it can reach a table.
        return replace(place, config=job.config)
    made = _with_results(place, summary, manifest, config or job.config, curves)
    scores = {column: float(one["value"]) for column, one in later.items()}
    return replace(made, measured={**made.measured, **later}, scores={**made.scores, **scores})


def _with_results(
    run: Run, summary: Mapping[str, Any], manifest: Mapping[str, Any], config: Mapping[str, Any], curves: Curves
) -> Run:
    after = inner(summary, "after")
    places = [k for k in after if k.startswith("position/")]
    return replace(
        run,
        main=inner(summary, "score"),
        measured=_measured(summary),
        scores={k: v for k, v in summary.items() if "/" in k and is_score(v)},
        size=_size(summary, manifest),
        cost=_cost(summary, curves),
        curves=curves,
        by_position=[v if _number(v := after.get(f"position/{i}")) else None for i in range(1, len(places) + 1)],
        samples=_samples(summary),
        config=config,
        manifest=manifest,
        before=_before(summary),
    )


def _measured(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Values of evaluations; entries that are no numbers are ignored."""
    values = inner(inner(summary, "evaluation"), "values")
    return {
        column: one
        for column, one in values.items()
        if isinstance(one, Mapping)
        and _number(one.get("value"))
        and (one.get("error") is None or _number(one["error"]))
        and _number(one.get("items"))
    }


def _later_values(folder: Path, summary: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], str]:
    """Evaluations that were made of the finished run, of its last step; and what is wrong with their file."""
    try:
        values = read_values(folder)
    except AblatioError as error:
        return {}, note("evaluations left out", error=str(error).splitlines()[0])
    return {c: one for c, one in values.items() if one["step"] == summary.get("steps") and is_score(one["value"])}, ""


def _before(summary: Mapping[str, Any]) -> float | None:
    name = str(inner(summary, "score").get("name", "")).removeprefix("val/")
    found = inner(summary, "before").get(name)
    return float(found) if found is not None and _number(found) else None


def _state(folder: Path, summary: Mapping[str, Any], trouble: str) -> tuple[str, str]:
    if trouble:
        return "damaged", trouble
    if not summary:
        if (folder / "error.txt").exists():
            return "failed", _first_line(folder / "error.txt")
        return ("running", "") if (folder / "config.json").exists() else ("planned", "")
    state = str(summary.get("status"))
    if state not in STATES:
        return "damaged", note("unknown state", path=folder / "summary.json", state=repr(state[:40]))
    return state, str(summary.get("error") or "")


def _size(summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, float]:
    """Sizes of a run, the same on any machine; from its manifest until it is done."""
    planned = inner(manifest, "size")
    tokens, flops = summary.get("tokens"), summary.get("train_flops")
    trainable = summary.get("trainable_parameters")
    per_token = flops / tokens if _number(flops) and _number(tokens) and tokens else None
    if per_token is None and _number(planned.get("flops_per_token")):
        # The manifest has those of a forward pass; the backward pass takes twice as many.
        per_token = 3 * planned["flops_per_token"]
    found = {
        "parameters": summary.get("parameters", planned.get("parameters")),
        "trainable": trainable if trainable != summary.get("parameters") else None,
        "non_embedding": summary.get("non_embedding_parameters", planned.get("non_embedding")),
        "flops_per_token": per_token,
        "flops": flops,
        "tokens": tokens,
        "steps": summary.get("steps"),
    }
    return {k: v for k, v in found.items() if _number(v)}


def _cost(summary: Mapping[str, Any], curves: Curves) -> dict[str, float]:
    """Seconds of the run, median seconds of a step between two logs (which leaves validations out), peak memory."""
    found = {k: summary[k] for k in ("seconds", "memory") if _number(summary.get(k))}
    if "seconds" in curves:
        steps, clock = curves["seconds"]
        spans = zip(steps, steps[1:], clock, clock[1:], strict=False)
        each = [(t1 - t0) / (s1 - s0) for s0, s1, t0, t1 in spans if s1 > s0 and t1 > t0]
        if each:
            # The median: the first steps compile and warm up, and a validation lies between two logs now and then.
            found["step_seconds"] = median(each)
    return found


def _samples(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of text; other entries are ignored."""
    rows = summary.get("samples")
    return [
        {str(k): v for k, v in row.items() if isinstance(v, str)}
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, Mapping)
    ]


def object_in(path: Path, expected: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    """Return (JSON object in a file, problem); a missing file is an empty object without a problem.

    expected  types of values, as for `read_object`
    """
    try:
        return read_object(path, expected), ""
    except FileNotFoundError:
        return {}, ""
    except EnvironmentFault as error:
        return {}, str(error).splitlines()[0]


def inner(node: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the object under a key, or an empty one if the value is something else."""
    found = node.get(key)
    return found if isinstance(found, Mapping) else {}


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError as error:
        return short_error(error)
    # A traceback names the error in its last line, our own messages in the first.
    return (lines[-1] if lines[0].startswith("Traceback") else lines[0]) if lines else ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
