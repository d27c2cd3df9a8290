"""`ablatio evaluate RUN`: nats per token and bits per byte on held-out text, at the length of training or any other."""

import json
from pathlib import Path

from ablatio.cli.commands import parser
from ablatio.errors import UserError


def run(arguments: list[str]) -> int:
    options = parser(
        "evaluate", epilog="± is the standard error of the loss: what other held-out text would move it by."
    )
    options.add_argument("run", type=Path, help="a run folder")
    options.add_argument("--length", help="tokens per row, several with commas; by default that of training")
    options.add_argument("--tokens", type=int, default=0, help="how many to score at most; by default the whole split")
    options.add_argument("--step", type=int, help="a checkpoint's step; by default the newest")
    options.add_argument("--objective", help="score what this objective asks for; by default that of training")
    options.add_argument("--quantization", help="score the model a second time, quantised: int8, int4")
    options.add_argument("--json", action="store_true", help="for programs")
    asked = options.parse_args(arguments)
    lengths = _lengths(asked.length)
    from ablatio.api.run_folder import open_run

    run = open_run(asked.run, asked.step)
    found = run.evaluate_lengths(
        lengths, tokens=asked.tokens, objective=asked.objective, quantization=asked.quantization
    )
    rows = [row for row in found if "refused" not in row]
    refused = [row for row in found if "refused" in row]
    if asked.json:
        print(json.dumps({"run": str(asked.run), "step": run.step, "scores": found}))
    else:
        print(f"{asked.run} at step {run.step}")
        for row in rows:
            shown = {k: v for k, v in row.items() if k not in ("length", "quantization", *_UNTOLD)}
            told = "  ".join(_told(k, v, "bpb" in row, row.get("error")) for k, v in shown.items())
            print(f"length {row['length']:>5}  {told}" + (f"  {row['quantization']}" if "quantization" in row else ""))
        for row in refused:
            print(f"length {row['length']:>5}  refused: {row['refused']}")
    return 0 if rows else 2


_UNITS = {"loss": "nats/token", "bpb": "bits/byte", "tokens": "tokens", "cost": "nats more"}
_UNTOLD = ("accuracy", "error")


def _told(name: str, value: float, text: bool, error: float | None) -> str:
    """error: of the loss, by what other held-out text would move it."""
    number = str(value) if isinstance(value, int) else f"{value:.4f}"
    number += f" ± {error:.4f}" if name == "loss" and error is not None else ""
    return f"{number} {_UNITS.get(name, name) if text else name}"


def _lengths(text: str | None) -> list[int]:
    try:
        lengths = [int(part) for part in (text or "").split(",") if part]
    except ValueError:
        lengths = [0]
    if any(n < 1 for n in lengths):
        raise UserError(f"--length {text} came, whole numbers were expected\n    try: --length 128,256")
    return lengths
