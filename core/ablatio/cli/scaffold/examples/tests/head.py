import torch

from ablatio import heads


def test_it_is_the_inverse_of_sinh_and_keeps_the_order():
    head = heads.build("asinh", {"unit": 2.0})
    logits = torch.linspace(-50, 50, 101, dtype=torch.float64)
    torch.testing.assert_close(2 * torch.sinh(head(logits) / 2), logits)
    assert (head(logits).diff() > 0).all()
