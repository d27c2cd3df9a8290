import torch

from ablatio import strategies
from ablatio.model.ranks import Ranks
from ablatio.model.strategy import Pass
from ablatio.testing import tiny_models


class Doubled(Ranks):
    """Two ranks with equal rows."""

    world = 2

    def total(self, value):
        return 2 * value


def test_gradients_of_all_ranks_are_added():
    net, alone = tiny_models.model(), tiny_models.model()
    strategy = strategies.build("summed", ranks=Doubled())
    strategy.place(Pass(net, lambda model, example: model.loss(example)))
    strategy.backward(strategy.loss(tiny_models.example(), last=True).total, last=True)
    alone.loss(tiny_models.example()).total.backward()
    for p, q in zip(net.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad, 2 * q.grad)
