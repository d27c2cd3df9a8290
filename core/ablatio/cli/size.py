"""`ablatio size preset=bloom size=176b`: parameters, FLOPs per token and memory of a config; nothing is allocated."""

import json
from collections.abc import Mapping
from typing import Any

from ablatio.cli.commands import parser

UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def run(arguments: list[str]) -> int:
    options = parser("size", epilog="the settings are those of `ablatio train`: preset=bloom size=176b")
    options.add_argument("--json", action="store_true", help="exact numbers, for programs")
    asked, settings = options.parse_known_args(arguments)
    from ablatio.api.adapter import composed

    config = composed(settings).config
    from ablatio.training.estimate import estimate
    from ablatio.training.run_spec import RunSpec

    found = estimate(RunSpec(config))
    print(json.dumps(found, indent=1) if asked.json else "", end="\n" if asked.json else "")
    if not asked.json:
        _print(found, config)
    return 0


def _print(found: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    rows, length = config["train"]["batch_size"], found["length"]
    many = found["activations"]
    lines = [
        ("parameters", f"{found['parameters']:,}", ""),
        ("active", f"{found['active']:,}", "a token passes through these"),
        ("non-embedding", f"{found['non_embedding']:,}", "without the tables of tokens and positions"),
        ("FLOPs per token", short(found["flops_per_token"]), f"forward, in rows of {length}"),
        ("", short(found["train_flops_per_token"]), "forward and backward, with the weights that train"),
        ("weights", bytes_text(found["weights"]), "32 bits"),
        *([("reference", bytes_text(found["beside"]), "the weights before training")] if found["beside"] else []),
        ("gradients", bytes_text(found["gradients"]), "32 bits, of the weights that train"),
        (
            "optimizer",
            bytes_text(found["optimizer"]),
            f"state of {config['optimizer']['name']}",
        ),
        ("activations", bytes_text(many), f"kept for the backward pass of one row of {length}, at 32 bits"),
        ("", bytes_text(None if many is None else many * rows), f"of a batch of {rows}"),
        ("cache", bytes_text(found["cache"]), "keys and values of one decoded token, at 32 bits"),
        ("this machine", bytes_text(found["machine"]), "memory"),
    ]
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    for line in lines:
        table.add_row(*line)
    Console().print(table, highlight=False)


def short(number: float) -> str:
    """360689172480 -> 360.7 G."""
    factor, unit = next(((f, u) for f, u in UNITS if number >= f), (1.0, ""))
    return f"{number / factor:.4g} {unit}".rstrip()


def bytes_text(count: int | None) -> str:
    return "unknown" if count is None else f"{short(count)}B" if count >= 1e3 else f"{count} B"
