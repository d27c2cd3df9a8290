import torch

from ablatio import pefts


def test_only_one_gain_per_output_is_trained():
    model = torch.nn.Sequential()
    model.add_module("q_proj", torch.nn.Linear(3, 5))
    pefts.build("output_gain", {"targets": ["q_proj"]}).apply(model, 0)
    assert [tuple(p.shape) for p in model.parameters() if p.requires_grad] == [(5,)]
