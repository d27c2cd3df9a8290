"""Speed of a step of Muon on the CPU, ours and torch.optim.Muon's, on the matrices of a model.

    python benchmarks/muon.py [--width 320] [--layers 8] [--repeats 9]

The contenders take turns (A B C A B C ...) in one process on one thread; time is the CPU time of the process, a ratio
the median over the turns of theirs / ours.  torch's Newton-Schulz uses bfloat16, which only some processors multiply
natively, four times as fast as float32 (`precision=auto` uses it on these); ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI
simulates the others.  The error of an update is its distance from the update in float64: |u - u64| / |u64|, over all
matrices.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ablatio.registry.kinds import optimizers
from ablatio.training.device import Machine

Parameters = list[torch.nn.Parameter]
SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "ns_steps": 5}


def matrices(width: int, layers: int, dtype: torch.dtype = torch.float32) -> Parameters:
    """Make the matrices of a model: q, k, v, o and two of 4 x width for each layer, with ill-conditioned gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = ([(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]) * layers
    made = [torch.nn.Parameter(torch.randn(s, generator=generator).mul_(0.02).to(dtype)) for s in shapes]
    for p in made:
        scale = torch.logspace(0, -3, p.shape[1])
        p.grad = (torch.randn(p.shape, generator=generator) * scale).to(dtype)
    return made


def ours(parameters: Parameters, precision: str) -> torch.optim.Optimizer:
    """Our Muon for these parameters."""
    groups = [{"params": parameters, "role": "matrix"}]
    return optimizers.build("muon", SETTINGS | {"precision": precision}, groups=groups)


def update(make: Any, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the first update of the matrices of one layer as one vector."""
    parameters = matrices(width, 1, dtype)
    before = [p.detach().clone() for p in parameters]
    make(parameters).step()
    return torch.cat([(p.detach() - b).double().flatten() for p, b in zip(parameters, before, strict=True)])


def main() -> None:
    """Measure all contenders and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    Machine("cpu", "32", 1).prepare(args.width)  # chooses the matrix products as a run does
    makers = {
        "torch.optim.Muon, bfloat16": lambda p: torch.optim.Muon(p, **SETTINGS),
        "ours, float32": lambda p: ours(p, "float32"),
        "ours, bfloat16": lambda p: ours(p, "bfloat16"),
    }
    exact = update(lambda p: ours(p, "auto"), args.width, torch.float64)
    racing = {name: make(matrices(args.width, args.layers)) for name, make in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in racing}
    for turn in range(2 + args.repeats):
        for name, optimizer in racing.items():
            start = time.process_time()
            optimizer.step()
            if turn >= 2:
                seconds[name].append(time.process_time() - start)
    count = sum(p.numel() for p in matrices(args.width, args.layers)) / 1e6
    table = Table(title=f"Muon, {count:.1f} M weights, width {args.width}, one thread, torch {torch.__version__}")
    for head in ("", "ms a step", "torch's / this", "off float64 by"):
        table.add_column(head, justify="right" if head else "left")
    (theirs, *_) = seconds.values()
    for name, make in makers.items():
        ratio = statistics.median(a / b for a, b in zip(theirs, seconds[name], strict=True))
        off = float((update(make, args.width) - exact).norm() / exact.norm())
        table.add_row(name, f"{statistics.median(seconds[name]) * 1e3:.0f}", f"{ratio:.2f}x", f"{off:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
