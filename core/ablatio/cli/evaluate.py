"""`ablatio evaluate RUN`: nats per token and bits per byte on held-out text, at the training length or any other."""

import json
from pathlib import Path

from ablatio.cli.commands import parser
from ablatio.errors import UserError


def run(arguments: list[str]) -> int:
    """Run `ablatio evaluate` and return its exit code: 2 if no length could be scored."""
    options = parser("evaluate", epilog="± is the standard error of the loss over the held-out text.")
    options.add_argument("run", type=Path, help="a run folder")
    options.add_argument("--length", help="tokens per row, or several lengths: 128,256; by default that of training")
    options.add_argument("--tokens", type=int, default=0, help="maximum number of tokens to score; by default all")
    options.add_argument("--step", type=int, help="step of the checkpoint; by default the newest")
    options.add_argument("--objective", help="objective whose targets are scored; by default that of training")
    options.add_argument("--quantization", help="also score the quantized model: int8, int4, gptq")
    options.add_argument("--stride", type=int, help="score with overlapping rows that begin this many tokens apart")
    options.add_argument("--json", action="store_true", help="print JSON")
    args = options.parse_args(arguments)
    lengths = _lengths(args.length)
    from ablatio.api.run_folder import open_run

    run = open_run(args.run, args.step)
    found = run.evaluate_lengths(
        lengths, tokens=args.tokens, objective=args.objective, quantization=args.quantization, stride=args.stride
    )
    rows = [row for row in found if "refused" not in row]
    refused = [row for row in found if "refused" in row]
    if args.json:
        print(json.dumps({"run": str(args.run), "step": run.step, "scores": found}))
    else:
        print(f"{args.run} at step {run.step}")
        for row in rows:
            shown = {k: v for k, v in row.items() if k not in ("length", "stride", "quantization", *_UNTOLD)}
            told = "  ".join(_told(k, v, "bpb" in row, row.get("error")) for k, v in shown.items())
            print(f"length {row['length']:>5}  {told}" + (f"  {row['quantization']}" if "quantization" in row else ""))
        for row in refused:
            print(f"length {row['length']:>5}  refused: {row['refused']}")
    return 0 if rows else 2


_UNITS = {"loss": "nats/token", "bpb": "bits/byte", "tokens": "tokens", "cost": "nats increase"}
_UNTOLD = ("accuracy", "error")


def _told(name: str, value: float, text: bool, error: float | None) -> str:
    """A value with its unit; `error` is the standard error of the loss over the held-out text."""
    number = str(value) if isinstance(value, int) else f"{value:.4f}"
    number += f" ± {error:.4f}" if name == "loss" and error is not None else ""
    return f"{number} {_UNITS.get(name, name) if text else name}"


def _lengths(text: str | None) -> list[int]:
    try:
        lengths = [int(part) for part in (text or "").split(",") if part]
    except ValueError:
        lengths = [0]
    if any(n < 1 for n in lengths):
        raise UserError(f"--length {text}: expected positive integers\n    try: --length 128,256")
    return lengths
