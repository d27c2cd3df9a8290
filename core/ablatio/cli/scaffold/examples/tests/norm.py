import torch

from ablatio import norms


def test_largest_entry_is_one():
    y = norms.build("maxnorm", d_model=8)(torch.linspace(-3, 5, 8))
    torch.testing.assert_close(y.abs().max(), torch.tensor(1.0))
