"""Speed and peak memory of a step of DPO, of supervised fine-tuning and of a reward model: ours and trl's.

    python benchmarks/preferences.py [--turns 9] [--pairs 4] [--width 256] [--layers 4] [--case long equal short]

A step is: collate a batch, forward, loss, backward, clipping to norm 1, fused AdamW, and the metrics that the trainer
logs.  Both sides have the same Llama with the same weights, the same examples in the same order, float32 and no
gradient checkpointing (trl's default, which trades time for memory), and their losses agree in every step.  Time is the
CPU time of the process on one thread; the contenders take turns, each in its own process, and a ratio is the median
over the turns.  Peak memory is relative to the process's memory after the imports.

The gain of encoding a prompt once for both answers depends on its share of the tokens, so there are three cases.
Lengths are uniform between 0.5 and 1.5 times the mean.
  long   prompts of 192 tokens, answers of 64: dialogues with a history, summaries
  equal  128 and 128
  short  32 and 128: an instruction and its answer, with little to share
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

from _feedback import TINY, Shape, ours, theirs
from _turns import Contender, take_turns
from rich.console import Console
from rich.table import Table

CASES = {"long": (192, 64), "equal": (128, 128), "short": (32, 128)}
TRL: dict[str, dict[str, dict[str, Any]]] = {
    "preference": {"DPOTrainer": {}, "DPOTrainer, reference precomputed": {"precompute_ref_log_probs": True}},
    "sft": {"SFTTrainer": {}},
    "reward": {"RewardTrainer": {}},
}
SAME = 2e-3  # relative tolerance of the losses: rounding differs between libraries and accumulates over the steps


def contender(make: Callable[..., Any], name: str, shape: Shape, *more: Any) -> Contender:
    """Start a contender for the task `name`."""
    return Contender(make, (name, shape, *more), (name, TINY, *more))


def compare(name: str, shape: Shape, turns: int) -> list[tuple[str, ...]]:
    """Measure ours and trl's for a task; return one row of the table for each of trl's settings."""
    each = {"ours": contender(ours, name, shape)}
    each |= {label: contender(theirs, name, shape, settings) for label, settings in TRL[name].items()}
    take_turns(each, turns)
    own, rows = each.pop("ours"), []
    for label, other in each.items():
        apart = max(abs(a - b) / abs(b) for a, b in zip(own.found, other.found, strict=True))
        assert apart < SAME, f"{label}: the losses differ by {apart:.2g}: {own.found} and {other.found}"
        times = (f"{statistics.median(c.seconds) * 1e3:.0f}" for c in (own, other))
        speed, memory = f"{own.faster_than(other):.2f}", f"{own.peak / other.peak:.2f}"
        rows.append((label, *times, speed, f"{own.peak:.0f}", f"{other.peak:.0f}", memory))
    return rows


def main() -> None:
    """Measure the chosen cases and tasks, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("turns", 9), ("pairs", 4), ("width", 256), ("layers", 4), ("vocab", 4096)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--task", nargs="+", choices=list(TRL), default=list(TRL))
    args = parser.parse_args()
    heads = ("ms: ours", "theirs", "faster by", "peak MB: ours", "theirs", "ours takes")
    for case in args.case:
        prompt, answer = CASES[case]
        shape = Shape(prompt, answer, args.pairs, args.width, args.layers, args.vocab, batches=args.turns + 2)
        title = f"{case}: prompts of {prompt} tokens, answers of {answer}, {args.pairs} pairs; one thread, CPU time"
        table = Table("trl's", *heads, title=title, title_justify="left")
        for name in args.task:
            for row in compare(name, shape, args.turns):
                table.add_row(*row)
        Console(width=130).print(table)


if __name__ == "__main__":
    main()
