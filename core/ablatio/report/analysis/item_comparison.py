"""Two runs compared by item: the mean difference of each measure on the items that both answered, with its error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablatio.errors import AblatioError
from ablatio.model.evaluation.item_errors import clustered_error
from ablatio.report.numbers import p_said
from ablatio.report.statistics.mcnemar import Discordance, mcnemar
from ablatio.training.evaluation.items_file import ITEMS, read_items

ALPHA = 0.05
SHOWN = 3  # items whose answers are shown side by side
Rows = Mapping[tuple[str, str], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ItemDifference:
    """Second minus first run on one measure, paired by item.

    column    the measure: eval/addition/accuracy
    first, second  means over the items that both have
    error     standard error of the mean difference, with clusters
    low, high 95 % interval of the difference
    p         two-sided, that the means are equal: of McNemar's test for values 0 and 1 without clusters, else of a
              t-test on the clusters; nan if it cannot be tested
    items, clusters  their numbers
    discordance  for values 0 and 1: items that one run alone answers correctly
    """

    column: str
    first: float
    second: float
    error: float
    low: float
    high: float
    p: float
    items: int
    clusters: int
    discordance: Discordance | None

    @property
    def difference(self) -> float:
        """Mean of second - first."""
        return self.second - self.first

    def sentence(self) -> str:
        """Both means, their difference and its interval, as a sentence of the report."""
        means = f"{self.column}: {self.first:.4g} and {self.second:.4g} on the same {self.items} items"
        if not math.isfinite(self.p):
            return f"{means}; one cluster of items: no test"
        interval = f"95 % interval {self.low:+.4g} to {self.high:+.4g}"
        told = f"second - first = {self.difference:+.4g}, {interval}, p {p_said(self.p)}"
        if self.p < ALPHA:
            side = "higher" if self.difference > 0 else "lower"
            told = f"the second is {side}: {told}"
        else:
            told = f"no difference is shown: {told}"
        if self.discordance and self.discordance.first + self.discordance.second:
            counts = f"{self.discordance.first} only in the first, {self.discordance.second} only in the second"
            told += f"; of the correct items, {counts}"
        return f"{means}; {told}"


@dataclass(frozen=True, slots=True)
class ItemComparison:
    """Differences of all measures that both runs have, notes on what could not be paired, and answers side by side."""

    differences: Sequence[ItemDifference]
    notes: Sequence[str]
    answers: Sequence[Mapping[str, str]]


def compare_items(first: Path, second: Path) -> ItemComparison:
    """Compare the items of two run folders; empty if one has none."""
    try:
        a, b = ({(row["eval"], row["id"]): row for row in read_items(folder)} for folder in (first, second))
    except AblatioError as error:
        return ItemComparison((), (str(error).splitlines()[0],), ())
    if not a or not b:
        return ItemComparison((), (), ())
    # The digest of what is asked as well: two versions of a benchmark may use one id for different questions.
    shared = [key for key in a if key in b and a[key]["item"] == b[key]["item"]]
    notes = list(_unpaired(a, b, set(shared), first, second))
    pairs = [(a[key], b[key]) for key in shared]
    columns = list(dict.fromkeys(c for x, y in pairs for c in x["values"] if c in y["values"]))
    return ItemComparison([item_difference(c, pairs) for c in columns], notes, _answers(pairs))


def _unpaired(a: Rows, b: Rows, shared: set[tuple[str, str]], first: Path, second: Path) -> Iterator[str]:
    """Sentences on evaluations whose items differ between the runs."""
    for name in dict.fromkeys(key[0] for key in (*a, *b)):
        sizes = [sum(key[0] == name for key in rows) for rows in (a, b, shared)]
        if not sizes[0] or not sizes[1]:
            yield f"eval {name} has items only in {(first if sizes[0] else second) / ITEMS}"
        elif sizes[2] < max(sizes[:2]):
            yield f"eval {name}: {sizes[2]} items are the same, of {sizes[0]} and {sizes[1]}; only these are compared"


def item_difference(column: str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> ItemDifference:
    """Compare two runs on one measure; pairs: the rows of each item in both."""
    having = [(x, y) for x, y in pairs if column in x["values"] and column in y["values"]]
    values = [(float(x["values"][column]), float(y["values"][column])) for x, y in having]
    clusters = [x["cluster"] or ("item", x["id"]) for x, _ in having]
    n, groups = len(values), len(set(clusters))
    first, second = (math.fsum(v[i] for v in values) / n for i in (0, 1))
    apart = [y - x for x, y in values]
    error = clustered_error(apart, clusters)
    low, high, p = t_interval(second - first, error, groups)
    binary = all(x in (0.0, 1.0) and y in (0.0, 1.0) for x, y in values)
    found = mcnemar(sum(d < 0 for d in apart), sum(d > 0 for d in apart)) if binary else None
    # McNemar's test takes the items as independent, which those of one cluster are not.
    if found is not None and groups == n and n > 1:
        p = found.p
    return ItemDifference(column, first, second, error, low, high, p, n, groups, found)


def t_interval(mean: float, error: float, groups: int) -> tuple[float, float, float]:
    """95 % interval and two-sided p of a mean with this error, t with groups - 1 degrees of freedom."""
    from scipy import special

    if not math.isfinite(error):
        return math.nan, math.nan, math.nan
    if error == 0.0:
        # All items differ by the same amount: there is no spread to test it by.
        return mean, mean, 1.0 if mean == 0.0 else math.nan
    reach = -float(special.stdtrit(groups - 1, ALPHA / 2)) * error
    return mean - reach, mean + reach, 2 * float(special.stdtr(groups - 1, -abs(mean / error)))


def _answers(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[dict[str, str]]:
    """Generated answers side by side: the first items on which the runs answer differently."""
    found: list[dict[str, str]] = []
    for x, y in pairs:
        if len(found) < SHOWN and "answer" in x and "answer" in y and x["answer"] != y["answer"]:
            row = {"prompt": str(x.get("prompt", "")), "first": str(x["answer"]), "second": str(y["answer"])}
            found.append(row | ({"expected": str(x["target"])} if "target" in x else {}))
    return found
