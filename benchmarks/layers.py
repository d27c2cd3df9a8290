"""Cost of the per-layer mechanism for a homogeneous model: our stack against a plain loop over the same layers.

    python benchmarks/layers.py [--turns 60] [--json FILE]

A step is forward, loss on all tokens, backward, clipping to norm 1 and fused AdamW of one model with the default parts,
whose stack runs either as it is or as a stack without `layers.*` would: one position, one context, one loop over the
layers.  Both take turns (A B A B ...) in one process on one thread, with the same weights and rows.

ratio            median over the turns of ours / plain in CPU time
ratio of equals  the same of the plain loop against itself: what the machine resolves
mechanism        CPU time of the stack's own code beyond the plain loop's, with layers that do nothing, so that their
                 noise does not hide it; and the same as a share of a step
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ablatio.model.build import build_model
from ablatio.model.context import Context, make_context
from ablatio.model.example import Example
from ablatio.model.stack import Stack
from ablatio.testing import tiny_models

# (d_model, layers, rows, tokens of a row): a tiny one, in which Python counts most, and one of the usual tests' sweeps
SIZES = ((32, 4, 2, 32), (128, 4, 4, 128), (256, 6, 4, 256))
VOCAB, HEADS, WARM, CALLS = 512, 4, 3, 2000


class Nothing(nn.Module):
    """A layer without work: returns its input."""

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return x


def use_plain_loop(stack: Stack) -> None:
    """Let a stack run as one without layers of several kinds."""

    def contexts(tokens: Tensor, segments: Any, cache: Any, dtype: torch.dtype, *others: Any) -> list[Context]:
        opened, memory, record, *rest = others
        tree = rest[0] if rest else None
        given = {"opened": opened, "memory": memory, "record": record, "tree": tree}
        return [make_context(tokens, stack.position, stack.mask, segments, cache, dtype, **given)]

    def through(x: Tensor, contexts: list[Context], record: Any = None) -> Tensor:
        x, (ctx,) = stack.begin(x, contexts[0]), contexts
        for layer in stack.layers:
            x = layer(x, ctx)
        made: Tensor = x if stack.norm is None else stack.norm(x)
        return made

    stack.contexts, stack.through = contexts, through  # type: ignore[method-assign,assignment]


def use_own_code(stack: Stack) -> None:
    """Let a stack run as it is."""
    vars(stack).pop("contexts", None)
    vars(stack).pop("through", None)


Run = Callable[[], Any]


def seconds(run: Run, calls: int = 1) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - start) / calls


def ratio(stack: Stack, first: Callable[[Stack], None], second: Callable[[Stack], None], run: Run, turns: int) -> float:
    """Median over the turns of the CPU time with `first` over that with `second`; each turn begins with the other."""
    found = list[float]()
    for turn in range(turns):
        took = dict[int, float]()
        for place in (0, 1) if turn % 2 else (1, 0):
            (first, second)[place](stack)
            took[place] = seconds(run)
        found.append(took[0] / took[1])
    return statistics.median(found)


def measure(width: int, layers: int, rows: int, length: int, turns: int) -> dict[str, Any]:
    """Compare both at one size."""
    config = tiny_models.config(d_model=width, n_layers=layers, n_heads=HEADS, max_len=length)
    net = build_model(config, VOCAB).train()
    optimizer, stack = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True), net.model
    tokens = torch.randint(VOCAB, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    example = Example(tokens[:, :-1], tokens[:, 1:])

    def step() -> None:
        tiny_models.mean_loss(net, example).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(WARM):
        step()
    found = ratio(stack, use_own_code, use_plain_loop, step, turns)
    equals = ratio(stack, use_plain_loop, use_plain_loop, step, turns)
    ms = 1e3 * statistics.median(seconds(step) for _ in range(WARM))
    extra = mechanism(stack, example.inputs, turns)
    sizes = {"width": width, "layers": layers, "rows": rows, "length": length}
    figures = {"ratio": round(found, 4), "ratio of equals": round(equals, 4), "step ms": round(ms, 2)}
    return sizes | figures | {"mechanism us": round(1e6 * extra, 1), "mechanism %": round(1e5 * extra / ms, 3)}


def mechanism(stack: Stack, tokens: Tensor, turns: int) -> float:
    """CPU seconds of a forward pass in the stack's own code beyond the plain loop's, with layers that do nothing."""
    kept, stack.layers = stack.layers, nn.ModuleList(Nothing() for _ in stack.layers)
    row, each = tokens[:1, :1], {use_own_code: list[float](), use_plain_loop: list[float]()}
    with torch.no_grad():
        for _ in range(max(3, turns // 10)):
            for use, took in each.items():
                use(stack)
                took.append(seconds(lambda: stack(row), CALLS))
    stack.layers = kept
    own, plain = (min(took) for took in each.values())  # of equal work, the least disturbed
    return own - plain


def main() -> None:
    """Measure at all sizes, print a table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--sizes", type=int, nargs="+", default=[*range(len(SIZES))], metavar="N", help="0, 1, 2")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(*SIZES[number], args.turns) for number in args.sizes]
    table = Table(*found[0], title="one thread, CPU time", title_justify="left")
    for row in found:
        table.add_row(*map(str, row.values()))
    Console(width=140).print(table)
    if args.json:
        setting = {"torch": torch.__version__, "turns": args.turns, "vocabulary": VOCAB}
        args.json.write_text(json.dumps(setting | {"sizes": found}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
