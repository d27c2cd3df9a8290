"""Stabilizers: hooks before and after each optimizer step that return numbers to log."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
import torch

from ablatio.model.cost.meta_tensors import ReadAsOne
from ablatio.model.on_meta import meta_copy
from ablatio.model.optimizer_step import OptimizerStep, Rewind, SkipStep
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts, tiny_models
from ablatio.testing.digest import digest

KINDS = ("stabilizer",)


def test_metrics_are_declared(part: PartSpec) -> None:
    said, seen = set(part.facts["metrics"]), set[str]()

    def look(hook: str, metrics: Mapping[str, Any]) -> None:
        if hook == "raised":
            asked = "Rewind" not in metrics or part.facts["rewinds"]
            assert asked, f"{checks.label(part)}: raises Rewind, and the class does not set `rewinds = True`"
            return
        mapping = isinstance(metrics, Mapping)
        assert mapping, f"{checks.label(part)}: {hook} gives {type(metrics).__name__}; expected a dict of numbers"
        unknown = sorted(metrics.keys() - said)
        assert not unknown, (
            f"{checks.label(part)}: {hook} gives {unknown}, which `metrics` {sorted(said)} does not name"
        )
        for name, value in metrics.items():
            checks.finite(part, torch.as_tensor(value, dtype=torch.float64), f"in {name}")
            one = torch.as_tensor(value).numel() == 1
            assert one, f"{checks.label(part)}: {name} has {torch.as_tensor(value).numel()} values; expected one"
        seen.update(metrics)

    net = tiny_models.model()
    tiny_models.run(net, tiny_models.adamw(net), 8, hooks=[sample_parts.made(part)], spike=5, seen=look)
    assert seen == said, f"{checks.label(part)}: `metrics` names {sorted(said - seen)}, which no hook gave in 8 steps"


def test_a_run_still_learns(part: PartSpec) -> None:
    net = tiny_models.model()
    losses = tiny_models.run(net, tiny_models.adamw(net), 40, hooks=[sample_parts.made(part)])
    checks.finite(part, torch.tensor(losses), "in the loss of a tiny run")
    assert losses[-1] < 0.7 * losses[0], f"{checks.label(part)}: 40 steps go from {losses[0]:.3f} to {losses[-1]:.3f}"
    for name, weight in net.named_parameters():
        checks.finite(part, weight.detach(), f"in {name} after a tiny run")


def test_state_comes_back(part: PartSpec) -> None:
    """State that lasts between steps is in state_dict: a restored instance continues identically."""
    first = sample_parts.made(part)
    if not hasattr(first, "state_dict"):
        pytest.skip("it keeps no state (no state_dict)")
    outcomes = []
    for again in (False, True):
        net, used = tiny_models.model(), sample_parts.made(part)
        told: list[Any] = []
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        tiny_models.run(net, optimizer, 20, hooks=[used])
        if again:
            fresh = sample_parts.made(part)
            fresh.load_state_dict(used.state_dict())
            used = fresh
        tiny_models.run(net, optimizer, 12, hooks=[used], spike=9, seen=lambda *given, told=told: told.append(given))
        outcomes.append(digest([told, net.state_dict(), used.state_dict()]))
    assert outcomes[0] == outcomes[1], (
        f"{checks.label(part)}: with the state of another instance it behaves differently"
    )


def test_state_comes_back_on_the_device_of_the_model(part: PartSpec) -> None:
    """The trainer moves a checkpoint's tensors to the model's device before load_state_dict; they stay there."""
    first = sample_parts.made(part)
    if not hasattr(first, "state_dict"):
        pytest.skip("it keeps no state (no state_dict)")
    net = tiny_models.model()
    tiny_models.run(net, tiny_models.adamw(net), 6, hooks=[first])
    there = meta_copy(net)
    for p in there.parameters():
        p.grad = torch.zeros_like(p)
    again = sample_parts.made(part)
    again.load_state_dict(_moved(first.state_dict()))
    optimizer, zero = tiny_models.adamw(there), torch.zeros((), device="meta")
    step = OptimizerStep(
        there, list(there.parameters()), optimizer, 6, 12, zero, sampled_loss=lambda: zero, n_targets=1
    )
    with ReadAsOne(), suppress(SkipStep, Rewind):
        for hook in ("before_step", "after_step"):
            if hasattr(again, hook):
                getattr(again, hook)(step)
    stayed = sorted({tensor.device.type for tensor in _tensors(again.state_dict())} - {"meta"})
    assert not stayed, f"{checks.label(part)}: after a step on another device its state is on {stayed}"


def _moved(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _moved(v) for k, v in value.items()}
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, dict):
        return [t for v in value.values() for t in _tensors(v)]
    return [value] if isinstance(value, torch.Tensor) else []
