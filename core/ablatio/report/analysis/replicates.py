"""Sentences on what the replicates of a study vary: all random streams, the init alone, the order alone, or both."""

import math
from collections.abc import Mapping, Sequence

from ablatio.report.analysis.arms import Arm
from ablatio.report.analysis.verdict import Language
from ablatio.report.read.run import Run
from ablatio.report.statistics.variance_components import split
from ablatio.sweep.replicates import described

TEXTS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "init": "initial weights",
        "data": "order of the data",
        "dropout": "dropout masks",
        "and": " and ",
        "only": "Replicates differ only in: {varied}. The conclusions hold for the {kept} of these runs.",
        "split": "Spread between runs of one arm: sd {init:.3g} {unit} from the initial weights, {order:.3g} from the "
        "order of the data, {rest:.3g} from their interaction and the rest ({inits} inits x {orders} orders, {arms} "
        "arm(s) pooled). Replicates that share an init or an order are not independent: read p and intervals with that "
        "in mind.",
    },
    "zh": {
        "init": "初始权重",
        "data": "数据顺序",
        "dropout": "dropout 掩码",
        "and": "和",
        "only": "各次重复只在以下方面不同:{varied}。结论仅适用于这些运行的{kept}。",
        "split": "同一配置各次运行之间的离散程度:初始权重带来的标准差为 {init:.3g} {unit},数据顺序为 {order:.3g},"
        "两者的交互及其余为 {rest:.3g}({inits} 个初始化 × {orders} 个顺序,合并 {arms} 个配置)。"
        "共用初始化或顺序的重复并不独立,解读 p 值和区间时应予考虑。",
    },
}


def replicate_sentences(arms: Sequence[Arm], metric: str, unit: str) -> dict[Language, list[str]]:
    """Say which random streams vary, unless all do, and split the variance if inits and orders are crossed."""
    seeds = [described(run.config) for arm in arms for run in _counted(arm)]
    levels = {name: {found.get(name) for found in seeds} for name in ("init", "data", "dropout")}
    varied = [name for name, values in levels.items() if len(values) > 1]
    kept = [name for name, values in levels.items() if len(values) == 1 and values != {None}]
    # With the init or the order alone varied, the spread is all due to that one.
    found = split([_cells(arm, metric) for arm in arms]) if {"init", "data"} <= {*varied} else None
    said: dict[Language, list[str]] = {}
    for language, words in TEXTS.items():
        lines = []
        if found:
            spreads = {name: math.sqrt(getattr(found, name)) for name in ("init", "order", "rest")}
            counts = {"inits": found.inits, "orders": found.orders, "arms": found.arms}
            lines.append(words["split"].format(**spreads, **counts, unit=unit))
        elif varied and kept:
            named = {
                key: words["and"].join(words[n] for n in names) for key, names in (("varied", varied), ("kept", kept))
            }
            lines.append(words["only"].format(**named))
        said[language] = lines
    return said


def _counted(arm: Arm) -> list[Run]:
    return [run for run in arm.runs if run.done and run.role == "run"]


def _cells(arm: Arm, metric: str) -> dict[tuple[int, int], float]:
    """{(init, order): score} of the arm's runs; empty if two runs have the same pair, which is no crossed study."""
    found: dict[tuple[int, int], float] = {}
    for run in _counted(arm):
        seeds = described(run.config)
        if {"init", "data"} <= seeds.keys() and metric in run.scores:
            if (cell := (seeds["init"], seeds["data"])) in found:
                return {}
            found[cell] = run.scores[metric]
    return found
