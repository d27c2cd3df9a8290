"""Read a report's sentences back into claims and intervals: patterns and scipy, no code of the report."""

import csv
import html
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

NUMBER = r"[-+−]?\d+(?:\.\d+)?"
NAME = r"[^\s:;,()]+"
FIGURES = rf"(?P<mean>{NUMBER}) (?P<unit>[^\[\]]+?) \[(?P<low>{NUMBER}), (?P<high>{NUMBER})\]"
P = rf"(?P<test>[^,;()\[\]]*?)p (?P<sign>[<=]) (?P<p>{NUMBER})"
BEATS = re.compile(rf"(?P<a>{NAME}) beats (?P<b>{NAME}) by {FIGURES}, {P}, n = (?P<n>\d+)")
PICKED = re.compile(
    rf"(?P<a>{NAME}) beats (?P<b>{NAME}) by (?P<mean>{NUMBER}) (?P<unit>[^\[\]]+?), {P}, n = (?P<n>\d+) "
    rf"\(picked because it is resolved, so it may look too large; \[(?P<low>{NUMBER}), (?P<high>{NUMBER})\] allows"
)
WIDE = (
    rf"(?: for this pair alone, \[(?P<wide_low>{NUMBER}), (?P<wide_high>{NUMBER})\] for all (?P<m>\d+) comparisons "
    r"together)?"
)
STATE = r"(?:not resolved|equal within)[^(]*"  # and, of a sequential study, after which look
KIND = r"(?:, an interval [^,;()\[\]]*)?"
OPEN = re.compile(rf"(?P<a>{NAME}) and (?P<b>{NAME}): {STATE}\({FIGURES}{WIDE}{KIND}, {P}, n = (?P<n>\d+)")
CLAIMS = (
    re.compile(rf"(?P<a>{NAME}) beats (?P<b>{NAME}) by (?!more than)"),
    re.compile(rf"(?P<a>{NAME}) ranks above (?P<b>{NAME})"),
    re.compile(rf"(?P<a>{NAME}) beats each of the other"),
    re.compile(rf"(?P<a>{NAME}) is the best of"),
    re.compile(rf"(?P<b>{NAME}) is worse than the best by"),
)
EFFECTS = re.compile(r"(?P<k>\d+) of \d+ settings (?:matter|have an effect|stand out, each aliased)")
MARGIN = {
    "superior": re.compile(rf"^Margin [^:]*: (?P<a>{NAME}) beats (?P<b>{NAME}) by more than the margin"),
    "equivalent": re.compile(rf"^Margin [^:]*: (?P<a>{NAME}) and (?P<b>{NAME}) are equal within the margin"),
    "not inferior": re.compile(rf"^Margin [^:]*: (?P<a>{NAME}) is not worse than (?P<b>{NAME}) by the margin"),
}
REACHES = re.compile(rf"^(?P<a>{NAME}) reaches the target")
STEP = re.compile(r"from step (?P<step>\d+) on")


@dataclass(frozen=True)
class Interval:
    """A printed interval of score(a) - score(b); low and high as printed, turned for a sentence with `beats`.

    together: the interval that holds for all m comparisons at the same time (Bonferroni), where one is printed
    """

    a: str
    b: str
    mean: float
    low: float
    high: float
    p: float
    p_is_exact: bool
    n: int
    claimed: bool
    together: tuple[float, float] | None = None
    m: int = 1


def intervals(sentence: str, lower_is_better: bool = True) -> Iterator[Interval]:
    """Every interval of a difference of two named arms in a sentence."""
    for pattern in (BEATS, PICKED, OPEN):
        for m in pattern.finditer(sentence):
            mean, low, high = (float(m[k].replace("−", "-")) for k in ("mean", "low", "high"))
            if pattern is not OPEN and lower_is_better:  # the words give the sign
                mean, low, high = -mean, -high, -low
            wide, told = None, m.groupdict()
            if told.get("m"):
                wide = float(m["wide_low"].replace("−", "-")), float(m["wide_high"].replace("−", "-"))
            yield Interval(
                m["a"], m["b"], mean, low, high, float(m["p"]), m["sign"] == "=", int(m["n"]), pattern is not OPEN,
                wide, int(told.get("m") or 1),
            )  # fmt: skip


def claims(sentences: Sequence[str]) -> Iterator[tuple[str | None, str | None]]:
    """(better arm, worse arm) of each claimed difference; None: not named, as in `beats each of the others`."""
    for sentence in sentences:
        for pattern in CLAIMS:
            for m in pattern.finditer(sentence):
                yield m.groupdict().get("a"), m.groupdict().get("b")
        if (m := EFFECTS.search(sentence)) and int(m["k"]):
            yield None, None


