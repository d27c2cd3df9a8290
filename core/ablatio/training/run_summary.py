"""Terminal tables of a run: its parts before training, its results afterwards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ablatio.config.schema import chosen
from ablatio.registry import per_layer
from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.storage.secrets import redact
from ablatio.training.evaluation.evaluation import described

ANSWERED = 2  # prompts whose answers are printed at the end of a run; summary.json has all
LABELS = {"bpb": "bits per byte", "loss": "nats per token"}
SHOWN = 4  # first knobs of a part, listed even at their defaults


def show_parts(console: Console, config: Mapping[str, Any], folder: Path) -> None:
    """Print one row per part that is not the default: kind, name and knobs; then the sizes and the folder."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    varied = per_layer.varied(config)
    for entry, knobs in chosen(config):
        if REGISTRIES[entry.kind].is_default({"name": entry.name, **knobs}):
            continue
        where = _layers(config, entry) if entry.kind in varied else ""
        table.add_row(entry.kind, entry.name, "  ".join(filter(None, (where, escape(_knobs(entry, knobs))))))
    model, train = config["model"], config["train"]
    sizes = ("d_model", "n_layers", "n_heads", "max_len")
    table.add_row("model", "", "  ".join(f"{k}={model[k]}" for k in sizes))
    table.add_row("train", "", f"steps={train['steps']}  batch_size={train['batch_size']}  seed={config['seed']}")
    if frozen := config.get("freeze"):
        table.add_row("freeze", "", escape(", ".join(map(str, frozen))))
    table.add_row("folder", "", escape(str(folder)))
    console.print(table)


def _layers(config: Mapping[str, Any], entry: PartSpec) -> str:
    """`layers 0,3`: where a kind that varies between the layers has this part; empty for a model of two stacks."""
    if len(depths := per_layer.depths(config)) != 1:
        return ""
    nodes = per_layer.nodes(config, REGISTRIES[entry.kind], depths[0])
    numbers = [str(i) for i, node in enumerate(nodes) if node["name"] == entry.name]
    return f"layer{'s' * (len(numbers) > 1)} {','.join(numbers)}" if numbers else ""


def _knobs(entry: PartSpec, knobs: Mapping[str, Any]) -> str:
    """Format the knobs of a part: all if it has few, else the first ones and those that differ from their defaults."""
    leading = {k.name for k in entry.knobs[: SHOWN if len(entry.knobs) > SHOWN + 1 else SHOWN + 1]}
    listed = {k: v for k, v in knobs.items() if k in leading or v != entry.defaults.get(k)}
    rest = len(knobs) - len(listed)
    more = [f"(+{rest} at their defaults)"] if rest else []
    return "  ".join([*(f"{k}={_short(v)}" for k, v in listed.items()), *more])


def _short(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else redact(str(value))


def show_result(console: Console, summary: Mapping[str, Any], folder: Path) -> None:
    """Print the scores before and after training, sample answers, and the cost."""
    before, after = summary.get("before") or {}, summary.get("after") or {}
    table = Table(box=None, pad_edge=False)
    for column in ("held-out text", "before", "after"):
        table.add_column(column, justify="left" if column == "held-out text" else "right")
    names = [key.removeprefix("val/") for key in summary if key.startswith("val/")]
    text = "bpb" in names
    for name in ("bpb", "loss") if text else names:
        table.add_row(LABELS[name] if text else name, *(f"{s[name]:.3f}" if s else "-" for s in (before, after)))
    console.print(table)
    for line in described((summary.get("evaluation") or {}).get("values", {})):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if samples := summary.get("samples"):
        console.print(side_by_side(samples[:ANSWERED]))
    million, tokens, flops = summary["parameters"] / 1e6, summary["tokens"] / 1e6, summary["train_flops"] / 1e12
    console.print(
        f"{_digits(million)} M parameters, {_digits(tokens)} M tokens, {_digits(flops)} TFLOP, "
        f"{summary['seconds']:.0f} s; all is in {escape(str(folder))}",
        highlight=False,
    )


def _digits(x: float) -> str:
    """Format a number with three significant digits: 0.0484, 19.4, 1,234."""
    return f"{x:.3g}" if x < 999.5 else f"{x:,.0f}"


def side_by_side(samples: Sequence[Mapping[str, str]], names: Mapping[str, str] | None = None) -> Table:
    """Table of prompts with the answers before and after training; the expected answer under the prompt.

    names  other words for `prompt`, `before`, `after` and what else stands in a row
    """
    named = {} if names is None else names
    table = Table(show_lines=True, expand=True, header_style="dim")
    for column in ("prompt", "before", "after"):
        table.add_column(named.get(column, column), ratio=1, overflow="fold")
    for row in samples:
        more = [
            f"[dim]{named.get(key, key)}:[/] {_printable(v)}"
            for key, v in row.items()
            if key not in ("prompt", "before", "after")
        ]
        prompt = "\n\n".join([_printable(row.get("prompt", "")), *more])
        table.add_row(prompt, *(_printable(row.get(when, "")) for when in ("before", "after")))
    return table


def _printable(text: str) -> str:
    """Escape what cannot be printed and rich's [markup], line by line."""
    lines = ("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in text.strip().splitlines())
    return escape("\n".join(lines))
