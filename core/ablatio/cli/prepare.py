"""`ablatio prepare source=parquet source.path=FOLDER`: tokenize a corpus into the cache, and describe it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ablatio.cli.commands import parser


def run(arguments: list[str]) -> int:
    """Run `ablatio prepare` and return its exit code."""
    options = parser("prepare", epilog="the settings are those of `ablatio train`: source=jsonl tokenizer=unigram")
    options.add_argument("--tokenizers", help="compare several: bpe,unigram,bytes; by default that of the settings")
    options.add_argument("--json", action="store_true", help="print JSON")
    args, settings = options.parse_known_args(arguments)
    from ablatio.api.adapter import composed
    from ablatio.training.corpus_summary import described

    names = [name for name in (args.tokenizers or "").split(",") if name]
    chosen = [[*settings, f"tokenizer={name}"] for name in names] or [settings]
    found = [described(composed(each).config) for each in chosen]
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)
    return 0


def _print(found: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    first = found[0]
    for split in ("train", "validation"):
        held = first[split]
        console.print(
            f"{split:<11} {held['documents']:>12,} documents {held['bytes']:>15,} bytes", highlight=False, markup=False
        )
    notes = {name: first[name] for name in ("unused_fields", "skipped_rows") if name in first}
    for name, value in notes.items():
        console.print(f"{name:<13} {value}", highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    columns = ("tokenizer", "ids", "train tokens", "validation", "bytes/token", "fertility", "MB/s")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in found:
        table.add_row(
            row["tokenizer"], f"{row['vocab_size']:,}", f"{row['train']['tokens']:,}",
            f"{row['validation']['tokens']:,}", *(_short(row[n]) for n in ("bytes_per_token", "fertility", "speed")),
        )  # fmt: skip
    console.print(table, highlight=False)
    for row in found:
        console.print(f"{row['tokenizer']}: {row['folder']}", highlight=False, markup=False, soft_wrap=True)


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.3g}"
