"""Computing time of runs before they start, from one timed step."""

from collections.abc import Mapping, Sequence
from typing import Any

from ablatio.registry import kinds
from ablatio.training.run_spec import RunSpec


def run_seconds(spec: RunSpec) -> float:
    """Seconds of a run: its steps, and passes over the held-out text, which cost a third per token; 0 if unknown."""
    from ablatio.training.estimate import seconds_per_step

    step = seconds_per_step(spec)
    if not step:
        return 0.0
    train, data, tokens = spec.config["train"], spec.config["data"], spec.tokens_per_step
    trains = kinds.tasks[spec.config["task"]["name"]].facts["trains"]
    passes = 2 + (train["steps"] // train["val_every"] if train["val_every"] else 0) if trains else 1
    steps = spec.full_steps if trains else 0.0
    return step * float(steps + passes * (data["val_tokens"] or 0) / tokens / 3)


def seconds_per_seed(configs: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of one run of each config: the first is timed, the others scale by their FLOPs; 0 if unknown."""
    specs = [RunSpec(config) for config in configs]
    first = run_seconds(specs[0])
    return sum(first * spec.train_flops / specs[0].train_flops for spec in specs) if first else 0.0
