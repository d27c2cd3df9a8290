"""`ablatio size preset=bloom size=176b`: parameters, FLOPs per token and memory of a config, without allocating it.

With several devices it says what each of them holds, by the formulas of their strategy.
"""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ablatio.cli.commands import parser

if TYPE_CHECKING:
    from ablatio.training.run_spec import RunSpec

UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def run(arguments: list[str]) -> int:
    """Run `ablatio size` and return its exit code."""
    options = parser("size", epilog="the settings are those of `ablatio train`: preset=bloom size=176b")
    options.add_argument("--json", action="store_true", help="print exact numbers as JSON")
    options.add_argument(
        "--flops", type=float, metavar="RATE",
        help="FLOPs per second that a device reaches in training, such as 4e14: prints the time of the run",
    )  # fmt: skip
    options.add_argument(
        "--fit", type=float, metavar="BYTES",
        help="memory of a device, such as 80e9: prints the largest models of this shape that fit",
    )  # fmt: skip
    args, settings = options.parse_known_args(arguments)
    from ablatio.api.adapter import composed

    config = composed(settings).config
    from ablatio.training.estimate import estimate
    from ablatio.training.run_spec import RunSpec

    spec = RunSpec(config)
    found = estimate(spec)
    more = _on_devices(spec) | _time(spec, args.flops) | _fit(spec, args.fit)
    if args.json:
        print(json.dumps(found | more, indent=1))
    else:
        _print(found | more, spec.config)
    return 0


def _on_devices(spec: "RunSpec") -> dict[str, Any]:
    """Bytes of each device, by use; nothing for a run on one device."""
    from ablatio.training.memory_per_device import memory_per_device, world_of

    world = world_of(spec.config)
    if world == 1:
        return {}
    memory = memory_per_device(spec)
    uses = ("weights", "gradients", "optimizer", "beside", "activations", "buffers", "total", "host")
    return {"devices": world, "device": {use: getattr(memory, use) for use in uses}}


def _time(spec: "RunSpec", rate: float | None) -> dict[str, Any]:
    """Seconds of the run on all devices at a rate that the user gives."""
    if rate is None:
        return {}
    from ablatio.errors import UserError
    from ablatio.training.memory_per_device import world_of

    if not rate > 0 or math.isinf(rate):
        raise UserError(f"--flops {rate:g}: expected FLOPs per second, above 0\n    try: --flops 4e14")
    return {"run_flops": spec.train_flops, "seconds": spec.train_flops / (rate * world_of(spec.config))}


def _fit(spec: "RunSpec", room: float | None) -> dict[str, Any]:
    """The deepest and the widest model that fit into `room` bytes of a device; None for one that does not exist."""
    if room is None:
        return {}
    from dataclasses import asdict

    from ablatio.errors import UserError
    from ablatio.training.largest_model import deepest, widest

    if not room > 0 or math.isinf(room):
        raise UserError(f"--fit {room:g}: expected the bytes of a device, above 0\n    try: --fit 80e9")
    found = {"deepest": deepest(spec.config, room), "widest": widest(spec.config, room)}
    return {"fit": {what: fitting and asdict(fitting) for what, fitting in found.items()}, "room": room}


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
        *_each_device(found, config),
        *_duration(found),
        *_fitting(found),
    ]
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    for line in lines:
        table.add_row(*line)
    Console().print(table, highlight=False)


def _each_device(found: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Lines on each of several devices; none for one."""
    if "device" not in found:
        return []
    memory, unknown = found["device"], [use for use in ("optimizer", "activations") if found[use] is None]
    without = f"; {' and '.join(unknown)} unknown" if unknown else ""
    lines = [
        (
            "each device",
            bytes_text(memory["total"]),
            f"of {found['devices']}, strategy={config['strategy']['name']}{without}",
        ),
        ("", bytes_text(memory["weights"]), "weights"),
        *([("", bytes_text(memory["beside"]), "reference")] if memory["beside"] else []),
        ("", bytes_text(memory["gradients"]), "gradients"),
        ("", bytes_text(memory["optimizer"]), "optimizer"),
        ("", bytes_text(memory["activations"]), "activations"),
        ("", bytes_text(memory["buffers"]), "what is sent, and weights that are whole for a while"),
    ]
    return lines + ([("", bytes_text(memory["host"]), "more in the memory of the host")] if memory["host"] else [])


def _duration(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The line on the time of the run; none without a rate."""
    if "seconds" not in found:
        return []
    from ablatio.sweep.durations import duration

    return [
        (
            "time",
            duration(found["seconds"]),
            f"for {short(found['run_flops'])} FLOPs at this rate; nothing counted for waiting or sending",
        )
    ]


def _fitting(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Lines on the largest models that fit."""
    lines = []
    for what, fitting in found.get("fit", {}).items():
        if fitting is None:
            lines.append((f"{what} that fits", "none", f"in {bytes_text(int(found['room']))} of a device"))
            continue
        settings = " ".join(f"{name}={value}" for name, value in fitting["settings"].items())
        lines.append((f"{what} that fits", short(fitting["parameters"]), f"parameters: {settings}"))
        lines.append(("", bytes_text(fitting["bytes"]), "of each device"))
    return lines


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
