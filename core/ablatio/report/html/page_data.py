"""Data of the report page as plain numbers and text; a section without data is None or empty."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from ablatio.registry import parts_file
from ablatio.registry.value_schedules import COLUMN
from ablatio.report import rerun_command
from ablatio.report.analysis.arms import COSTS, SIZES, Arm, matched, rate_is_free, tuned
from ablatio.report.analysis.data_use import data_tables
from ablatio.report.analysis.evaluations import answer_rows, evaluation_rows
from ablatio.report.analysis.findings import CORRECTIONS, Findings, Row, alpha_of
from ablatio.report.analysis.reward_kl_frontier import frontier
from ablatio.report.analysis.scaling_verdict import trend_chart
from ablatio.report.analysis.score_quality import quality_cells, score_qualities
from ablatio.report.analysis.search import placed, search_of
from ablatio.report.analysis.study_cost import study_cost
from ablatio.report.analysis.verdict import LANGUAGES, Verdict
from ablatio.report.escape import lines_of, visible
from ablatio.report.read.curves import POLICY, Curve, band, minus
from ablatio.report.read.notes import Note, in_short
from ablatio.report.read.provenance import provenance
from ablatio.report.read.run import RATE, Run
from ablatio.report.read.stages import stages_of
from ablatio.report.statistics import Pair, half_normal, ranks, rate_sensitivity, smallest_difference
from ablatio.sweep.study import Study, label_of

CURVES = ("train/loss", "train/grad_norm", *POLICY)  # in addition to the compared score
BEST, WORST = 24, 8  # arms whose curves are stored in the page, which draws at most a dozen


def content(found: Findings) -> dict[str, Any]:
    """Return the one JSON block of the page."""
    table, study = found.table, found.table.study
    made: dict[str, Any] = clean({
        "study": {
            "name": study.name, "question": study.question, "expected": study.expected,
            "design": study.design.get("name", ""), "settings": study.settings, "overrides": _asked(study),
            "axes": [a.key for a in study.axes if len(a.values) > 1 or a.interval],
            "folders": [str(f) for f in table.folders],
        },
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "states": table.count(),
        "metric": found.metric, "better": found.better,
        "verdict": {n: _verdict(found, v, found.rules.get(n, ())) for n, v in found.verdicts.items()},
        "best": found.comparison.best if found.comparison else None,
        "correction": CORRECTIONS[found.comparison.correction] if found.comparison else "",
        "seeds": len({n for r in found.rows for n in r.arm.values}),
        "arms": [_arm(found, row) for row in found.rows],
        "pairs": _pairs(found),
        "visible": _visible(found),
        "curves": _curves(found),
        "factors": _factors(found),
        "search": _search(found),
        "ranks": _ranks(found),
        "rates": _rates(found),
        "frontier": frontier(found),
        "positions": _positions(found),
        "noise": _noise(found),
        "trends": [trend_chart(t) for t in found.trends],
        "trends_said": {n: found.said_of_scales(n) for n in LANGUAGES},
        "evaluations": [row.cells for row in evaluation_rows(found)],
        "answers": answer_rows(found),
        "signal": quality_cells(score_qualities(table)),
        "stages": [asdict(stage) for stage in stages_of(table.runs)],
        "data": data_tables(found),
        "lost": [_lost(r) for r in table.runs if r.state in ("failed", "diverged", "damaged", "preempted")],
        "refused": [{"label": label_of(r.arm), "why": r.why} for r in table.refused],
        "running": [_running(r) for r in table.runs if r.state == "running"],
        "cost": study_cost(table),
        "provenance": provenance(table.runs),
        "notes": table.notes,
    })  # fmt: skip
    return made | {"samples": _samples(found)}  # samples keep their line breaks


def _asked(study: Study) -> str:
    """The command that the user gave."""
    words = [text for text in study.overrides if text != "-m"]
    return rerun_command.line([*words, *parts_file.words(study.parts_file)] if words else [], many=True)


def clean(node: Any) -> Any:
    """Make text visible, notes one text per language, numbers that JSON lacks None; round floats to 7 digits."""
    if isinstance(node, Note):
        return {"en": visible(node), "zh": visible(node.zh)}
    if isinstance(node, Mapping):
        return {visible(k): clean(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [clean(v) for v in node]
    if isinstance(node, float):
        # Seven digits are more than page and charts show, and half the size of all that a float has.
        return float(f"{node:.7g}") if math.isfinite(node) else None
    return node if node is None or isinstance(node, bool | int) else visible(node)


def _verdict(found: Findings, words: Verdict, rules: Sequence[str]) -> dict[str, Any]:
    """Sentences, each with the first arm's outcome in its pair: better, worse or open."""
    base = (found.comparison.baseline or found.comparison.best) if found.comparison else None

    def kind(pair: Pair) -> str:
        return "open" if pair.better is None else "worse" if pair.better == base else "better"

    first = f"{words.headline} {words.answer}"
    lead = [{"text": text, "kind": "effect"} for text in words.effects]
    lead += [{"text": words.answer, "kind": "open"}] if words.answer else []
    said = [{"text": text, "kind": "open"} for text in words.outcomes]
    said += [{"text": s.text, "kind": kind(s.pair)} for s in words.sentences]
    said = lead + [s for s in said if s["text"] not in first]
    return {"headline": words.headline, "sentences": said, "notes": [*rules, *words.notes]}


