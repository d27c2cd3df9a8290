"""Constants of deepnorm and subln against their papers' tables, and the weights that they scale."""

import math

import pytest
import torch
from helpers.support import model_config

from ablatio.model.build import build_model
from ablatio.registry.kinds import placements

V, D, LAYERS = 11, 32, 3
GAINED = ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def made(name, layers, side="decoder", encoder=0, decoder=None):
    return placements.build(
        name, {}, d_model=6, n_layers=layers, layer=0, sublayer=0, around="attention", side=side,
        encoder_layers=encoder, decoder_layers=layers if decoder is None else decoder,
    )  # fmt: skip


@pytest.mark.oracle("placement=deepnorm", "the paper's table of constants")
@pytest.mark.parametrize("layers", [1, 2, 6, 12, 18, 50, 100, 200, 1000])
def test_deepnorm_has_the_constants_of_its_table(layers):
    """arXiv:2203.00555, figure 2: decoder-only and encoder-only, and both sides of an encoder-decoder."""
    part = made("deepnorm", layers)
    assert math.isclose(part.alpha**4, 2 * layers) and math.isclose(part.gain**-4, 8 * layers)
    assert math.isclose(part.alpha * part.gain, 4**-0.25)  # whatever the depth
    alone = made("deepnorm", layers, side="encoder", encoder=layers, decoder=0)
    assert (alone.alpha, alone.gain) == (part.alpha, part.gain)
    n, m = layers, layers + 5
    encoder = made("deepnorm", n, side="encoder", encoder=n, decoder=m)
    assert math.isclose((encoder.alpha / 0.81) ** 16, n**4 * m) and math.isclose((0.87 / encoder.gain) ** 16, n**4 * m)
    decoder = made("deepnorm", m, side="decoder", encoder=n, decoder=m)
    assert math.isclose(decoder.alpha**4, 3 * m) and math.isclose(decoder.gain**-4, 12 * m)


@pytest.mark.oracle("placement=subln", "the paper's table of gains")
@pytest.mark.parametrize("layers", [1, 2, 6, 12, 100])
def test_subln_has_the_gains_of_its_table(layers):
    """arXiv:2210.06423, figure 2."""
    assert math.isclose(math.exp(made("subln", layers).gain ** 2), 2 * layers)
    assert made("subln", layers, side="encoder", encoder=layers, decoder=0).gain == made("subln", layers).gain
    n, m = layers, layers + 5
    encoder, decoder = (made("subln", n, side=s, encoder=n, decoder=m).gain for s in ("encoder", "decoder"))
    assert math.isclose(math.exp(decoder**2), 3 * m)
    assert math.isclose(3 * encoder**2, math.log(3 * m) * math.log(2 * n))


GAINS = {
    "deepnorm": {
        ("causal", "model"): (8 * LAYERS) ** -0.25,
        ("encoder", "model"): (8 * LAYERS) ** -0.25,
        ("encoder_decoder", "encoder"): 0.87 * (2**4 * LAYERS) ** (-1 / 16),
        ("encoder_decoder", "model"): (12 * LAYERS) ** -0.25,
    },
    "subln": {
        ("causal", "model"): math.log(2 * LAYERS) ** 0.5,
        ("encoder", "model"): math.log(2 * LAYERS) ** 0.5,
        ("encoder_decoder", "encoder"): (math.log(3 * LAYERS) * math.log(2 * 2) / 3) ** 0.5,
        ("encoder_decoder", "model"): math.log(3 * LAYERS) ** 0.5,
    },
}


@pytest.mark.parametrize("name", GAINS)
@pytest.mark.parametrize("architecture", ["causal", "encoder", "encoder_decoder"])
def test_gain_scales_value_output_and_feed_forward(name, architecture):
    """An encoder of 2 layers and a decoder of 3: each side has its own gain; queries and keys have none."""

    def weights(placement):
        config = model_config(placement=placement, architecture=architecture, n_layers=LAYERS, d_model=D)
        config["model"] |= {"encoder_layers": 2}
        return dict(build_model(config, V).named_parameters())

    plain, scaled = weights("post"), weights(name)
    seen = set()
    for key, weight in plain.items():
        parent = key.split(".")[-2]
        gain = GAINS[name][architecture, key.split(".")[0]] if parent in GAINED else 1.0
        seen.add((parent, "cross" in key))
        torch.testing.assert_close(scaled[key], weight * gain, rtol=1e-6, atol=0)
    assert ("v_proj", architecture == "encoder_decoder") in seen and ("q_proj", False) in seen
