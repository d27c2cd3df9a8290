import torch

from ablatio import quantizations


def test_weights_are_off_by_half_a_code_at_most():
    part, weight = quantizations.build("row_int8"), torch.linspace(-1, 2, 12).view(3, 4)
    held = part.encode(weight)
    assert held["codes"].dtype is torch.int8
    assert ((part.decode(held, 4) - weight).abs() <= held["scales"] / 2 + 1e-6).all()
