"""Cost of each registered part in a training step, relative to the baseline part of its kind.

    python benchmarks/parts.py [--kind norm activation] [--parts rmsnorm dyt] [--against NAME] [--compile] [--csv FILE]

Each part is built as in a model with all else at its default, and measured in place: a norm or an activation alone, a
position inside one attention, an attention or feed-forward part as a sublayer, a placement or block as one layer.  Each
choice of a knob with named choices is a row.  The part and the baseline take turns (A B A B ...) in one process on one
thread; a ratio is the median over the turns of the ratio of CPU times, for forward (with the graph, as in training) and
for forward + backward, with 1024 tokens.
"""

import argparse
import csv
import ctypes
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from ablatio.model.builder import ModelBuilder
from ablatio.model.context import Context, make_context
from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing import tiny_models

ROWS, LENGTH, HEAD = 4, 256, 64
LEAST = 0.004  # seconds of CPU time of a turn, which decides the number of calls

# For each kind: the module in which a part is measured, and the baseline part.  Kinds without an entry have no cost of
# their own in forward and backward, or no baseline has been chosen.
MEASURED: dict[str, tuple[Callable[[ModelBuilder], Any], str]] = {
    "norm": (lambda a: a.norm("part"), "layernorm"),
    "activation": (lambda a: activation(a), "relu"),
    "position": (lambda a: a.attention(0, "part"), "none"),
    "attention": (lambda a: a.attention(0, "part"), "mha"),
    "mlp": (lambda a: a.mlp(0, "part"), "dense"),
    "placement": (lambda a: a.block(0), "pre"),
    "block": (lambda a: a.block(0), "sequential"),
}
PLAINEST_GATED = "reglu"
ALONE = ("norm", "activation")


def activation(builder: ModelBuilder) -> Any:
    """Build the activation of the model."""
    choice = builder.choice("activation")
    return REGISTRIES["activation"].build(choice.name, choice.knobs, d_ff=builder.d_ff)


def plainest(entry: PartSpec) -> str:
    """Name of the baseline that a part is compared with."""
    return PLAINEST_GATED if entry.facts.get("gated") else MEASURED[entry.kind][1]


class Contender:
    """A part in the module in which it is measured."""

    def __init__(self, kind: str, config: Mapping[str, Any], compiled: bool) -> None:
        builder = ModelBuilder(config, tiny_models.VOCAB)
        part = MEASURED[kind][0](builder)
        self.call = torch.compile(part) if compiled else part
        self.kind, self.position = kind, builder.positions(causal=True)[0][0]
        width, count = builder.dims.d_model, 1
        if kind == "activation":
            width, count = builder.d_ff, 1 + builder.gated
        self.inputs = [torch.randn(ROWS, LENGTH, width).requires_grad_() for _ in range(count)]
        self.tokens, self.grad = torch.ones(ROWS, LENGTH, dtype=torch.long), torch.randn(ROWS, LENGTH, width)
        self.leaves = list(self.inputs)
        for holder in (part, self.position):
            self.leaves += holder.parameters() if isinstance(holder, nn.Module) else []

    def run(self, backward: bool) -> float:
        """Do a forward pass, and a backward pass if `backward`; return the CPU seconds."""
        for leaf in self.leaves:
            leaf.grad = None
        # Work that all layers of a pass share (masks, tables) is counted for a position only, which causes it.
        ctx = self.context() if self.kind not in (*ALONE, "position") else None
        start = time.process_time()
        y = self.forward(ctx)
        if backward:
            y.backward(self.grad)
        return time.process_time() - start

    def forward(self, ctx: Context | None) -> Tensor:
        """Call the module on the inputs."""
        if self.kind in ALONE:
            return self.call(*self.inputs)
        (x,) = self.inputs
        if ctx is None:
            ctx, embed = self.context(), getattr(self.position, "embed", None)
            x = embed(x, ctx.q_pos) if embed else x
        return self.call(x, ctx)

    def context(self) -> Context:
        """Make the context of a causal pass."""
        return make_context(self.tokens, self.position, "causal", None, None, torch.float32)


@dataclass(frozen=True, slots=True)
class Figures:
    """Times of one part and of the baseline `against` at one width, in ms, and their ratios (`forward`, `both`)."""

    kind: str
    part: str
    against: str
    width: int
    compiled: bool
    forward_ms: float
    against_forward_ms: float
    forward: float
    both_ms: float
    against_both_ms: float
    both: float


def measure(entry: PartSpec, knobs: Mapping[str, Any], width: int, args: argparse.Namespace) -> Figures:
    """Measure a part against the baseline, both in the same model."""
    against, made = args.against or plainest(entry), config(entry, knobs, width)
    other = made | {entry.kind: defaults(entry.kind, against)}
    torch.manual_seed(0)
    torch.compiler.reset()  # after eight versions of a function torch.compile silently falls back to eager
    pair = [Contender(entry.kind, c, args.compile) for c in (made, other)]
    figures = [figure for backward in (False, True) for figure in take_turns(pair, backward, args.turns)]
    return Figures(entry.kind, label(entry, knobs), against, width, args.compile, *figures)


