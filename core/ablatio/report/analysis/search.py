"""Trials of a search: the best of them, and what each setting did to the score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ablatio.registry.kinds.search_space import Axis
from ablatio.report import rerun_command
from ablatio.report.analysis.arms import shortest_key
from ablatio.report.analysis.findings import Findings
from ablatio.report.analysis.verdict_types import Language
from ablatio.report.read.run import Run
from ablatio.report.read.table import Table
from ablatio.report.statistics.importance import LEAST, Importance, importance
from ablatio.sweep.study import design_facts, label_of

ENDED = ("done", "diverged", "failed")


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting that the search varied.

    name   the shortest that tells it from the others; key: whole
    scale  log, linear or words
    """

    key: str
    name: str
    scale: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SearchTrial:
    """One combination that was tried.

    score  of its trial, or the mean over the seeds of its runs without a trial; None if it diverged or failed
    final  mean over the seeds of its final runs; runs: their number
    """

    arm: Mapping[str, str]
    score: float | None
    final: float | None
    runs: int
    command: str

    def text(self, knobs: Sequence[Knob]) -> str:
        """`lr=0.003 norm=rmsnorm`."""
        return " ".join(f"{k.name}={self.arm.get(k.key, '')}" for k in knobs)


@dataclass
class Search:
    """A search that has ended or is under way.

    trials   the best first; those without a score last
    seed     of the trials; None if all trials ran with the seeds of the study
    stopped  combinations that were stopped before the end of their schedule, which are in no chart
    sampled  True if trials were drawn without regard to results
    """

    metric: str
    better: str
    knobs: tuple[Knob, ...]
    trials: tuple[SearchTrial, ...]
    seed: int | None
    stopped: int
    sampled: bool

    @cached_property
    def importance(self) -> dict[str, Importance]:
        """Importance of each knob by its key, the largest first; empty for few trials."""
        settings = {k.key: _numbers(k, [t.arm.get(k.key, "") for t in self.trials]) for k in self.knobs}
        scores = [math.nan if t.score is None else t.score for t in self.trials]
        return importance(settings, scores, better=self.better)

    def said(self, language: Language = "en") -> list[str]:
        """The best trial, and what the tables below do not show."""
        words, scored = WORDS[language], [t for t in self.trials if t.score is not None]
        if not scored:
            return [words["none"].format(n=len(self.trials))]
        arm, score = scored[0].text(self.knobs), f"{scored[0].score:.4f}"
        found = [words["best"].format(n=len(self.trials), arm=arm, metric=self.metric, score=score)]
        if lost := len(self.trials) - len(scored):
            found.append(words["lost"].format(k=lost))
        if self.stopped:
            found.append(words["stopped"].format(k=self.stopped))
        found.append(words["luck"] if self.seed is None else words["finals"].format(seed=self.seed))
        if self.importance:
            shares = words["comma"].join(self._share(k, language) for k in self.importance)
            found.append(words["shares" if self.sampled else "shares searched"].format(shares=shares))
        elif len(self.trials) < LEAST:
            found.append(words["few"].format(least=LEAST))
        return found

    def _share(self, key: str, language: Language) -> str:
        one, name = self.importance[key], next(k.name for k in self.knobs if k.key == key)
        p = "< 0.001" if one.p < 0.001 else f"= {one.p:.3f}"
        return f"{name} {100 * one.share:.0f} %" + (f" (p {p})" if self.sampled else "")


def search_of(findings: Findings) -> Search | None:
    """The trials of a study whose design samples or searches; None for other designs, or if nothing has ended."""
    table, facts = findings.table, design_facts(findings.table.study)
    axes = [a for a in table.study.axes if len(a.values) > 1 or a.interval]
    if not facts["intervals"] or not axes:
        return None
    knobs = _knobs(axes)
    trials, stopped = _trials(table, findings.metric, knobs)
    if not trials:
        return None
    sign = 1 if findings.better == "low" else -1
    ordered = sorted(trials, key=lambda t: math.inf if t.score is None else sign * t.score)
    # Trials of a study that tunes each arm by itself choose a rate, and are no search over the axes.
    searched = any(r.role in ("trial", "rung") for r in table.runs) and not table.study.tuned
    seed = table.study.trial_seed if searched else None
    return Search(findings.metric, findings.better, knobs, tuple(ordered), seed, stopped, not searched)


