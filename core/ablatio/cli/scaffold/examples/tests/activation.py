import torch

from ablatio import activations


def test_value_and_bound():
    softsign = activations.build("softsign", {"width": 2.0})
    torch.testing.assert_close(softsign(torch.tensor([2.0, -2.0, 0.0])), torch.tensor([0.5, -0.5, 0.0]))
    assert softsign(torch.tensor(1e6)) < 1
