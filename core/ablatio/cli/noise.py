"""`ablatio noise FOLDER...`: how much chance alone moves a score, and what differences that leaves to be seen."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ablatio.cli.commands import parser
from ablatio.errors import UserError

if TYPE_CHECKING:
    from ablatio.report.statistics import Noise


def run(arguments: list[str]) -> int:
    options = parser("noise")
    options.add_argument("folders", type=Path, nargs="+", help="a sweep, or runs of one config with several seeds")
    options.add_argument("--arm", help="the arm to look at: 'norm=rmsnorm'; by default the baseline")
    options.add_argument("--metric", help="the score; by default the one that the task is judged by")
    options.add_argument("--json", action="store_true", help="for programs")
    asked = options.parse_args(arguments)
    from ablatio.report.analysis.findings import find
    from ablatio.report.read.table import read_table

    found = find(read_table(asked.folders), asked.metric, asked.arm)
    floor, row = found.noise, found.reference
    if floor is None or row is None:
        raise UserError(
            "the noise floor needs two runs or more of one config that are done, each with a seed of its own\n"
            "    try: ablatio train -m seed=1,2,3"
        )
    visible = found.smallest_visible()
    if asked.json:
        numbers = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(floor).items()}
        print(json.dumps({"metric": found.metric, "arm": row.arm.label} | numbers | {"visible": visible}))
        return 0
    _print(found.metric, row.arm.label, floor, visible, found.pair_sd is not None)
    return 0


def _print(metric: str, arm: str, floor: "Noise", visible: dict[int, float], paired: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from ablatio.report.escape import terminal

    console = Console()
    console.print(f"{terminal(arm)}: {terminal(metric)} {floor.mean:.4f} over {floor.n} seeds", highlight=False)
    console.print(f"sd {floor.sd:.4f} [{floor.low:.4f}, {floor.high:.4f}]", highlight=False)
    how = "the spread of paired differences seen here" if paired else "two arms whose seeds have nothing in common"
    console.print(f"\nsmallest true difference that is found in 4 of 5 studies, for {how}:", highlight=False)
    grid = Table(box=None, pad_edge=False)
    for name in ("seeds", "difference"):
        grid.add_column(name, justify="right")
    for n, value in visible.items():
        grid.add_row(str(n), f"{value:.4f}", style="bold" if n == floor.n else "")
    console.print(grid, highlight=False)
