"""FLOPs of a recurrence are counted on all chunks at once; they are those of one chunk after another."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ablatio.config.compose import compose_run
from ablatio.model.builder import ModelBuilder
from ablatio.model.cost.parameters import measure

V, LENGTH = 40, 128


@pytest.mark.parametrize("name", ["gated_deltanet", "gla", "kda", "mamba2", "mamba", "retention", "rwkv7", "titans"])
def test_flops_of_a_mixer(name: str) -> None:
    sizes = ["model.d_model=16", "model.n_heads=2", "model.n_layers=1", f"model.max_len={LENGTH}"]
    config = compose_run([*sizes, f"attention={name}", "position=none"]).config
    net = ModelBuilder(config, V).model().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.ones(1, LENGTH, dtype=torch.long))
    assert measure(config, V).flops_per_token == counter.get_total_flops() / LENGTH
