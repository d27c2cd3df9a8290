"""Stacks whose layers have different parts keep what a homogeneous stack keeps."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from ablatio.config import schema
from ablatio.config.compose import compose_run
from ablatio.errors import ConfigError
from ablatio.model.builder import ModelBuilder
from ablatio.model.cost.parameters import measure
from ablatio.model.kv_cache import KVCache
from ablatio.model.language_model import LanguageModel
from ablatio.registry import per_layer
from ablatio.registry.registry import REGISTRIES

V, T, SIZE = 41, 18, ["model.d_model=32", "model.n_heads=4", "model.n_layers=4", "model.max_len=32"]
STACKS = {
    "linear and full": ["layers.attention=[gated_deltanet*3,mha]"],
    "local and global": ["layers.attention=[{sliding*3: {window: 4}},mqa]", "layers.position=[rope*3,none]"],
    "experts, no first attention": ["layers.at.attention={0: none}", "layers.at.mlp={1: moe, -1: moe}"],
    "everything": [
        "layers.norm=[layernorm,rmsnorm]", "layers.activation=[gelu,swiglu]", "layers.placement=[pre,sandwich]",
        "layers.block=[parallel,sequential]", "layers.position=[alibi,{rope: {base: 500}},none]",
    ],
    "positions that rotate cached keys": ["layers.position=[{rope: {scaling: dynamic, original_max_len: 8}},alibi]"],
    "no attention": ["attention=none"],
    "no feed-forward": ["mlp=none"],
    "macaron without some": ["block=macaron", "layers.at.mlp={1: none}", "layers.at.attention={2: none}"],
    "two feed-forward parts with a state in a layer": ["block=macaron", "mlp=canon"],
    "a skip over positions": ["block=unet", "layers.position=[rope,alibi]"],
    "values of the first layer": ["attention=value_residual", "layers.position=[rope,none]"],
}  # fmt: skip


def config(*overrides: str) -> dict[str, Any]:
    return compose_run([*SIZE, *overrides]).config


def model(made: dict[str, Any]) -> LanguageModel:
    net: LanguageModel = ModelBuilder(made, V).model().double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():  # off their start, where gates and skips may hide a fault
            p += 0.02 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return net


def tokens() -> Tensor:
    return torch.randint(0, V, (2, T), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def check(made: dict[str, Any]) -> None:
    """Causality, cache equals full forward, packed equals separate, counts."""
    net, x = model(made), tokens()
    full, other = net(x), x.clone()
    other[:, 11:] = (other[:, 11:] + 1) % V
    torch.testing.assert_close(net(other)[:, :11], full[:, :11], rtol=0, atol=1e-10)
    facts = [part.facts for part, _ in schema.chosen(made) if part.kind == "attention"]
    if all(f["caches"] for f in facts):
        cache, first = KVCache(), T if net.model.rotates_cached_keys else 5  # their angles grow with the text
        steps = [net(x[:, :first], None, cache), *(net(x[:, i : i + 1], None, cache) for i in range(first, T))]
        torch.testing.assert_close(torch.cat(steps, dim=1), full, rtol=0, atol=1e-9)
    if all(f["takes_segments"] for f in facts):
        segments = (torch.arange(T) >= 7).long().expand(2, T)
        packed = net(x, segments)
        torch.testing.assert_close(packed[:, 7:], net(x[:, 7:]), rtol=0, atol=1e-9)
        torch.testing.assert_close(packed[:, :7], net(x[:, :7]), rtol=0, atol=1e-9)
    assert measure(made, V).parameters == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", STACKS)
def test_mixed_stack(name: str) -> None:
    check(config(*STACKS[name]))


def test_a_layer_is_that_of_a_homogeneous_model() -> None:
    """Layer 3 of [sliding*3, mha] has the weights, by name and value, of layer 3 where all layers are mha."""
    mixed = ModelBuilder(config("layers.attention=[sliding*3,gqa]", "layers.at.mlp={0: none}"), V, seed=5).model()
    whole = ModelBuilder(config("attention=gqa"), V, seed=5).model()
    ours, theirs = mixed.state_dict(), whole.state_dict()
    last = [n for n in theirs if n.startswith("model.layers.3.")]
    assert last and all(torch.equal(ours[n], theirs[n]) for n in last)
    assert not [n for n in ours if n.startswith("model.layers.0.mlp")]
    assert not [n for n in ours if n.startswith("model.layers.0.post_attention")]


def test_a_list_of_the_run_s_own_option_changes_nothing() -> None:
    plain, listed = config(), config("layers.attention=[mha*2]", "layers.norm=[rmsnorm]", "layers.at.mlp={1: dense}")
    a, b = (ModelBuilder(c, V).model() for c in (plain, listed))
    assert [*a.state_dict()] == [*b.state_dict()]
    assert torch.equal(a(tokens()), b(tokens()))


def test_gain_of_the_placement_of_each_layer() -> None:
    """deepnorm's beta scales the matrices of the layers that have deepnorm, and no others."""
    mixed = ModelBuilder(config("placement=deepnorm", "layers.placement=[deepnorm,pre]"), V).model().state_dict()
    plain = ModelBuilder(config(), V).model().state_dict()
    beta = (8 * 4) ** -0.25
    for layer, factor in enumerate((beta, 1.0, beta, 1.0)):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        torch.testing.assert_close(mixed[name], factor * plain[name])


def drawn(seed: int) -> list[str]:
    """Random lists of two kinds, and a single layer of a third, as overrides."""
    draw = random.Random(seed)
    kinds = draw.sample([registry.kind for registry in per_layer.kinds() if registry.scope == "model"], 3)
    options = {kind: [e.name for e in REGISTRIES[kind] if "embed" not in e.facts.get("uses", ())] for kind in kinds}
    lists = [f"layers.{k}=[{','.join(draw.choices(options[k], k=draw.randint(1, 4)))}]" for k in kinds[:2]]
    return [*lists, f"layers.at.{kinds[2]}={{{draw.randint(-4, 3)}: {draw.choice(options[kinds[2]])}}}"]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(300))
def test_random_lists(seed: int) -> None:
    """A random list is refused before a tensor, naming the layer or the kind, or keeps all properties."""
    overrides, tries = drawn(seed), 0
    while True:
        try:
            made = config(*overrides)
            break
        except ConfigError as error:
            assert "layer" in str(error)
            tries += 1
            if tries == 30:
                return
            overrides = drawn(seed + 1000 * tries)
    check(made)
