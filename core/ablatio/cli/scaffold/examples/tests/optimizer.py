import torch

from ablatio import optimizers


def test_the_first_step_has_a_known_size():
    weight = torch.nn.Parameter(torch.tensor([1.0, -3.0]))
    group = {"params": [weight], "role": "vector", "rate": 1.0}
    optimizer = optimizers.build("rmsprop", {"lr": 0.1, "alpha": 0.75, "eps": 1e-12}, groups=[group])
    weight.square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.8, -2.8]))  # lr / sqrt(1 - alpha) = 0.2
