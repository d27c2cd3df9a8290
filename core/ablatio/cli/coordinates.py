"""`ablatio coordinates [SETTING=VALUE ...]`: test whether a learning rate transfers to other widths."""

import json
from typing import TYPE_CHECKING

from ablatio.cli.commands import parser
from ablatio.errors import UserError

if TYPE_CHECKING:
    from ablatio.training.mup_check import Growth

WIDTHS = "64,128,256,512"


def run(arguments: list[str]) -> int:
    """Run `ablatio coordinates` and return its exit code."""
    options = parser("coordinates")
    options.add_argument("settings", nargs="*", metavar="SETTING=VALUE", help="as for `ablatio train`: init=mup")
    options.add_argument("--widths", default=WIDTHS, help=f"values of model.d_model; by default {WIDTHS}")
    options.add_argument("--steps", type=int, default=4, help="training steps; by default 4")
    options.add_argument("--seeds", type=int, default=4, help="seeds that are averaged over; by default 4")
    options.add_argument("--corpus", action="store_true", help="train on the text of `source`, not on random tokens")
    options.add_argument("--json", action="store_true", help="print JSON")
    args = options.parse_intermixed_args(arguments)
    widths = _widths(args.widths)
    if min(args.steps, args.seeds) < 1:
        raise UserError("--steps and --seeds must be at least 1\n    try: --steps 4 --seeds 4")
    from ablatio.config.compose import compose_run

    # Before torch is imported, so that wrong settings are refused at once.
    config = compose_run(args.settings).config
    from ablatio.training.mup_check import coordinates

    found = coordinates(config, widths, args.steps, args.seeds, corpus=args.corpus)
    if args.json:
        rows = {
            g.name: {
                "start": g.start, "change": g.change, "start_slope": g.start_slope, "change_slope": g.change_slope,
                "grows": g.grows,
            }
            for g in found
        }  # fmt: skip
        transfers = not any(g.grows for g in found)
        print(json.dumps({"widths": widths, "steps": args.steps, "transfers": transfers, "outputs": rows}))
    else:
        _print(found, widths, args.steps)
    return 0


def _widths(text: str) -> list[int]:
    try:
        widths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        widths = []
    if len(widths) < 2 or widths[0] < 1:
        raise UserError(f"--widths {text}: expected two or more positive integers\n    try: --widths {WIDTHS}")
    return widths


def _print(found: "list[Growth]", widths: list[int], steps: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from ablatio.training.mup_check import FLAT

    console = Console()
    table = Table(box=None, pad_edge=False, title="mean |x| by width", title_justify="left")
    table.add_column("output")
    for column in ("", *map(str, widths), "slope"):
        table.add_column(column, justify="right" if column else "left")
    for growth in found:
        rows = (("at the start", growth.start, growth.start_slope), ("change", growth.change, growth.change_slope))
        for label, sizes, slope in rows:
            shown = f"{slope:+.3f}" if slope < FLAT else f"[bold red]{slope:+.3f}[/]"
            name = growth.name if label != "change" else ""
            table.add_row(name, label, *(f"{size:.3g}" for size in sizes), shown)
    console.print(table)
    growing = [g.name for g in found if g.grows]
    if growing:
        verdict = f"{', '.join(growing)} grow with the width: a learning rate found at one width is wrong at another"
    else:
        verdict = "no output grows with the width: a learning rate found at one width holds at the others"
    console.print(f"\nAfter {steps} steps (a slope of {FLAT} or more counts as growth): {verdict}.", highlight=False)
