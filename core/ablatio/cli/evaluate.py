"""`ablatio evaluate RUN`: nats per token and bits per byte on held-out text, at the length of training or any other."""

import json
from pathlib import Path
from typing import Any

from ablatio.cli.commands import parser
from ablatio.errors import UserError
from ablatio.registry import kinds


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
    from ablatio.training.load import load_run

    run, step = load_run(asked.run, asked.step, scored=True)
    if asked.objective:
        run.ask(asked.objective)
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    names = kinds.tasks[run.config["task"]["name"]].facts["scores"]
    for length in lengths or [run.length]:
        try:
            found = run.score(run.task.validation(length, asked.tokens))
        except UserError as error:
            refused.append({"length": length, "refused": str(error).split("\n")[0]})
            continue
        rows.append({"length": length} | {k: found[k] for k in (*names, "error", "tokens") if k in found})
    if asked.quantization:
        kinds.quantizations.build(asked.quantization).apply(run.model)
        for row in list(rows):
            found = run.score(run.task.validation(row["length"], asked.tokens))
            cost = {"quantization": asked.quantization, "cost": found["loss"] - row["loss"]} if "loss" in row else {}
            rows.append(row | {k: found[k] for k in row if k in found} | cost)
    if asked.json:
        print(json.dumps({"run": str(asked.run), "step": step, "scores": rows + refused}))
    else:
        print(f"{asked.run} at step {step}")
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