def _arm(found: Findings, row: Row) -> dict[str, Any]:
    arm, base = row.arm, found.baseline
    other = base.arm.values if base and not arm.baseline else {}
    states = [r.state for r in arm.runs]
    return {
        "name": arm.name, "label": arm.label, "baseline": arm.baseline,
        "n": row.n, "mean": row.mean, "sd": row.sd, "rank": row.rank,
        "values": [[b, v, v - other[b] if b in other else None] for b, v in arm.values.items()],
        "pair": _pair(row.pair) if row.pair else None,
        "states": {s: states.count(s) for s in dict.fromkeys(states)},
        "residual": row.residual, "unmatched": row.unmatched,
        "matched": matched(found.table, arm),
        "rate": arm.rate, "tuned": tuned(found.table, arm), "rate_is_free": rate_is_free(found.table),
        "command": arm.again, "shrunk": asdict(found.shrunk[arm.name]) if arm.name in found.shrunk else None,
    } | {k: arm.size(k) for k in SIZES} | {k: arm.cost(k) for k in COSTS}  # fmt: skip


def _pair(pair: Pair) -> dict[str, Any]:
    d = pair.difference
    return {
        "a": pair.a, "b": pair.b, "mean": d.mean, "low": d.low, "high": d.high, "n": d.n, "p": pair.p,
        "together": pair.corrected, "better": pair.better, "planned": pair.planned_seeds,
        "left_out": pair.left_out,
    }  # fmt: skip


def _pairs(found: Findings) -> list[dict[str, Any]]:
    """Comparisons in the order of the table, without those that have no difference."""
    if found.comparison is None:
        return []
    place = {row.arm.name: i for i, row in enumerate(found.rows)}
    pairs = [p for p in found.comparison.pairs if not math.isnan(p.difference.mean)]
    return [_pair(p) for p in sorted(pairs, key=lambda p: (place.get(p.a, 0), place.get(p.b, 0)))]


def _visible(found: Findings) -> float | None:
    """Smallest difference that a study of this many seeds and arms detects."""
    if found.pair_sd is None or found.comparison is None:
        return None
    pairs = found.comparison.pairs
    if found.comparison.best is not None:
        return next((p.detectable for p in pairs if p.detectable > 0), None)
    n = int(median(p.difference.n for p in pairs if p.difference.sd > 0))
    return smallest_difference(n, found.pair_sd, len(pairs) + 1, alpha_of(found.table.study))


