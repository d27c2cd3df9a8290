"""Stabilizers: hooks before and after each optimizer step that give numbers to log."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ablatio.registry import Entry
from ablatio.testing import probe, samples, tiny

KINDS = ("stabilizer",)


def test_metrics_are_declared(part: Entry) -> None:
    said, seen = set(part.facts["metrics"]), set[str]()

    def look(hook: str, metrics: Mapping[str, Tensor]) -> None:
        mapping = isinstance(metrics, Mapping)
        assert mapping, f"{probe.label(part)}: {hook} gives {type(metrics).__name__}, a dict of numbers was expected"
        unknown = sorted(metrics.keys() - said)
        assert not unknown, f"{probe.label(part)}: {hook} gives {unknown}, which `metrics` {sorted(said)} does not name"
        for name, value in metrics.items():
            probe.finite(part, torch.as_tensor(value, dtype=torch.float64), f"in {name}")
            one = torch.as_tensor(value).numel() == 1
            assert one, f"{probe.label(part)}: {name} has {torch.as_tensor(value).numel()} values, one was expected"
        seen.update(metrics)

    net = tiny.model()
    tiny.run(net, tiny.adamw(net), 8, hooks=[samples.made(part)], spike=5, seen=look)
    assert seen == said, f"{probe.label(part)}: `metrics` names {sorted(said - seen)}, which no hook gave in 8 steps"


def test_a_run_still_learns(part: Entry) -> None:
    net = tiny.model()
    losses = tiny.run(net, tiny.adamw(net), 40, hooks=[samples.made(part)])
    probe.finite(part, torch.tensor(losses), "in the loss of a tiny run")
    assert losses[-1] < 0.7 * losses[0], f"{probe.label(part)}: 40 steps go from {losses[0]:.3f} to {losses[-1]:.3f}"
    for name, weight in net.named_parameters():
        probe.finite(part, weight.detach(), f"in {name} after a tiny run")
