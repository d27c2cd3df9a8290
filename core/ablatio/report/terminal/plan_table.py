"""The planned sweep: sizes, time from a short probe, and the seeds that a difference needs."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablatio.registry.kinds import tasks
from ablatio.sweep.arms import Cell
from ablatio.sweep.durations import duration
from ablatio.sweep.plan import Plan
from ablatio.sweep.registration import AMOUNTS
from ablatio.sweep.registration import sentence as registration_in_words
from ablatio.sweep.run_cost import run_seconds
from ablatio.sweep.score import score_of
from ablatio.sweep.study import STUDY, Study, design_facts, is_done, jobs_of, label_of, run_folder, summary_of
from ablatio.training.run_spec import RunSpec

PROBE_SECONDS = 3.0  # what the user waits for the estimate
HOPELESS = 5.0  # sd of a paired difference: a study that shows only larger differences gets a warning
WORTH_SEEING = 2.0  # sd; the plan that is proposed instead shows this difference
MOST_SEEDS = 20  # of the sequential study that is proposed
ASSUMED_SD = 0.03  # nats, of a paired difference: small models on the embedded corpora have 0.01 to 0.06


@dataclass(frozen=True, slots=True)
class ArmEstimate:
    """Size and time of an arm before it runs; None if finding out would take too long."""

    parameters: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Standard deviation of a paired difference, its source, unit and degrees of freedom; df None: not measured."""

    sd: float
    source: str
    unit: str = "nats"
    df: int | None = None


def estimate_arms(
    cells: Sequence[Cell], planned: Mapping[str, Mapping[str, Any]], seconds: float = PROBE_SECONDS
) -> list[ArmEstimate]:
    """Parameters and time of each arm, within about `seconds`: one arm is timed, the others scale by their FLOPs."""
    started = time.monotonic()
    found: list[ArmEstimate] = []
    reference: tuple[float, float] | None = None  # (seconds, FLOPs) of an arm that was timed
    for cell in cells:
        config = planned.get(cell.label, cell.config)
        if time.monotonic() - started > seconds:
            found.append(ArmEstimate())
            continue
        spec = RunSpec(config)
        flops = spec.train_flops
        if reference is None:
            reference = run_seconds(spec), flops
            started = time.monotonic()  # that one has imported torch
        took = reference[0] * flops / reference[1] if reference[0] else None
        found.append(ArmEstimate(spec.parameters, took))
    return found


def spread(plan: Plan, folder: Path | None) -> Spread | None:
    """Return the spread of paired differences from runs of this study or of others beside it.

    Runs are comparable if they have the task and the number of steps of the plan.  Without such runs a value is assumed
    for losses; None for other scores.
    """
    unit = _unit(plan)
    places = [folder] if folder and (folder / STUDY).exists() else []
    root = Path(plan.config["out"]).expanduser()
    places += sorted(p.parent for p in root.glob(f"*/{STUDY}") if p.parent not in places)
    for place in places:
        groups = _differences(place, plan)
        if groups:
            # Around the mean of each arm: a true difference between arms is no noise.
            squares = sum((d - sum(group) / len(group)) ** 2 for group in groups for d in group)
            free, pairs = sum(len(group) - 1 for group in groups), sum(map(len, groups))
            return Spread(math.sqrt(squares / free), f"{pairs} pairs of runs in {place}", unit, free)
    return Spread(ASSUMED_SD, "assumed; `ablatio noise` measures it", unit) if unit == "nats" else None


def _unit(plan: Plan) -> str:
    """Unit of the main score of the plan's task."""
    task = tasks[plan.cells[0].config["task"]["name"]]
    return "nats" if task.facts["main"] == "loss" else str(task.facts["main"])


def _differences(folder: Path, plan: Plan) -> list[list[float]]:
    """Differences of each comparable arm from the first, seed by seed; groups of two seeds or more."""
    losses: dict[str, dict[int, float]] = {}
    lengths = {cell.config["train"]["steps"] for cell in plan.cells}
    names = {cell.config["task"]["name"] for cell in plan.cells}
    for job in jobs_of(folder):
        score = score_of(summary_of(run_folder(folder, job.id)))
        comparable = job.config["train"]["steps"] in lengths and job.config["task"]["name"] in names
        if job.role == "run" and score and comparable:
            losses.setdefault(job.label, {})[job.seed] = score.value
    arms = list(losses.values())
    groups = ([other[s] - arms[0][s] for s in other.keys() & arms[0].keys()] for other in arms[1:])
    return [group for group in groups if len(group) > 1]


