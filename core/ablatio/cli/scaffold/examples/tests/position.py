import torch

from ablatio import positions


def test_bias_is_the_distance_times_the_slope():
    bias = positions.build("decay", {"slope": 0.5}, n_heads=2).bias(torch.arange(3), torch.arange(3))
    torch.testing.assert_close(bias[0], -0.5 * torch.tensor([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]]))
    assert bias.shape == (2, 3, 3) and torch.equal(bias[0], bias[1])
