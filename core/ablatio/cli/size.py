"""`ablatio size preset=bloom size=176b`: parameters, FLOPs per token and memory of a config, without allocating it."""

import json
from collections.abc import Mapping
from typing import Any

from ablatio.cli.commands import parser

UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def run(arguments: list[str]) -> int:
    """Run `ablatio size` and return its exit code."""
    options = parser("size", epilog="the settings are those of `ablatio train`: preset=bloom size=176b")
    options.add_argument("--json", action="store_true", help="print exact numbers as JSON")
    args, settings = options.parse_known_args(arguments)
    from ablatio.api.adapter import composed

    config = composed(settings).config
    from ablatio.training.estimate import estimate
    from ablatio.training.run_spec import RunSpec

    spec = RunSpec(config)
    found = estimate(spec)
    print(json.dumps(found, indent=1) if args.json else "", end="\n" if args.json else "")
    if not args.json:
        _print(found, spec.config)
    return 0


def _print(found: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    rows, length = config["train"]["batch_size"], found["length"]
    many = found["activations"]
    lines = [
        ("parameters", f"{found['parameters']:,}", ""),
        ("active", f"{found['active']:,}", "parameters used for one token"),
        ("non-embedding", f"{found['non_embedding']:,}", "without token and position tables"),
        ("FLOPs per token", short(found["flops_per_token"]), f"forward, in rows of {length} tokens"),
        ("", short(found["train_flops_per_token"]), "forward and backward, for the weights that are trained"),
        *_recomputed(found, config),
        ("weights", bytes_text(found["weights"]), "32 bits"),
        *([("reference", bytes_text(found["beside"]), "the weights before training")] if found["beside"] else []),
        ("gradients", bytes_text(found["gradients"]), "32 bits, for the weights that are trained"),
        (
            "optimizer",
            bytes_text(found["optimizer"]),
            f"state of {config['optimizer']['name']}",
        ),
        ("activations", bytes_text(many), f"kept for the backward pass of one row of {length} tokens, 32 bits"),
        ("", bytes_text(None if many is None else many * rows), f"of a batch of {rows} rows"),
        ("cache", bytes_text(found["cache"]), "keys and values of one decoded token, 32 bits"),
        ("this machine", bytes_text(found["machine"]), "memory"),
    ]
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    for line in lines:
        table.add_row(*line)
    Console().print(table, highlight=False)


def _recomputed(found: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The line on recomputation; none without it."""
    if "recomputed_flops_per_token" not in found:
        return []
    count = found["recomputed_flops_per_token"]
    said = f"recomputed in the backward pass by checkpointing={config['checkpointing']['name']}"
    return [("", "unknown" if count is None else short(count), said)]


def short(number: float) -> str:
    """A number with a decimal unit prefix: 360689172480 gives `360.7 G`."""
    factor, unit = next(((f, u) for f, u in UNITS if number >= f), (1.0, ""))
    return f"{number / factor:.4g} {unit}".rstrip()


def bytes_text(count: int | None) -> str:
    """A number of bytes with a decimal unit prefix; None gives `unknown`."""
    return "unknown" if count is None else f"{short(count)}B" if count >= 1e3 else f"{count} B"