def sentences(plan: Plan, seen: Sequence[ArmEstimate], folder: Path | None = None) -> Iterator[str]:
    """Yield the plan in words."""
    runs = [job for job in plan.jobs if job.role == "run"]
    others = len(plan.jobs) - len(runs)
    seeds, arms = len(plan.study.seeds), len(plan.cells)
    text = f"{arms} arm{'s' * (arms != 1)}"
    text += f", {len(plan.study.refused)} refused" if plan.study.refused else ""
    text += f", {len(plan.study.same)} the same as another" if plan.study.same else ""
    if plan.study.sequential:
        yield from looks_sentences(plan, seen, folder)
        return
    if plan.adaptive:
        text += f"; {others} trials first, then {seeds} seed{'s' * (seeds != 1)} of what they choose"
    else:
        text += f"; {len(runs)} runs"
    left = [job for job in plan.jobs if not is_done(folder, job.id)]
    text += f", {len(plan.jobs) - len(left)} of them done" if len(left) < len(plan.jobs) else ""
    seconds = [s.seconds for s in seen if s.seconds is not None]
    if seconds and (left or plan.coming):
        # A rung of a search ends early, and costs its share of the steps.
        shares = sum(job.until / int(job.config["train"]["steps"]) if job.until else 1.0 for job in left)
        total = sum(seconds) / len(seconds) * (shares + plan.coming)
        text += f", {'at least' if plan.adaptive else 'about'} {duration(total)} of computing on one core"
    yield text + "."
    if any(plan.settings.get(name) for name in ("primary", *AMOUNTS)):
        yield registration_in_words(plan.study.registered)
    each = sum(seconds) / len(seconds) if seconds else None
    yield from seeds_sentence(plan, folder, each)


def seeds_sentence(plan: Plan, folder: Path | None, seconds: float | None = None) -> Iterator[str]:
    """Yield which differences the seeds can show, and how many seeds that of `plan=` needs.

    seconds: of one run, if known
    """
    yield from visible_sentence(plan, folder)
    delta = plan.settings.get("plan")
    if not delta:
        return
    from ablatio.report.statistics import seeds_needed

    known, arms, seeds = spread(plan, folder), len(plan.cells), len(plan.study.seeds)
    if known is None:
        yield (
            f"plan={delta:g}: how much {_unit(plan)} varies from seed to seed is not known before the first runs; the "
            "same command says it when two seeds are done."
        )
        return
    need = seeds_needed(delta, known.sd, max(2, arms), plan.settings["alpha"], plan.settings["power"], known.df)
    cost = f", {need * arms} runs" if not plan.study.stages else ""
    if seconds:
        cost += f", {duration(seconds * need * arms)}"
    yield (
        f"To see {delta:g} {known.unit} between {arms} arms takes {need} seeds{cost} "
        f"(sd of a paired difference {known.sd:.3g} {known.unit}: {known.source}). This sweep has {seeds}."
    )


def visible_sentence(plan: Plan, folder: Path | None) -> Iterator[str]:
    """Yield the smallest difference that the study can show, and a better plan if that is hopelessly large."""
    from ablatio.report.statistics import seeds_needed, smallest_difference

    arms, seeds = len(plan.cells), len(plan.study.seeds)
    if arms < 2 or plan.settings["plan"] or design_facts(plan.study)["screens"]:
        return
    alpha, power = plan.settings["alpha"], plan.settings["power"]
    # In units of the spread: before the first runs nobody knows it in nats.
    better = seeds_needed(WORTH_SEEING, 1.0, arms, alpha, power)
    advice = (
        f"{better} seeds would show {WORTH_SEEING:g} sd, and until=resolved seeds=3..{max(MOST_SEEDS, better)} adds "
        "seeds only where they are needed"
    )
    if seeds < 2:
        yield f"With one seed no difference can be tested: {advice}."
        return
    least = smallest_difference(seeds, 1.0, arms, alpha, power)
    text = f"{arms} arms with {seeds} seeds show a difference of {least:.2g} sd in {100 * power:.0f} % of studies"
    known = spread(plan, folder)
    if known and known.df:
        measured = smallest_difference(seeds, known.sd, arms, alpha, power, known.df)
        text += f": {measured:.2g} {known.unit}, from {known.source}"
    else:
        text += "; sd is that of a paired difference between seeds"
        text += f", about {known.sd:g} {known.unit} for small models" if known else ""
    yield text + "."
    if least > HOPELESS:
        yield f"Warning: few settings make such a difference. {advice[0].upper()}{advice[1:]}."


