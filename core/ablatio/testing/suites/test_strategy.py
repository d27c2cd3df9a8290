"""Strategies: the steps, the weights and the checkpoint of several devices are those of one."""

import functools

import pytest
import torch

from ablatio.model.device_memory import DeviceMemory
from ablatio.model.ranks import Ranks
from ablatio.registry import packages
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts, two_ranks

KINDS = ("strategy",)


@functools.cache
def _one_device() -> two_ranks.Steps:
    return two_ranks.one_device()


def test_steps_are_those_of_one_device(part: PartSpec) -> None:
    """Two processes, three steps of two accumulated batches, rows with different numbers of targets."""
    if not part.facts["several"]:
        pytest.skip("trains on one device")
    if problem := next(packages.missing([part]), None):
        pytest.skip(problem.what)
    found = two_ranks.train(part)
    one, where = _one_device(), checks.label(part)
    assert found.losses == pytest.approx(one.losses, abs=1e-5), f"{where}: the losses are not those of one device"
    assert found.norms == pytest.approx(one.norms, rel=1e-4), (
        f"{where}: gradient_norm is not that of the whole gradient"
    )
    missing = one.tensors.keys() ^ found.tensors.keys()
    assert not missing, f"{where}: a checkpoint differs from that of one device in {sorted(missing)[:3]}"
    for name, tensor in one.tensors.items():
        message = f"{where}: {name} of a checkpoint is not that of one device"
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-3, atol=1e-4, msg=message)


def test_facts_are_known_values(part: PartSpec) -> None:
    assert part.facts["updates"] in ("entry", "tensor", "model"), checks.label(part)


class _Pair(Ranks):
    """Two ranks that have not started."""

    world = 2


@pytest.mark.parametrize("piece", ["entry", "tensor"])
def test_memory_of_devices_holds_the_run(part: PartSpec, piece: str) -> None:
    """Two devices and their host hold what one device holds; a strategy that shards has less of the weights on each."""
    one = DeviceMemory(1000, 1000, 2000, 300, 5000, layer=200, outside=100)
    alone = sample_parts.made(part, ranks=Ranks()).memory(one, piece)
    assert (alone.weights, alone.activations) == (one.weights, one.activations) or part.facts["several"]
    each, where = sample_parts.made(part, ranks=_Pair()).memory(one, piece), checks.label(part)
    assert 2 * (each.lasting + each.host) >= one.lasting, f"{where}: memory() forgets what one device holds"
    if part.facts["shards"]:
        assert each.weights < one.weights, f"{where}: shards, and memory() says that each device has all weights"
