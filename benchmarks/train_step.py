"""Speed and peak memory of one training step, ours and peers' on identical work.

    python benchmarks/train_step.py [--vocab 4096 50304] [--compile] [--repeats 9] [--json FILE]

A step: forward, loss on all tokens, backward, clipping to norm 1, fused AdamW.  Time is the CPU time of the process at
one thread, so that other work on the machine shifts it little; the contenders take turns (A B C A B C ...), and a ratio
is the median over the turns of theirs / ours.  Peak memory is that of a fresh process over what its imports took.
"""

import argparse
import gc
import json
import multiprocessing
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peers import FAMILIES, Maker, NotInstalled, Shape, compile_blocks
from rich.console import Console
from rich.table import Table
from torch import nn

Step = Callable[[], None]
TOKENS = ((8, 128), (4, 256))
OURS = "ablatio"


def make_step(maker: Maker, shape: Shape, compiled: bool = False) -> tuple[Step, int]:
    """(one training step on the next batch, number of parameters)."""
    torch.manual_seed(0)
    model, loss = maker(shape)
    model.train()
    if compiled:
        compile_blocks(model)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=1e-3, betas=(0.9, 0.95), fused=True)
    batches = torch.Generator().manual_seed(1)

    def step() -> None:
        rows = torch.randint(shape.vocab, (shape.batch, shape.length + 1), generator=batches)
        loss(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, sum(p.numel() for p in parameters)


def cpu_seconds(step: Step) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def take_turns(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """The CPU seconds of each contender's steps; two warm-up steps each, then one step a turn."""
    for step in steps.values():
        step()
        step()
    gc.collect()
    gc.disable()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(cpu_seconds(step))
    gc.enable()
    return times


# Memory


def status_kb(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def peak_in_child(family: str, name: str, shape: Shape, answer: "multiprocessing.Queue[float]") -> None:
    """What three steps take over the memory that one small model of the same kind, and so its imports, left."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    maker = FAMILIES[family][name]
    step, _ = make_step(maker, Shape(16, 1, 16))
    step()
    del step
    gc.collect()
    before = status_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    step, _ = make_step(maker, shape)
    for _ in range(3):
        step()
    answer.put((status_kb("VmHWM") - before) / 1024)


def peak_megabytes(family: str, name: str, shape: Shape) -> float:
    spawn = multiprocessing.get_context("spawn")
    answer = spawn.Queue()
    child = spawn.Process(target=peak_in_child, args=(family, name, shape, answer))
    child.start()
    child.join()
    return answer.get(timeout=5) if child.exitcode == 0 else float("nan")


# All together


def contenders(family: str, shape: Shape, with_compile: bool) -> tuple[dict[str, Step], dict[str, int], list[str]]:
    steps, sizes, missing = {}, {}, []
    for name, maker in FAMILIES[family].items():
        try:
            steps[name], sizes[name] = make_step(maker, shape)
        except NotInstalled as reason:
            missing.append(str(reason))
            continue
        if with_compile:
            steps[f"{name}, compiled"], sizes[f"{name}, compiled"] = make_step(maker, shape, compiled=True)
    return steps, sizes, missing


def compare(family: str, shape: Shape, args: argparse.Namespace) -> list[dict[str, object]]:
    """One row per contender: tokens a second, how much faster ours is, peak memory and ours as a share of it."""
    steps, sizes, missing = contenders(family, shape, args.compile)
    times = take_turns(steps, args.repeats)
    steps.clear()
    gc.collect()
    peaks = {} if args.no_memory else {n: peak_megabytes(family, n, shape) for n in times if "compiled" not in n}
    rows: list[dict[str, object]] = []
    for name, seconds in times.items():
        row = {"family": family, **{k: getattr(shape, k) for k in ("vocab", "batch", "length")}, "name": name}
        row |= {"parameters": sizes[name], "tokens_per_second": shape.batch * shape.length / statistics.median(seconds)}
        for ours in (OURS, f"{OURS}, compiled"):
            if ours in times:
                pairs = zip(seconds, times[ours], strict=True)
                row[f"{ours}: speed"] = statistics.median(theirs / mine for theirs, mine in pairs)
        row |= {"peak_mb": peaks.get(name), "memory": peaks[OURS] / peaks[name] if name in peaks else None}
        rows.append(row)
    return rows + [{"family": family, "name": name, "missing": True} for name in missing]


def show(rows: list[dict[str, object]], title: str, console: Console) -> None:
    table = Table(title=title, title_justify="left")
    compiled = any(f"{OURS}, compiled: speed" in row for row in rows)
    heads = ["", "parameters", "tokens/s", "ours is faster by"] + ["compiled, by"] * compiled
    for head in [*heads, "peak MB", "ours takes"]:
        table.add_column(head, justify="left" if not head else "right")
    for row in rows:
        if row.get("missing"):
            table.add_row(str(row["name"]), "not installed")
            continue
        ratios = [f"{row[f'{OURS}{kind}: speed']:.2f}x" for kind in ("", ", compiled")[: 1 + compiled]]
        memory = ["", ""] if row["peak_mb"] is None else [f"{row['peak_mb']:.0f}", f"{row['memory']:.2f}x"]
        table.add_row(
            str(row["name"]), f"{row['parameters'] / 1e6:.2f} M", f"{row['tokens_per_second']:.0f}", *ratios, *memory
        )
    console.print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs="+", default=[4096, 50304])
    parser.add_argument("--family", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--length", type=int, nargs="+", default=[128, 256], choices=[length for _, length in TOKENS])
    parser.add_argument("--compile", action="store_true", help="also with torch.compile on each layer, ours and peers'")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-memory", action="store_true", help="skip the peak memory")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    args, console, everything = arguments(), Console(width=110), []
    torch.set_num_threads(1)
    console.print(f"torch {torch.__version__}, {platform.machine()}, one thread, {args.repeats} turns")
    for vocab in args.vocab:
        for batch, length in TOKENS:
            for family in args.family if length in args.length else ():
                rows = compare(family, Shape(vocab, batch, length), args)
                show(rows, f"{family}, vocabulary {vocab}, {batch} x {length} tokens", console)
                everything += rows
    if args.json:
        args.json.write_text(json.dumps({"torch": torch.__version__, "rows": everything}, indent=1))


if __name__ == "__main__":
    main()
