"""Speed and peak memory of a step of DPO, of supervised tuning and of a reward model: ours and trl's.

    python benchmarks/preferences.py [--turns 9] [--pairs 4] [--width 256] [--layers 4] [--case long equal short]

A step: collate a batch, forward, loss, backward, clipping to norm 1, fused AdamW; the metrics that the trainer logs are
part of it.  Both have the same Llama with the same weights, the same examples in the same order, float32 and no
gradient checkpointing (which trl has by default: it trades time for memory), and their losses agree in every step.
Time is the CPU time of the process at one thread; the contenders, each in a process of its own, take turns, and a ratio
is the median over the turns.  Peak memory is the process's over what its imports took.

What sharing the prompt saves depends on its share of the tokens, so there are three cases; lengths vary evenly between
half the mean and one and a half of it.
  long   prompts of 192 tokens, answers of 64: dialogues with a history, summaries
  equal  128 and 128
  short  32 and 128: an instruction and what it asks for; there is little to share
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
SAME = 2e-3  # relative: two libraries round differently, and each step builds on the one before


def contender(make: Callable[..., Any], name: str, shape: Shape, *more: Any) -> Contender:
    return Contender(make, (name, shape, *more), (name, TINY, *more))


def compare(name: str, shape: Shape, turns: int) -> list[tuple[str, ...]]:
    """One row of the table for each of trl's."""
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