def looks_sentences(plan: Plan, seen: Sequence[ArmEstimate], folder: Path | None) -> Iterator[str]:
    """Yield the plan of a sequential study: most runs, their time, looks, and what it can show."""
    from ablatio.report.statistics import smallest_difference
    from ablatio.sweep.group_sequential import Boundaries

    record, arms = plan.study.sequential, len(plan.cells)
    boundaries = Boundaries.read(record["boundaries"])
    sizes, made = boundaries.sizes, len(record["looks"])
    runs = arms * sizes[-1]
    trials = sum(job.role == "trial" for job in plan.jobs)
    text = f"{arms} arms: at most {runs} runs" + (f" after {trials} trials" if trials else "")
    times = [s.seconds for s in seen if s.seconds is not None]
    if each := record["run_seconds"] or (sum(times) / len(times) if times else 0.0):
        text += f", {duration(each * (runs + trials))} of computing on one core"
    text += f", budget {plan.settings['budget']}" if record["budget"] else ""
    yield f"{text}. Looks at n = {', '.join(map(str, sizes))} seeds" + (f", {made} of them made." if made else ".")
    margin = f" equal within {record['margin']:g}," if record["margin"] else ""
    yield f"An arm stops when its comparison with {record['baseline']} is resolved,{margin} or hopeless."
    # The limit of the last look, after spending on the others: stricter than alpha over the comparisons.
    last = boundaries.p_at(len(sizes) - 1, record["alpha"] / record["comparisons"])
    known, power = spread(plan, folder), plan.settings["power"]
    least = smallest_difference(sizes[-1], 1.0, 2, last, power)
    text = f"With {sizes[-1]} seeds it shows a difference of {least:.2g} sd in {100 * power:.0f} % of studies"
    if known and known.df:
        measured = smallest_difference(sizes[-1], known.sd, 2, last, power, known.df)
        text += f": {measured:.2g} {known.unit}, from {known.source}"
    yield text + "."


def show(plan: Plan, folder: Path | None = None) -> None:
    """Print the arms before the first run: ready, done or refused, size and time."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    most = int(plan.settings["table"])
    seen = estimate_arms(plan.cells, {job.label: job.config for job in plan.jobs}) if most else []
    if most:
        table = Table(box=None, pad_edge=False)
        for column in ("arm", "state", "parameters", "a run"):
            table.add_column(column, justify="right" if column in ("parameters", "a run") else "left", overflow="fold")
        done = _done(plan, folder)
        for cell, sight in list(zip(plan.cells, seen, strict=True))[:most]:
            ready, total = done.get(cell.label, (0, 0))
            state = "ready" if not ready else f"{ready} of {total} done"
            if cell.label in plan.study.matched:
                state += _matched(plan.study, cell.label)
            size = f"{sight.parameters:,}" if sight.parameters else ""
            table.add_row(escape(cell.label), state, size, duration(sight.seconds) if sight.seconds else "")
        for refused in plan.study.refused[:most]:
            table.add_row(escape(label_of(refused.arm)), escape(f"refused: {refused.why}"))
        console.print(table, highlight=False)
        left = len(plan.cells) + len(plan.study.refused) - 2 * most
        if left > 0:
            console.print(f"... and more; table={len(plan.cells)} shows all", highlight=False)
    for alias in plan.study.aliases:
        console.print(f"not told apart: {alias}", highlight=False, markup=False)
    for sentence in sentences(plan, seen, folder):
        console.print(sentence, highlight=False, markup=False)


def _matched(study: Study, label: str) -> str:
    found = study.matched[label]
    changed = " ".join(f"{k}={v}" for k, v in found["set"].items()) or "as it is"
    return f", {changed} ({found['what']} {found['residual']:+.2%})"


def _done(plan: Plan, folder: Path | None) -> dict[str, tuple[int, int]]:
    """(finished runs, all runs) per arm."""
    found: dict[str, tuple[int, int]] = {}
    for job in plan.jobs:
        n, total = found.get(job.label, (0, 0))
        found[job.label] = n + is_done(folder, job.id), total + 1
    return found
