"""Positions beyond those of training: cached decoding equals full passes with every position and every scaling."""

import pytest
import torch

from ablatio.config.compose import compose_run
from ablatio.model.builder import ModelBuilder
from ablatio.model.kv_cache import KVCache
from ablatio.registry.registry import REGISTRIES

SIZE = ["model.d_model=32", "model.n_heads=4", "model.n_layers=2", "model.max_len=64", "tokenizer=bytes"]
LISTED = ["position.short_factors=[1,1,1,1]", "position.long_factors=[1,2,3,4]"]  # of each pair of a head of 8
SCALED = {
    f"{entry.name} {scaling}": [
        f"position={entry.name}", f"position.scaling={scaling}", "position.factor=4", "position.original_max_len=16",
        *(LISTED if scaling == "longrope" else ()),
    ]
    for entry in REGISTRIES["position"]
    if (knob := entry.knob("scaling")) is not None
    for scaling in knob.choices
    if scaling != knob.default
}  # fmt: skip
CASES = {entry.name: [f"position={entry.name}"] for entry in REGISTRIES["position"]} | SCALED


def test_all_scalings_are_tried() -> None:
    assert len(SCALED) > 4


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_cache_that_grows_beyond_the_original_length(case: str) -> None:
    """Logits of 48 tokens, three times the original length of a scaled rope, read in pieces and at once."""
    config = compose_run([*SIZE, *CASES[case]]).config
    net = ModelBuilder(config, 41).model().double().eval()
    if net.model.rotates_cached_keys:
        # The angles of all keys grow with the text.  Above the first layer, what is cached was computed from states of
        # the shorter text and its angles, as in transformers, so that one layer alone can equal a pass over all.
        config = compose_run([*SIZE, *CASES[case], "model.n_layers=1"]).config
        net = ModelBuilder(config, 41).model().double().eval()
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        p += 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    rows = torch.randint(0, 41, (2, 48), generator=generator)
    cache, at = KVCache(), 0
    for size in (7, 1, 9, 1, 20, 1, 1, 8):
        at += size
        piece = net(rows[:, at - size : at], cache=cache)
        torch.testing.assert_close(piece[:, -1], net(rows[:, :at])[:, -1], rtol=1e-8, atol=1e-8)
