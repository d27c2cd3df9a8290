"""`ablatio compare RUN RUN`: differences between two runs, and their results side by side."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatio.cli.commands import parser

if TYPE_CHECKING:
    from rich.console import Console

    from ablatio.report.analysis.compare_runs import Line
    from ablatio.report.analysis.item_comparison import ItemComparison


def run(arguments: list[str]) -> int:
    """Run `ablatio compare` and return its exit code."""
    options = parser("compare")
    options.add_argument("first", type=Path, help="a run folder")
    options.add_argument("second", type=Path, help="another run folder")
    options.add_argument("--json", action="store_true", help="print JSON")
    args = options.parse_args(arguments)
    import json
    from dataclasses import asdict

    from rich.console import Console

    from ablatio.report.analysis.compare_runs import one_run, side_by_side
    from ablatio.report.analysis.item_comparison import compare_items
    from ablatio.report.escape import terminal

    two = side_by_side(one_run(args.first), one_run(args.second))
    items = compare_items(args.first, args.second)
    if args.json:
        told = ("settings", "code", "results", "costs", "obstacles", "cautions")
        found = {k: v for k, v in asdict(two).items() if k in told}
        print(json.dumps(_finite(found | {"items": asdict(items)}), indent=1))
        return 0
    console = Console()
    console.print(f"first   {terminal(args.first)}\nsecond  {terminal(args.second)}", highlight=False)
    for title, lines in (("settings", two.settings), ("code, data, machine", two.code)):
        _table(console, title, lines)
    if not two.settings and not two.code:
        console.print("\nonly the seed, the folder or the machine differ", highlight=False)
    _table(console, "not comparable" if two.obstacles else "results", two.results, numbers=True)
    _table(console, "costs", two.costs, numbers=True)
    _items(console, items)
    for mark, sentences in (("not comparable", two.obstacles), ("note", two.cautions)):
        for sentence in sentences:
            console.print(f"[bold]{mark}:[/] {terminal(sentence)}", highlight=False)
    return 0


def _table(console: "Console", title: str, lines: "Sequence[Line]", numbers: bool = False) -> None:
    from rich.table import Table

    from ablatio.report.escape import terminal

    if not lines:
        return
    grid = Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False)
    for name in ("", "first", "second", *(["second - first"] if numbers else [])):
        grid.add_column(name, justify="right" if numbers and name else "left", overflow="fold")
    for line in lines:
        a, b = line.first, line.second
        apart = [f"{b - a:+.6g}"] if numbers and a is not None and b is not None else [""] if numbers else []
        grid.add_row(terminal(line.what), *(terminal(_shown(x)) for x in (a, b)), *apart)
    console.print(grid, highlight=False)


def _items(console: "Console", items: "ItemComparison") -> None:
    """Print the differences by item as sentences, then answers side by side."""
    from rich.table import Table

    from ablatio.report.escape import terminal

    if items.differences:
        console.print("\nby item", highlight=False)
    for text in (*(d.sentence() for d in items.differences), *items.notes):
        console.print(terminal(text), highlight=False, soft_wrap=True)
    if items.answers:
        grid = Table(title="\nanswers that differ", title_justify="left", show_lines=True)
        for name in ("prompt", "first", "second"):
            grid.add_column(name, ratio=1, overflow="fold")
        for row in items.answers:
            expected = f"\nexpected: {row['expected']}" if "expected" in row else ""
            grid.add_row(terminal(row["prompt"] + expected), terminal(row["first"]), terminal(row["second"]))
        console.print(grid, highlight=False)


def _finite(value: Any) -> Any:
    """The value with null in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text[:16] if len(text) == 64 else text  # the beginning of a sha256 is enough to tell two apart
