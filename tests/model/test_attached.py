"""Kinds that attach to the model: one for each place, with parts that nobody knew before."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.support import model_config
from torch import Tensor, nn

from ablatio.model.build import build_model
from ablatio.model.builder import ModelBuilder
from ablatio.model.kv_cache import KVCache
from ablatio.registry.registry import REGISTRIES, ContractError, Registry

TOKENS = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
PLACES = {
    "embedding": ["model.embedded.{}"],
    "sublayer": [f"model.layers.{i}.{name}.{{}}" for i in range(2) for name in ("self_attn", "mlp")],
    "layer": ["model.layers.0.{}", "model.layers.1.{}"],
    "hidden": ["model.{}"],
}


class Scale(nn.Module):
    """y = w x, w a matrix that the init fills.  (..., d_model) -> same."""

    def __init__(self, d_model: int, layer: int | None, sublayer: str) -> None:
        super().__init__()
        self.where = layer, sublayer
        self.mix = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(x)
        return mixed


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """A place, at which the kind `extra` attaches."""
    before = dict(REGISTRIES)
    extras: Registry[Any] = Registry(
        "extra", "for tests", wiring=("d_model", "layer", "sublayer"), methods=("forward",), scope="model",
        attaches=request.param, optional=True,
    )  # fmt: skip
    extras.register("scale", paper="doi:10.0/0")(Scale)
    yield request.param
    REGISTRIES.clear()
    REGISTRIES.update(before)


def config(**parts: Any) -> dict[str, Any]:
    extra = parts.pop("extra", {"name": "scale"})
    return model_config(**parts) | {"extra": extra}


def test_it_stands_where_its_kind_says(place: str) -> None:
    model = build_model(config(), 64)
    found = {path: m for path, m in model.named_modules() if isinstance(m, Scale)}
    assert list(found) == [path.format("extra") for path in PLACES[place]]
    if place == "sublayer":
        assert [m.where for m in found.values()] == [(i, name) for i in range(2) for name in ("attention", "mlp")]
    else:
        assert [m.where[0] for m in found.values()] == ([0, 1] if place == "layer" else [None])


def test_what_stood_there_keeps_its_weights_and_output(place: str) -> None:
    """With the identity in it the model is the plain one; all other weights start as they do there."""
    model, plain = build_model(config(), 64, seed=3).eval(), build_model(config(extra=None), 64, seed=3).eval()
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    assert not torch.equal(model(TOKENS), plain(TOKENS))
    for m in model.modules():
        if isinstance(m, Scale):
            nn.init.eye_(m.mix.weight)
    assert torch.equal(model(TOKENS), plain(TOKENS))


def test_it_costs_nothing_where_it_is_not_chosen(place: str) -> None:
    plain = build_model(config(extra=None), 64)
    assert not any(m._forward_hooks for m in plain.modules())
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in build_model(model_config(), 64).named_modules()]


def test_its_weights_are_initialized_by_their_own_names(place: str) -> None:
    one, two = (build_model(config(**parts), 64, seed=1) for parts in ({}, {"norm": "layernorm"}))
    weights = [[m.mix.weight for m in model.modules() if isinstance(m, Scale)] for model in (one, two)]
    assert all(map(torch.equal, *weights)) and float(weights[0][0].detach().std()) == pytest.approx(0.02, rel=0.1)
    if len(weights[0]) > 1:
        assert not torch.equal(weights[0][0], weights[0][1])


def test_a_copy_runs_its_own_part(place: str) -> None:
    model = build_model(config(), 64).eval()
    before, other = model(TOKENS), copy.deepcopy(model)
    for m in model.modules():
        if isinstance(m, Scale):
            nn.init.zeros_(m.mix.weight)
    assert torch.equal(other(TOKENS), before) and not torch.equal(model(TOKENS), before)


@torch.no_grad()
@pytest.mark.parametrize("parts", [{}, {"block": "parallel"}, {"placement": "hyper_connections"}], ids=str)
def test_decoding_goes_through_it(place: str, parts: dict[str, Any]) -> None:
    model, cache = build_model(config(**parts), 64).eval(), KVCache()
    steps = [model(TOKENS[:, i : i + 1], None, cache) for i in range(TOKENS.shape[1])]
    torch.testing.assert_close(torch.cat(steps, 1), model(TOKENS), rtol=1e-4, atol=1e-5)


def test_shared_layers_share_it(place: str) -> None:
    model = build_model(config(distinct_layers=1, n_layers=2), 64)
    weights = {m.mix.weight for m in model.modules() if isinstance(m, Scale)}
    assert len(weights) == (2 if place == "sublayer" else 1)


def test_a_name_that_the_module_has_is_refused() -> None:
    before = dict(REGISTRIES)
    try:
        taken: Registry[Any] = Registry(
            "layers", "x", wiring=("d_model", "layer", "sublayer"), scope="model", attaches="hidden", optional=True
        )
        taken.register("scale")(Scale)
        with pytest.raises(ContractError, match="Stack has an attribute `layers` already"):
            ModelBuilder(model_config() | {"layers": {"name": "scale"}}, 64).model()
    finally:
        REGISTRIES.clear()
        REGISTRIES.update(before)
