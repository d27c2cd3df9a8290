import torch
from torch import nn

from ablatio import placements


def test_half_of_the_update_is_added():
    x = torch.linspace(-1, 1, 8).view(1, 2, 4)
    y = placements.build("damped", {"scale": 0.5})(x, lambda h: 2 * h + 1, nn.Identity())
    torch.testing.assert_close(y, 2 * x + 0.5)
