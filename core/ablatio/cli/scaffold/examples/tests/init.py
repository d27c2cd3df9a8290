import torch

from ablatio import inits


def test_weights_fill_the_interval():
    weight = torch.empty(50, 50)
    inits.build("flat", {"bound": 0.5})(weight, None, torch.Generator().manual_seed(0))
    assert weight.abs().max() <= 0.5 and weight.min() < -0.49 and weight.max() > 0.49
