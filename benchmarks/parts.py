"""What each registered part takes of a step, against the plainest part of its kind.

    python benchmarks/parts.py [--kind norm activation] [--parts rmsnorm dyt] [--against NAME] [--compile] [--csv FILE]

Each part is made as the model makes it, everything else at its default, and measured where it acts: a norm or an
activation alone, a position in one attention, an attention or feed-forward part as the sublayer it is, a placement or
block as one layer.  Of a knob with named choices every choice is a row.  The part and the plainest one take turns
(A B A B ...) in one process on one thread; a ratio is the median over the turns of theirs in CPU time, forward as in
training (with the graph) and forward + backward, with 1024 tokens.
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

from ablatio.model.build import ModelBuilder
from ablatio.model.context import Context, make_context
from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing import tiny_models

ROWS, LENGTH, HEAD = 4, 256, 64
LEAST = 0.004  # seconds of CPU time in a turn: as many calls as that takes

# Where a part of a kind is measured, and the plainest part of the kind.  A kind that is not here has no share of its
# own in forward and backward, or nobody has said yet what to hold it against.
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
    choice = builder.choice("activation")
    return REGISTRIES["activation"].build(choice.name, choice.knobs, d_ff=builder.d_ff)


def plainest(entry: PartSpec) -> str:
    return PLAINEST_GATED if entry.facts.get("gated") else MEASURED[entry.kind][1]


class Contender:
    """A part in place: `run` does a forward pass, and a backward pass if it is asked to, and gives the CPU seconds."""

    def __init__(self, kind: str, config: Mapping[str, Any], compiled: bool) -> None:
        builder = ModelBuilder(config, tiny_models.VOCAB)
        part = MEASURED[kind][0](builder)
        self.call = torch.compile(part) if compiled else part
        self.kind, self.position = kind, builder.position(causal=True)
        width, count = builder.dims.d_model, 1
        if kind == "activation":
            width, count = builder.d_ff, 1 + builder.gated
        self.inputs = [torch.randn(ROWS, LENGTH, width).requires_grad_() for _ in range(count)]
        self.tokens, self.grad = torch.ones(ROWS, LENGTH, dtype=torch.long), torch.randn(ROWS, LENGTH, width)
        self.leaves = list(self.inputs)
        for holder in (part, self.position):
            self.leaves += holder.parameters() if isinstance(holder, nn.Module) else []

    def run(self, backward: bool) -> float:
        for leaf in self.leaves:
            leaf.grad = None
        # What all layers of a pass share counts for the position alone, whose work it is.
        ctx = self.context() if self.kind not in (*ALONE, "position") else None
        start = time.process_time()
        y = self.forward(ctx)
        if backward:
            y.backward(self.grad)
        return time.process_time() - start

    def forward(self, ctx: Context | None) -> Tensor:
        if self.kind in ALONE:
            return self.call(*self.inputs)
        (x,) = self.inputs
        if ctx is None:
            ctx, embed = self.context(), getattr(self.position, "embed", None)
            x = embed(x, ctx.q_pos) if embed else x
        return self.call(x, ctx)

    def context(self) -> Context:
        return make_context(self.tokens, self.position, "causal", None, None, torch.float32)


@dataclass(frozen=True, slots=True)
class Figures:
    """One part at one width: its milliseconds, the plainest one's, and how many times these it takes."""

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
    """The part against the plainest, both in the same model."""
    against, made = args.against or plainest(entry), config(entry, knobs, width)
    other = made | {entry.kind: defaults(entry.kind, against)}
    torch.manual_seed(0)
    torch.compiler.reset()  # after eight versions of one function the compiler gives up on it, and says nothing
    pair = [Contender(entry.kind, c, args.compile) for c in (made, other)]
    figures = [figure for backward in (False, True) for figure in take_turns(pair, backward, args.turns)]
    return Figures(entry.kind, label(entry, knobs), against, width, args.compile, *figures)


def take_turns(pair: list[Contender], backward: bool, turns: int) -> tuple[float, float, float]:
    """(milliseconds of the first, of the second, and the first as a multiple of the second): medians."""
    calls = [calls_in_a_turn(c, backward) for c in pair]
    seconds = [
        [sum(c.run(backward) for _ in range(count)) / count for c, count in zip(pair, calls, strict=True)]
        for _ in range(turns)
    ]
    first, second = (1000 * statistics.median(column) for column in zip(*seconds, strict=True))
    return first, second, statistics.median(a / b for a, b in seconds)


def calls_in_a_turn(contender: Contender, backward: bool) -> int:
    """Warm up (and compile), then see how long a call takes."""
    for _ in range(3):
        contender.run(backward)
    return max(1, round(LEAST / max(contender.run(backward), 1e-6)))


def config(entry: PartSpec, knobs: Mapping[str, Any], width: int) -> dict[str, Any]:
    made = tiny_models.config(entry, knobs, d_model=width, n_heads=max(1, width // HEAD), max_len=LENGTH)
    if entry.kind == "position":
        made["attention"] = defaults("attention", MEASURED["attention"][1])
    return made


def defaults(kind: str, name: str) -> dict[str, Any]:
    return {"name": name, **REGISTRIES[kind][name].defaults}


def variants(entry: PartSpec) -> Iterator[dict[str, Any]]:
    """The defaults, then each other choice of each knob that has named ones."""
    yield {}
    for knob in entry.knobs:
        yield from ({knob.name: choice} for choice in knob.choices if choice != knob.default)


def label(entry: PartSpec, knobs: Mapping[str, Any]) -> str:
    return " ".join([entry.name, *(f"{key}={value}" for key, value in knobs.items())])


def rows(kind: str, args: argparse.Namespace) -> Iterator[tuple[str, list[Figures] | str]]:
    """(part, its figures at each width, or why there are none), the plainest ones first."""
    entries = sorted(REGISTRIES[kind], key=lambda e: (e.facts.get("gated", False), e.name != plainest(e), e.name))
    for entry in entries:
        for knobs in variants(entry) if not args.parts or entry.name in args.parts else ():
            try:
                yield label(entry, knobs), [measure(entry, knobs, width, args) for width in args.width]
            except Exception as error:  # one part that fails, a plugin's perhaps, leaves the others their figures
                yield label(entry, knobs), f"{type(error).__name__}: {error}".split("\n")[0]


def show(kind: str, args: argparse.Namespace, console: Console) -> list[Figures]:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", choices=list(MEASURED), default=list(MEASURED))
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--against", metavar="NAME", help="another part than the plainest of the kind")
    parser.add_argument("--width", type=int, nargs="+", default=[128, 768], help="d_model")
    parser.add_argument("--compile", action="store_true", help="both under torch.compile")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--csv", type=Path, metavar="FILE")
    return parser.parse_args()


def keep_memory() -> None:
    """What is freed stays with the process, as it does in the steps of a training run.

    glibc would give it back whenever the end of the heap happens to be free; to fetch it page by page once more takes
    longer than many a part, and would count for whichever part comes first.
    """
    trim_threshold, mmap_threshold = -1, -3
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**25)


def main() -> None:
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
