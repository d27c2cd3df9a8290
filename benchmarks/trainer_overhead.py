"""Overhead of a step of `ablatio train` over a bare loop: CPU milliseconds on one thread, A B A B, medians.

    python benchmarks/trainer_overhead.py

The model is so small that a step is mostly overhead; both sides do the same work: data, seeding, learning rate, loss,
backward, clipping, fused AdamW.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ablatio.config.compose import compose_run
from ablatio.model.builder import PartChoice
from ablatio.model.parameter_roles import groups_by_role, named_generator, named_seed
from ablatio.registry import kinds
from ablatio.storage.checkpoints import Checkpoints
from ablatio.training.learning_rates import factor_of
from ablatio.training.loop import TrainingLoop
from ablatio.training.prepare import prepare_run
from ablatio.training.run import quiet_libraries
from ablatio.training.run_spec import RunSpec

SMALL = (
    "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_len=16", "tokenizer=bytes",
    "train.batch_size=1", "train.val_every=null", "train.checkpoint_every=null", "data.val_tokens=1024",
    "trainer.threads=1", "trainer.progress=false",
)  # fmt: skip
WARM = 20


def bare(config: dict[str, Any], steps: int) -> float:
    """Milliseconds of a step in a plain loop."""
    run = prepare_run(RunSpec(config))
    choice = dict(config["optimizer"])
    optimizer = kinds.optimizers.build(choice.pop("name"), choice, groups=groups_by_role(run.model))
    parameters, batches = list(run.model.parameters()), iter(run.training(0))
    rates, factor = [g["lr"] for g in optimizer.param_groups], factor_of(PartChoice.of(run.config["schedule"]))
    for index in range(steps):
        if index == WARM:
            start = time.process_time()
        batch = next(batches)
        torch.default_generator.manual_seed(named_seed(1, str(index)))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor(index, steps, [])
        example = run.task.example(batch, named_generator(1, str(index)))
        total, count, _ = run.model.loss(example)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - start) / (steps - WARM) * 1e3


def whole(config: dict[str, Any], steps: int) -> float:
    """Milliseconds of a step of `ablatio train`: Lightning, callbacks, logging every train.log_every steps."""
    with tempfile.TemporaryDirectory() as folder:
        session = TrainingLoop(
            prepare_run(RunSpec(config)),
            Path(folder),
            Console(quiet=True),
            Checkpoints(Path(folder) / "checkpoints"),
            None,
            {},
        )
        marks: list[float] = []
        after_step = session.after_step

        def timed(trainer: Any, step: int) -> None:
            marks.append(time.process_time())
            after_step(trainer, step)

        session.after_step = timed  # type: ignore[method-assign]
        session.train()
    return (marks[-1] - marks[WARM - 1]) / (len(marks) - WARM) * 1e3


def main() -> None:
    """Measure both in turns and print the difference."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--repeats", type=int, default=5)
    args = options.parse_args()
    quiet_libraries()
    config = compose_run([*SMALL, f"train.steps={args.steps}"]).config
    pairs = [(bare(config, args.steps), whole(config, args.steps)) for _ in range(args.repeats)]
    for name, values in zip(("bare loop", "ablatio train"), zip(*pairs, strict=True), strict=True):
        print(f"{name:<14} {statistics.median(values):.3f} ms a step  ({', '.join(f'{v:.2f}' for v in values)})")
    print(f"overhead       {statistics.median(b - a for a, b in pairs):.3f} ms a step (target: at most 1)")


if __name__ == "__main__":
    main()