def _curves(found: Findings) -> list[dict[str, Any]]:
    """Per score: mean over seeds of each arm with one sd to each side, and its paired difference to the baseline.

    Settings that changed during training follow after the scores, under their paths.
    """
    last = len(found.rows)
    # The best, the worst and the baseline: a study of a thousand arms must stay a page that opens.
    shown = [i for i, row in enumerate(found.rows) if i < BEST or i >= last - WORST or row.arm.baseline]
    made: list[dict[str, Any]] = []
    runs = [run for row in found.rows for run in row.arm.runs]
    scheduled = sorted({name for run in runs for name in run.curves if name.startswith(COLUMN)})
    of_sources = sorted({name for run in runs for name in run.curves if name.startswith(f"{found.metric}/")})
    for name in dict.fromkeys([found.metric, *of_sources, *CURVES, *scheduled]):
        arms = {i: _by_seed(found.rows[i].arm, name) for i in shown}
        base = next((arms[i] for i in shown if found.rows[i].arm.baseline), {})
        bands = [_of(i, list(c.values())) for i, c in arms.items() if c]
        if any(len(b["steps"]) > 1 for b in bands):
            title, setting = name.removeprefix(COLUMN), name.startswith(COLUMN)
            shared = {"name": title, "difference": False, "setting": setting}
            made.append({**shared, "arms": bands, "broken": _broken(found, name)})
        if name != found.metric or not base:
            continue
        gaps = {i: [minus(c[s], base[s]) for s in c if s in base] for i, c in arms.items() if c is not base}
        apart = [_of(i, kept) for i, c in gaps.items() if (kept := [x for x in c if len(x[0]) > 1])]
        if apart:
            made.append({"name": name, "difference": True, "arms": apart})
    return made


def _of(arm: int, curves: Sequence[Curve]) -> dict[str, Any]:
    return {"arm": arm, **band(curves)}


def _by_seed(arm: Arm, name: str) -> dict[tuple[str, int], Curve]:
    kept = [r for r in arm.runs if name in r.curves and r.state not in ("damaged", "diverged")]
    return {(r.group, r.seed): r.curves[name] for r in kept}


def _broken(found: Findings, name: str) -> list[dict[str, Any]]:
    """Curves of diverged runs, which are in no mean."""
    runs = [(i, r) for i, row in enumerate(found.rows) for r in row.arm.runs if r.state == "diverged"]
    kept = [(i, r.curves[name]) for i, r in runs if name in r.curves]
    return [_of(i, [curve]) for i, curve in kept[:BEST]]


def _factors(found: Findings) -> dict[str, Any] | None:
    """Main effects and interactions and, for a screening design, its half-normal plot."""
    if found.factors is None:
        return None
    fit, screen = found.factors.fit, found.factors.screen
    # With replicates there are tests; the plot is for designs whose spread comes from the effects themselves.
    sieve = half_normal(fit) if found.screening or fit.df == 0 else None
    corrected = {t.name: min((c.p for c in screen.of(t.name)), default=math.nan) for t in fit.terms}
    return {
        "metric": found.factors.metric, "mean": fit.mean, "sd": fit.sd, "df": fit.df, "left_out": fit.left_out,
        "terms": [
            {
                "factors": t.factors, "p": corrected[t.name], "aliases": t.aliases, "touched": t.touched_by,
                "size": t.difference, "effects": [[e.levels, e.value, e.low, e.high] for e in t.effects],
            }
            for t in fit.terms
        ],
        "half_normal": None if sieve is None or not sieve.names else {
            "names": sieve.names, "sizes": sieve.sizes, "quantiles": sieve.quantiles, "margin": sieve.simultaneous,
            "error": sieve.error,
        },
        "aliases": found.table.study.aliases,
    }  # fmt: skip


def _search(found: Findings) -> dict[str, Any] | None:
    """Trials of a search with their places on each knob's axis; the best first."""
    search = search_of(found)
    if search is None:
        return None
    return {
        "knobs": [asdict(k) for k in search.knobs],
        "trials": [
            {
                "at": [placed(k, t.arm) for k in search.knobs], "text": [t.arm.get(k.key, "") for k in search.knobs],
                "score": t.score, "final": t.final, "runs": t.runs, "command": t.command,
            }
            for t in search.trials
        ],
        "importance": [
            [key, one.share, one.p if search.sampled else None] for key, one in search.importance.items()
        ],
        "said": {n: search.said(n) for n in LANGUAGES}, "sampled": search.sampled,
    }  # fmt: skip