def _knobs(axes: Sequence[Axis]) -> tuple[Knob, ...]:
    keys = [a.key for a in axes]
    return tuple(Knob(a.key, shortest_key(a.key, keys), _scale(a), a.values) for a in axes)


def _scale(axis: Axis) -> str:
    if axis.interval:
        return "log" if axis.interval.log else "linear"
    numbers = [x for value in axis.values if (x := _number(value)) is not None]
    if len(numbers) < len(axis.values):
        return "words"
    # Listed values say no scale; values over more than a decade are meant as factors.
    return "log" if min(numbers) > 0 and max(numbers) >= 20 * min(numbers) else "linear"


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _numbers(knob: Knob, texts: Sequence[str]) -> list[float] | list[str]:
    numbers = [_number(text) for text in texts]
    known = [x for x in numbers if x is not None]
    return list(texts) if knob.scale == "words" or len(known) < len(texts) else known


def placed(knob: Knob, arm: Mapping[str, str]) -> float | None:
    """Place of an arm on a knob's axis: its number, or the place of its word; None if it has none."""
    text = arm.get(knob.key, "")
    if knob.scale == "words":
        return float(knob.values.index(text)) if text in knob.values else None
    return _number(text)


def _trials(table: Table, metric: str, knobs: Sequence[Knob]) -> tuple[list[SearchTrial], int]:
    """(combinations that were tried to the end, number of those that were stopped early)."""
    role = "trial" if any(r.role == "trial" for r in table.runs) and not table.study.tuned else "run"
    finals: dict[str, list[Run]] = {}
    tried: dict[str, list[Run]] = {}
    for run in table.runs:
        label = label_of({k.key: run.arm.get(k.key, "") for k in knobs})
        if run.role == "run" and role != "run":
            finals.setdefault(label, []).append(run)
        if run.role == role and run.state in ENDED:
            tried.setdefault(label, []).append(run)
    return [_trial(runs, finals.get(label, []), metric) for label, runs in tried.items()], sum(
        r.role == "rung" for r in table.runs
    )


def _trial(runs: Sequence[Run], finals: Sequence[Run], metric: str) -> SearchTrial:
    # The mean of the seeds that are left would rank a combination that diverges above a sound one.
    lost = any(not r.done or metric not in r.scores for r in runs)
    done = [r.scores[metric] for r in finals if r.done and metric in r.scores]
    return SearchTrial(
        runs[0].arm, None if lost else _mean([r.scores[metric] for r in runs]), _mean(done) if done else None,
        len(done),
        rerun_command.of_arm([r.command for r in runs]),
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


WORDS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "comma": ", ",
        "none": "None of {n} trials came to a score.",
        "best": "Best of {n} trials: {arm}, {metric} {score}.",
        "lost": "Trials that diverged or failed, and count as the worst: {k}.",
        "stopped": "Stopped before the end of their schedule, and in no chart: {k}.",
        "luck": "The best score of many trials owes something to luck: run the best few again with new seeds.",
        "finals": "Trials have seed {seed}; the best score of many trials owes something to luck, and the final runs, "
        "with other seeds, do not share it.",
        "shares": "Share of the variance of the ranks that a setting explains by itself: {shares}.",
        "shares searched": "Share of the variance of the ranks that a setting explains by itself, where the search "
        "looked (it prefers what was good so far): {shares}.",
        "few": "Importance is estimated from {least} trials on.",
    },
    "zh": {
        "comma": "、",
        "none": "{n} 次试验均没有得分。",
        "best": "{n} 次试验中最好的：{arm}，{metric} {score}。",
        "lost": "发散或失败的试验（按最差计）：{k}。",
        "stopped": "中途停止、不在图中的试验：{k}。",
        "luck": "多次试验中最好的得分带有运气：请用新的种子重跑最好的几个。",
        "finals": "试验使用种子 {seed}；多次试验中最好的得分带有运气，而用其他种子的最终运行不受此影响。",
        "shares": "各设置单独解释的名次方差比例：{shares}。",
        "shares searched": "在搜索到过的区域（偏向此前较好的）内，各设置单独解释的名次方差比例：{shares}。",
        "few": "试验达到 {least} 次才估计重要性。",
    },
}