def on_margin(sentences: Sequence[str], kind: str) -> list[tuple[str, str]]:
    """(a, b) of each answer of this kind on the margin."""
    return [(m["a"], m["b"]) for s in sentences if (m := MARGIN[kind].search(s))]


def reached(sentences: Sequence[str]) -> dict[str, int | None]:
    """Arm -> stopping step (None: not told) of each arm that is said to reach the target."""
    found: dict[str, int | None] = {}
    for sentence in sentences:
        if m := REACHES.search(sentence):
            step = STEP.search(sentence)
            found[m["a"]] = int(step["step"]) if step else None
    return found


def problems(markdown: str, results: str, metric: str = "val/loss") -> list[str]:
    """Recompute each sentence of a report.md from its results.csv, and name what does not agree.

    Checked: the mean and the t interval of scipy.stats.ttest_rel to the printed digits, n, Holm's p by statsmodels over
    the printed pairs, and that a claim stands where p <= 0.05 and nowhere else.  A pair that the report names as
    corrected for skewness may have a wider interval and a larger p, but neither the other way; with such a pair, p of
    the others are bounds, too.
    """
    from scipy import stats
    from statsmodels.stats.multitest import multipletests

    values: dict[str, dict[int, float]] = {}
    axis, *_ = next(csv.reader(io.StringIO(results)))
    for row in csv.DictReader(io.StringIO(results)):
        if row["state"] == "done" and row["role"] == "run":
            values.setdefault(row[axis], {})[int(row["seed"])] = float(row[metric])
    told: dict[tuple[str, str], Interval] = {}
    for line in html.unescape(markdown.replace("\\", "")).splitlines():
        if line.startswith("- ") and "Margin" not in line:
            told |= {(i.a, i.b): i for i in intervals(line)}
    raw, found = [], list[str]()
    named = "".join(re.findall(r"corrected for skewness \(Hall\): (.*)", html.unescape(markdown.replace("\\", ""))))
    for (a, b), interval in told.items():
        seeds = sorted(values[a].keys() & values[b].keys())
        x, y = (np.array([values[k][s] for s in seeds]) for k in (a, b))
        test = stats.ttest_rel(x, y)
        raw.append(float(test.pvalue))
        low, high = test.confidence_interval(0.95)
        right = [("mean", interval.mean, (x - y).mean()), ("low", interval.low, low), ("high", interval.high, high)]
        if interval.together:
            wide = test.confidence_interval(1 - 0.05 / interval.m)
            right += [("together low", interval.together[0], wide[0]), ("together high", interval.together[1], wide[1])]
        ends = interval.together or (interval.low, interval.high)
        if not interval.claimed and ends[0] * ends[1] > 0:
            found.append(f"{a} and {b}: no interval with 0 beside not resolved")
        digits = 0.6 * 10 ** -len(f"{interval.low}".partition(".")[2]) + 1e-9
        digits = max(digits, 0.6e-3)
        skewed = f"{a} and {b}" in named or f"{b} and {a}" in named or "..." in named
        for what, printed, exact in right:
            beyond = exact - printed if what.endswith("low") else printed - exact
            if abs(printed - exact) > digits and not (skewed and what != "mean" and beyond > 0):
                found.append(f"{a} and {b}: {what} {printed} is printed, {exact:.5f} is right")
        if interval.n != len(seeds):
            found.append(f"{a} and {b}: n = {interval.n} is printed, {len(seeds)} is right")
    corrected = multipletests(raw, method="holm")[1] if raw else []
    for ((a, b), interval), p in zip(told.items(), corrected, strict=True):
        if named and interval.p >= p - 0.006 and interval.claimed == (interval.p <= 0.05):
            continue
        if interval.claimed != (p <= 0.05):
            found.append(f"{a} and {b}: {'claimed' if interval.claimed else 'not claimed'} at Holm p = {p:.4f}")
        if interval.p_is_exact and abs(interval.p - p) > (0.0006 if interval.p < 0.1 else 0.006):
            found.append(f"{a} and {b}: p = {interval.p} is printed, {p:.4f} is right")
    arms = len(values)
    if len(told) not in (arms - 1, arms * (arms - 1) // 2):
        found.append(f"{len(told)} sentences on pairs of {arms} arms were read")
    return found
