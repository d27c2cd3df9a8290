"""Stacks whose layers have different parts keep what a homogeneous stack keeps."""

from typing import Any

import pytest
import torch
from helpers.mixed_stacks import STACKS
from helpers.random_stacks import SIZE, random_stack
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ablatio.config import schema
from ablatio.config.compose import compose_run
from ablatio.model.builder import ModelBuilder
from ablatio.model.cost.parameters import Hidden, measure
from ablatio.model.kv_cache import KVCache
from ablatio.model.language_model import LanguageModel
from ablatio_std.mlps.experts import BLOCK, Experts

V, T = 41, 18
STACKED = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")  # of experts: (E, out, in)


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


def counted_flops(net: LanguageModel, length: int) -> int:
    """FLOPs that torch counts on a real pass over one row, without the pairs that a pattern hides.

    As in training, where a router that looks at later tokens takes a fixed number of them; without the rows that pad
    those of an expert.  The fused kernel's products are opaque to the counter on a CPU; those of the plain one are not.
    """
    net.train()
    padding = [0]

    def pad(experts: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows = -inputs[1].flatten().bincount() % BLOCK
        padding[0] += 2 * int(rows.sum()) * sum(p[0].numel() for n, p in experts.named_parameters() if n in STACKED)

    for module in net.modules():
        if isinstance(module, Experts):
            module.register_forward_hook(pad)
    with Hidden(net) as hidden, FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(torch.ones(1, length, dtype=torch.long))
    return int(counter.get_total_flops()) - hidden.flops - padding[0]


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
    size, length = measure(made, V), made["model"]["max_len"]
    assert size.parameters == sum(p.numel() for p in net.parameters())
    assert size.flops_per_token == counted_flops(net, length) / length


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


@pytest.mark.matrix(share=30)
@pytest.mark.parametrize("seed", range(300))
def test_random_lists(seed: int) -> None:
    """A random list is refused before a tensor, naming the layer or the kind, or keeps all properties."""
    if (made := random_stack(seed)) is not None:
        check(made)
