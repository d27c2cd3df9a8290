"""Inits: fill one matrix in place, from the generator that they are handed."""

import itertools

import torch
from torch import Tensor

from ablatio.model.roles import ParameterInfo, named_generator
from ablatio.registry import Entry
from ablatio.testing import probe, samples, tiny

KINDS = ("init",)
SHAPES = {"matrix": (96, 32), "embedding": (64, 32), "head": (64, 32)}


def _info(role: str, name: str = "model.layers.0.mlp.up_proj.weight", residual: bool = False) -> ParameterInfo:
    fan_out, fan_in = SHAPES[role]
    return ParameterInfo(name, role, fan_in, fan_out, 4, residual, 1.0, 0, 32)  # type: ignore[arg-type]


def _draw(part: Entry, info: ParameterInfo, seed: int = 0) -> Tensor:
    weight = torch.full(SHAPES[info.role], float("nan"))
    came = samples.made(part)(weight, info, named_generator(seed, info.name))
    assert came is None or came is weight, f"{probe.label(part)}: gives a new tensor; the weight is filled in place"
    return weight


def test_fills_the_whole_weight(part: Entry) -> None:
    for role, residual in itertools.product(SHAPES, (False, True)):
        with probe.draws_nothing(part, "although it is handed a generator"):
            weight = _draw(part, _info(role, residual=residual))
        probe.finite(part, weight, f"for a {role} (the weight came full of NaN, every element has to be written)")


def test_scale_is_sane(part: Entry) -> None:
    """A matrix that is all zero stops the signal; one with a gain of 30 blows it up."""
    for role in ("matrix", "embedding"):
        size = float(_draw(part, _info(role)).square().mean().sqrt())
        assert 1e-5 < size < 5, f"{probe.label(part)}: the root mean square of a {role} is {size:.3g}, not 1e-5 ... 5"


def test_follows_the_generator(part: Entry) -> None:
    for role in SHAPES:
        same = torch.equal(_draw(part, _info(role), seed=1), _draw(part, _info(role), seed=1))
        assert same, f"{probe.label(part)}: equal generators give different weights for a {role}"
    a, b = (_draw(part, _info("matrix"), seed=s) for s in (1, 2))
    assert not torch.equal(a, b), f"{probe.label(part)}: different generators give equal weights"


def test_names_draw_for_themselves(part: Entry) -> None:
    """In a model: layers differ, and a deeper model starts with the weights of the shallower one's names."""
    shallow, deep = (dict(tiny.model(part, n_layers=n).named_parameters()) for n in (2, 3))
    first = {n: p for n, p in shallow.items() if ".layers.0." in n and p.dim() > 1 and p.any()}
    assert first, f"{probe.label(part)}: all matrices of the first layer start at zero"
    for name, weight in first.items():
        other = shallow[name.replace(".layers.0.", ".layers.1.")]
        assert not torch.equal(weight, other), f"{probe.label(part)}: layers 0 and 1 start with the same {name}"
        ratio = (weight / deep[name])[weight != 0]  # a depth-dependent scale is one factor
        spread = float((ratio.max() / ratio.min()).detach())
        assert spread < 1.001, f"{probe.label(part)}: {name} is drawn differently in a model with another layer"
