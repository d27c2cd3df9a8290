"""Inits: fill one weight in place, using the generator that they receive."""

import itertools

import torch
from torch import Tensor

from ablatio.model.parameter_roles import ParameterInfo, named_generator
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts, tiny_models

KINDS = ("init",)
SHAPES = {"matrix": (96, 32), "embedding": (64, 32), "head": (64, 32)}


def _info(role: str, name: str = "model.layers.0.mlp.up_proj.weight", residual: bool = False) -> ParameterInfo:
    fan_out, fan_in = SHAPES[role]
    return ParameterInfo(name, role, fan_in, fan_out, 4, residual, 1.0, 0, 32)  # type: ignore[arg-type]


def _draw(part: PartSpec, info: ParameterInfo, seed: int = 0) -> Tensor:
    weight = torch.full(SHAPES[info.role], float("nan"))
    came = sample_parts.made(part)(weight, info, named_generator(seed, info.name))
    assert came is None or came is weight, f"{checks.label(part)}: gives a new tensor; the weight is filled in place"
    return weight


def test_fills_the_whole_weight(part: PartSpec) -> None:
    for role, residual in itertools.product(SHAPES, (False, True)):
        with checks.draws_nothing(part, "although it receives a generator"):
            weight = _draw(part, _info(role, residual=residual))
        checks.finite(part, weight, f"for a {role} (the weight was filled with NaN; every element must be written)")


def test_scale_is_sane(part: PartSpec) -> None:
    """An all-zero matrix blocks the signal, and a gain of 30 makes it explode."""
    for role in ("matrix", "embedding"):
        size = float(_draw(part, _info(role)).square().mean().sqrt())
        assert 1e-5 < size < 5, f"{checks.label(part)}: the root mean square of a {role} is {size:.3g}, not 1e-5 ... 5"


def test_follows_the_generator(part: PartSpec) -> None:
    for role in SHAPES:
        same = torch.equal(_draw(part, _info(role), seed=1), _draw(part, _info(role), seed=1))
        assert same, f"{checks.label(part)}: equal generators give different weights for a {role}"
    a, b = (_draw(part, _info("matrix"), seed=s) for s in (1, 2))
    assert not torch.equal(a, b), f"{checks.label(part)}: different generators give equal weights"


def test_names_draw_for_themselves(part: PartSpec) -> None:
    """Weights are drawn by parameter name: layers differ, and a deeper model keeps the weights of shared names."""
    shallow, deep = (dict(tiny_models.model(part, n_layers=n).named_parameters()) for n in (2, 3))
    first = {n: p for n, p in shallow.items() if ".layers.0." in n and p.dim() > 1 and p.any()}
    assert first, f"{checks.label(part)}: all matrices of the first layer start at zero"
    for name, weight in first.items():
        other = shallow[name.replace(".layers.0.", ".layers.1.")]
        assert not torch.equal(weight, other), f"{checks.label(part)}: layers 0 and 1 start with the same {name}"
        ratio = (weight / deep[name])[weight != 0]  # a depth-dependent scale is one factor
        spread = float((ratio.max() / ratio.min()).detach())
        assert spread < 1.001, f"{checks.label(part)}: {name} is drawn differently in a model with another layer"
