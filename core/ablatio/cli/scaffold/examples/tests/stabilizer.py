import torch

from ablatio import stabilizers
from ablatio.testing import tiny_models


def test_no_gradient_is_larger_than_the_limit():
    net, clamp = tiny_models.model(), stabilizers.build("clamp", {"limit": 2**-10})
    tiny_models.run(net, torch.optim.SGD(net.parameters(), lr=0.1), 1, hooks=[clamp])
    assert max(float(p.grad.abs().max()) for p in net.parameters() if p.grad is not None) <= 2**-10
