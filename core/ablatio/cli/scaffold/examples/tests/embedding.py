import torch

from ablatio import embeddings


def test_gains_start_at_one():
    part, x = embeddings.build("gained", d_model=8), torch.randn(2, 3, 8)
    torch.testing.assert_close(part(x, torch.zeros(2, 3, dtype=torch.long), None), x)
