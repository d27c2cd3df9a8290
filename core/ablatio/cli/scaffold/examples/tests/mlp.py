import torch

from ablatio import mlps


def test_twice_the_input_gives_four_times_the_output():
    mlp = mlps.build("squared", d_model=8, d_ff=16)
    x = torch.linspace(-1, 1, 16).view(1, 2, 8)
    torch.testing.assert_close(mlp(2 * x, None), 4 * mlp(x, None))
