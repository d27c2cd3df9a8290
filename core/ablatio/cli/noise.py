"""`ablatio noise FOLDER...`: variation of a score between seeds, and the smallest difference that can be detected."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ablatio.cli.commands import parser, refuse_other_flags
from ablatio.errors import UserError

if TYPE_CHECKING:
    from ablatio.report.statistics import Noise

USES = {"without --scores": ("arm", "metric"), "with --scores, which compares all scores of all arms": ()}


def run(arguments: list[str]) -> int:
    """Run `ablatio noise` and return its exit code."""
    options = parser("noise")
    options.add_argument("folders", type=Path, nargs="+", help="a sweep, or runs of one config with several seeds")
    options.add_argument("--arm", help="the arm to analyze: 'norm=rmsnorm'; by default the baseline")
    options.add_argument("--metric", help="the score; by default the task's main metric")
    options.add_argument(
        "--scores", action="store_true", help="compare all scores: how well does each separate the arms?"
    )
    options.add_argument("--json", action="store_true", help="print JSON")
    args = options.parse_args(arguments)
    refuse_other_flags(options, arguments, args, USES, [*USES][args.scores])
    from ablatio.report.analysis.findings import find
    from ablatio.report.read.table import read_table

    if args.scores:
        return _compare_scores(args.folders, args.json)
    # The noise is that of the arm that others are compared with, so --arm is given as the baseline.
    found = find(read_table(args.folders), args.metric, args.arm)
    floor, row = found.noise, found.reference
    if floor is None or row is None:
        raise UserError(
            "the noise floor needs two or more finished runs of one config with different seeds\n"
            "    try: ablatio train -m seed=1,2,3"
        )
    visible = found.smallest_visible()
    if args.json:
        numbers = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(floor).items()}
        print(json.dumps({"metric": found.metric, "arm": row.arm.label} | numbers | {"visible": visible}))
        return 0
    _print(found.metric, row.arm.label, floor, visible, found.pair_sd is not None)
    return 0


def _compare_scores(folders: list[Path], as_json: bool) -> int:
    """Print signal-to-noise, monotonicity and rank stability of each score."""
    from rich.console import Console
    from rich.table import Table

    from ablatio.report.analysis.score_quality import quality_caption, quality_cells, score_qualities
    from ablatio.report.escape import terminal
    from ablatio.report.html.page_data import clean
    from ablatio.report.read.table import read_table
    from ablatio.report.words import heads

    found = score_qualities(read_table(folders))
    if not found:
        raise UserError(
            "comparing scores needs two or more arms with finished runs on the same text\n"
            "    try: ablatio train -m norm=rmsnorm,layernorm seed=1,2,3"
        )
    if as_json:
        print(json.dumps({name: clean(asdict(quality)) for name, quality in found.items()}))
        return 0
    console, grid = Console(), Table(box=None, pad_edge=False)
    for i, name in enumerate(heads("signal")):
        grid.add_column(name, justify="right" if i else "left")
    for row in quality_cells(found):
        grid.add_row(*map(terminal, row))
    console.print(grid, highlight=False)
    console.print(f"\n{quality_caption()}", highlight=False)
    return 0


def _print(metric: str, arm: str, floor: "Noise", visible: dict[int, float], paired: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from ablatio.report.escape import terminal

    console = Console()
    console.print(f"{terminal(arm)}: {terminal(metric)} {floor.mean:.4f} over {floor.n} seeds", highlight=False)
    console.print(f"sd {floor.sd:.4f} [{floor.low:.4f}, {floor.high:.4f}]", highlight=False)
    how = "paired differences" if paired else "two arms with independent seeds"
    console.print(
        f"\nsmallest true difference that 4 of 5 studies detect, for {how}\n"
        f"with the spread measured here, as uncertain as {floor.n} seeds leave it:",
        highlight=False,
    )
    grid = Table(box=None, pad_edge=False)
    for name in ("seeds", "difference"):
        grid.add_column(name, justify="right")
    for n, value in visible.items():
        grid.add_row(str(n), f"{value:.4f}", style="bold" if n == floor.n else "")
    console.print(grid, highlight=False)
