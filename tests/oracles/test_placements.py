"""Placements by hand, and deepnorm's constants against its paper's table."""

import math

import pytest
import torch
from support import model_config

from ablatio.kinds import placements
from ablatio.model.assembly import build_model

NORM = torch.nn.LayerNorm(6, dtype=torch.float64)
LINEAR = torch.nn.Linear(6, 6, dtype=torch.float64)


def made(name, n_layers=8):
    return placements.build(
        name,
        {},
        d_model=6,
        n_layers=n_layers,
        layer=0,
        sublayer=0,
        side="decoder",
        encoder_layers=0,
        decoder_layers=n_layers,
    )


def test_formulas():
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    assert torch.equal(made("pre")(x, LINEAR, NORM), x + LINEAR(NORM(x)))
    assert torch.equal(made("post")(x, LINEAR, NORM), NORM(x + LINEAR(x)))
    assert torch.equal(made("deepnorm")(x, LINEAR, NORM), NORM(2.0 * x + LINEAR(x)))  # (2 * 8)^(1/4) = 2


@pytest.mark.parametrize("layers", [1, 2, 6, 12, 18, 50, 100, 200, 1000])
def test_deepnorm_has_the_constants_of_a_decoder(layers):
    """arXiv:2203.00555, figure 2, decoder-only: alpha = (2M)^(1/4), beta = (8M)^(-1/4)."""
    part = made("deepnorm", layers)
    assert math.isclose(part.alpha**4, 2 * layers) and math.isclose(part.gain**-4, 8 * layers)
    assert math.isclose(part.alpha * part.gain, 4**-0.25)  # whatever the depth


def test_only_the_pre_norm_stack_ends_with_a_norm():
    for name, expected in [("pre", True), ("post", False), ("deepnorm", False)]:
        assert (build_model(model_config(placement=name), 11).model.norm is not None) == expected


def test_deepnorm_scales_value_output_and_feed_forward():
    plain = dict(build_model(model_config(placement="post"), 11).named_parameters())
    deep = dict(build_model(model_config(placement="deepnorm"), 11).named_parameters())
    beta = (8 * 2) ** -0.25
    for name, weight in deep.items():
        scaled = any(p in name for p in ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
        torch.testing.assert_close(weight, plain[name] * (beta if scaled else 1.0), rtol=1e-6, atol=0)