def _ranks(found: Findings) -> dict[str, Any] | None:
    """Rank of each arm in each seed that all arms finished; over several folders, in each of them."""
    rows = [(i, r.arm.values) for i, r in enumerate(found.rows) if r.n]
    blocks = sorted(set.intersection(*(set(v) for _, v in rows))) if rows else []
    blocks = [b for b in blocks if all(math.isfinite(v[b]) for _, v in rows)]
    if len(rows) < 3 or len(blocks) < 2:
        return None
    from scipy.stats import rankdata

    scores = [[v[b] for _, v in rows] for b in blocks]
    sign = 1 if found.better == "low" else -1
    each = [rankdata([sign * x for x in line]).tolist() for line in scores]
    whole = ranks(scores, better=found.better)
    arms = [
        {"arm": i, "mean": float(m), "each": [line[k] for line in each]}
        for k, ((i, _), m) in enumerate(zip(rows, whole.mean, strict=True))
    ]
    return {"p": whole.p, "critical": whole.critical, "blocks": len(blocks), "arms": arms}


def _rates(found: Findings) -> list[dict[str, Any]]:
    """Score against learning rate for every arm that ran at two or more: as an axis, or while it was tuned."""
    lines: dict[str, dict[float, list[Run]]] = {}
    for run in found.table.runs:
        if run.role != "stage" and run.rate is not None and (run.done or run.state == "diverged"):
            settings = {k: v for k, v in run.arm.items() if k != RATE}
            lines.setdefault(label_of(settings), {}).setdefault(run.rate, []).append(run)
    made = []
    for label, rates in lines.items():
        if len(rates) < 2:
            continue
        points = [
            [rate, r.scores.get(found.metric) if r.done else None, r.role] for rate, runs in rates.items() for r in runs
        ]
        means = {rate: _mean([r.scores.get(found.metric) for r in runs if r.done]) for rate, runs in rates.items()}
        # The first validation is that of the untrained model, which the sensitivity takes for a diverged run.
        start = [c[1][0] for runs in rates.values() for r in runs if (c := r.curves.get(found.metric))]
        cost = None
        if found.better == "low" and start and sum(math.isfinite(v) for v in means.values()) > 1:
            cost = rate_sensitivity(means, median(start))
        line = sorted(means.items())
        made.append({"name": label, "points": points, "line": line, "sensitivity": cost})
    # More lines than that cannot be told apart in one chart.
    return made if len(made) <= BEST else []


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else math.nan


def _positions(found: Findings) -> list[dict[str, Any]]:
    """Loss by position in the row: mean over seeds and one sd to each side."""
    made = []
    for i, row in enumerate(found.rows[:BEST]):
        seeds = [r.by_position for r in row.arm.runs if r.done and len(r.by_position) > 1]
        kept = [s for s in seeds if all(v is not None for v in s)]
        if kept:
            length = min(map(len, kept))
            curves: list[Curve] = [(list(range(length)), [v for v in s[:length] if v is not None]) for s in kept]
            made.append(_of(i, curves))
    return made


def _samples(found: Findings) -> list[dict[str, Any]]:
    """Answers before and after of the first run of each arm; the best arms and the baseline."""
    made = []
    for i, row in enumerate(found.rows):
        run = next((r for r in row.arm.runs if r.samples), None)
        if run is not None and (i < BEST or row.arm.baseline):
            rows = [{visible(k): lines_of(v) for k, v in sample.items()} for sample in run.samples]
            made.append({"arm": i, "seed": run.seed, "rows": rows})
    return made


def _noise(found: Findings) -> dict[str, Any] | None:
    floor, row = found.noise, found.reference
    if floor is None or row is None:
        return None
    return {
        "name": row.arm.name, "n": floor.n, "mean": floor.mean, "sd": floor.sd, "low": floor.low, "high": floor.high,
        "values": [v for v in row.arm.values.values() if math.isfinite(v)], "paired": found.pair_sd is not None,
        "smallest": [[n, value] for n, value in found.smallest_visible().items()],
    }  # fmt: skip


def _lost(run: Run) -> dict[str, Any]:
    return {
        "label": run.title if run.stage or not run.arm else label_of(run.arm), "seed": run.seed, "state": run.state,
        "why": in_short(run.why), "steps": run.size.get("steps"), "command": rerun_command.line(run.command),
    }  # fmt: skip


def _running(run: Run) -> dict[str, Any]:
    """How far a run has come."""
    steps, losses = run.curves.get("train/loss", ([], []))
    whole = run.config.get("train")
    return {
        "title": run.title, "seed": run.seed, "step": steps[-1] if len(steps) else 0,
        "steps": whole.get("steps") if isinstance(whole, Mapping) else None,
        "loss": losses[-1] if len(losses) else None,
    }  # fmt: skip
