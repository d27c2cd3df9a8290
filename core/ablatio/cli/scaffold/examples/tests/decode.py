import torch

from ablatio import decodes


def test_unlikely_tokens_are_excluded():
    part = decodes.build("epsilon", {"least": 0.15})
    kept = part.truncated(torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]).log()).isfinite()
    assert kept.tolist() == [[True, True, False], [True, True, True]]
