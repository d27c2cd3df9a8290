"""Training step of a small model with each recurrent or state-space mixer, relative to attention=mha.

    python benchmarks/mixers.py [--mixers mamba kda] [--length 1024] [--turns 9] [--json FILE]

A step is forward, loss on all tokens, backward, clipping to norm 1 and fused AdamW; the model has the default parts but
for the attention: width 256, 4 layers, 4 heads, vocabulary 4096, one row of random ids.  mha and the mixer take turns
(A B A B ...), each in its own process on one thread; a ratio is the median over the turns of theirs / mha's CPU time.
Peak memory is relative to the process's memory after the imports and a tiny step.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _turns import Contender, take_turns
from rich.console import Console
from rich.table import Table

MIXERS = (
    *("linear", "retention", "gla", "hgrn2", "deltanet", "gated_deltanet", "kda", "rwkv7"),
    *("mamba", "mamba2", "mingru", "titans"),
)
WIDTH, LAYERS, HEADS, VOCAB = 256, 4, 4, 4096


def make(attention: str, width: int, layers: int, length: int, vocab: int) -> Callable[[], float]:
    """Build a model and return its training step on the next random row; the step returns the loss."""
    from ablatio.model.build import build_model
    from ablatio.model.example import Example
    from ablatio.registry.registry import REGISTRIES
    from ablatio.testing import tiny_models

    sizes = {"d_model": width, "n_layers": layers, "n_heads": HEADS, "max_len": length}
    net = build_model(tiny_models.config(REGISTRIES["attention"][attention], **sizes), vocab).train()
    optimizer, draws = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True), torch.Generator().manual_seed(1)

    def step() -> float:
        row = torch.randint(vocab, (1, length + 1), generator=draws)
        loss = tiny_models.mean_loss(net, Example(row[:, :-1], row[:, 1:]))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def measure(attention: str, length: int, turns: int) -> dict[str, Any]:
    """Compare a mixer with mha."""
    names = {"mha": "mha", "mixer": attention}
    each = {
        role: Contender(make, (name, WIDTH, LAYERS, length, VOCAB), (name, 32, 1, 32, 64))
        for role, name in names.items()
    }
    take_turns(each, turns)
    return {
        "attention": attention,
        "step / mha's": round(1 / each["mixer"].faster_than(each["mha"]), 3),
        "ms": round(1e3 * statistics.median(each["mixer"].seconds), 1),
        "mha's ms": round(1e3 * statistics.median(each["mha"].seconds), 1),
        "peak MB": round(each["mixer"].peak, 1),
        "mha's peak MB": round(each["mha"].peak, 1),
    }


def main() -> None:
    """Measure the chosen mixers, print a table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixers", nargs="+", default=list(MIXERS), metavar="NAME")
    parser.add_argument("--length", type=int, default=1024, help="tokens in the row")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    found = [measure(name, args.length, args.turns) for name in args.mixers]
    table = Table(*found[0], title=f"{args.length} tokens, one thread, CPU time", title_justify="left")
    for row in found:
        table.add_row(*map(str, row.values()))
    Console(width=120).print(table)
    if args.json:
        setting = {"torch": torch.__version__, "length": args.length, "turns": args.turns, "width": WIDTH}
        args.json.write_text(json.dumps(setting | {"layers": LAYERS, "mixers": found}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
