"""Steps, gradient norms and checkpoints of four ranks in two groups are those of one device."""

from typing import Any

import pytest
import torch

from ablatio.registry import kinds
from ablatio.testing import two_ranks
from ablatio_std.strategies._stand_ins import balanced, senders

COPIES, GRID = ("fsdp", {"copies": 2}), ("tensor", {"degree": 2})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "knobs", "piece"),
    [
        (*GRID, "tensor"),
        pytest.param(*COPIES, "tensor", marks=pytest.mark.long),
        pytest.param(*COPIES, "entry", marks=pytest.mark.long),
        pytest.param(*GRID, "entry", marks=pytest.mark.long),
        pytest.param("fsdp", {"copies": 4}, "entry", marks=pytest.mark.long),
        pytest.param("fsdp", {"copies": 2, "offload": "cpu", "reshard": False}, "tensor", marks=pytest.mark.long),
        pytest.param("tensor", {"degree": 1}, "tensor", marks=pytest.mark.long),
    ],
)
def test_groups(strategy: str, knobs: dict[str, Any], piece: str) -> None:
    """AdamW updates single entries, so that its updates of whole tensors, at their owners, must be the same."""
    one = two_ranks.one_device()
    found = two_ranks.train(kinds.strategies[strategy], knobs, world=4, piece=piece)
    assert found.losses == pytest.approx(one.losses, abs=1e-5)
    assert found.norms == pytest.approx(one.norms, rel=1e-4)
    assert found.tensors.keys() == one.tensors.keys()
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_each_part_is_sent_to_its_owner_once_by_the_nearest_rank() -> None:
    first, second = (slice(0, 2), slice(0, 3)), (slice(2, 4), slice(0, 3))
    assert [senders([first, second, first, second], owner) for owner in range(4)] == [{0, 1}, {0, 1}, {1, 2}, {2, 3}]
    assert senders([first] * 4, 2) == {2}


def test_owners_have_equal_loads() -> None:
    owners = balanced([8, 1, 4, 4, 1, 2], 2)
    assert sum(size for size, owner in zip([8, 1, 4, 4, 1, 2], owners, strict=True) if owner == 0) == 10