def take_turns(pair: list[Contender], backward: bool, turns: int) -> tuple[float, float, float]:
    """Return medians: milliseconds of the first, of the second, and the ratio first / second."""
    calls = [calls_in_a_turn(c, backward) for c in pair]
    seconds = [
        [sum(c.run(backward) for _ in range(count)) / count for c, count in zip(pair, calls, strict=True)]
        for _ in range(turns)
    ]
    first, second = (1000 * statistics.median(column) for column in zip(*seconds, strict=True))
    return first, second, statistics.median(a / b for a, b in seconds)


def calls_in_a_turn(contender: Contender, backward: bool) -> int:
    """Warm up (and compile), then choose the number of calls that take LEAST seconds."""
    for _ in range(3):
        contender.run(backward)
    return max(1, round(LEAST / max(contender.run(backward), 1e-6)))


def config(entry: PartSpec, knobs: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Config of the model in which the part is measured."""
    made = tiny_models.config(entry, knobs, d_model=width, n_heads=max(1, width // HEAD), max_len=LENGTH)
    if entry.kind == "position":
        made["attention"] = defaults("attention", MEASURED["attention"][1])
    return made


def defaults(kind: str, name: str) -> dict[str, Any]:
    """Config of a part with its default knobs."""
    return {"name": name, **REGISTRIES[kind][name].defaults}


def variants(entry: PartSpec) -> Iterator[dict[str, Any]]:
    """Yield the default knobs (none), then each other choice of each knob with named choices."""
    yield {}
    for knob in entry.knobs:
        yield from ({knob.name: choice} for choice in knob.choices if choice != knob.default)


def label(entry: PartSpec, knobs: Mapping[str, Any]) -> str:
    """Label of a row: the part's name and the changed knobs."""
    return " ".join([entry.name, *(f"{key}={value}" for key, value in knobs.items())])


def rows(kind: str, args: argparse.Namespace) -> Iterator[tuple[str, list[Figures] | str]]:
    """Yield (label, figures at each width, or the error), the baselines first."""
    measured = (e for e in REGISTRIES[kind] if not e.facts.get("absent"))
    entries = sorted(measured, key=lambda e: (e.facts.get("gated", False), e.name != plainest(e), e.name))
    for entry in entries:
        for knobs in variants(entry) if not args.parts or entry.name in args.parts else ():
            try:
                yield label(entry, knobs), [measure(entry, knobs, width, args) for width in args.width]
            except Exception as error:  # a failing part, such as a plugin's, must not end the measurement of the others
                yield label(entry, knobs), f"{type(error).__name__}: {error}".split("\n")[0]


def show(kind: str, args: argparse.Namespace, console: Console) -> list[Figures]:
    """Measure all parts of a kind, print the table, and return the figures."""
    heads = [f"{what}, {width}" for width in args.width for what in ("forward", "+ backward", "ms")]
    table = Table(title=f"{kind}=", title_justify="left")
    for head in ("", "against", *heads):
        table.add_column(head, justify="right" if head in heads else "left")
    found: list[Figures] = []
    for part, figures in rows(kind, args):
        if isinstance(figures, str):
            table.add_row(part, escape(figures))
            continue
        found += figures
        cells = [cell for f in figures for cell in (f"{f.forward:.2f}", f"{f.both:.2f}", f"{f.both_ms:.2f}")]
        table.add_row(part, figures[0].against, *cells)
    console.print(table)
    return found


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", choices=list(MEASURED), default=list(MEASURED))
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="measure only these parts")
    parser.add_argument("--against", metavar="NAME", help="use this part as the baseline")
    parser.add_argument("--width", type=int, nargs="+", default=[128, 768], help="d_model")
    parser.add_argument("--compile", action="store_true", help="compile the part and the baseline with torch.compile")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--csv", type=Path, metavar="FILE")
    return parser.parse_args()


def keep_memory() -> None:
    """Keep freed memory in the process, as in the steps of a training run.

    glibc would return it to the system whenever the end of the heap is free; fetching it again page by page takes
    longer than many parts, and would be counted for the part that comes first.
    """
    trim_threshold, mmap_threshold = -1, -3
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**25)


def main() -> None:
    """Measure the chosen parts, print the tables, and write the CSV file."""
    args, console = arguments(), Console(width=120)
    keep_memory()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    console.print(f"torch {torch.__version__}, {ROWS} x {LENGTH} tokens, one thread, {args.turns} turns, CPU time")
    found = [figures for kind in args.kind for figures in show(kind, args, console)]
    if args.csv:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Figures)])
            writer.writeheader()
            writer.writerows(asdict(f) for f in found)


if __name__ == "__main__":
    main()
