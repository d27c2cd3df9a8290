import torch

from ablatio import alignments


def test_loss_is_zero_beyond_the_margin():
    chosen, rejected, lengths = torch.tensor([-4.0, -9.0]), torch.tensor([-12.0, -10.0]), torch.tensor([4, 4])
    loss, _ = alignments.build("margin", {"delta": 1.0}).loss(chosen, rejected, lengths, lengths)
    torch.testing.assert_close(loss, torch.tensor((0 + 0.75) / 2))
