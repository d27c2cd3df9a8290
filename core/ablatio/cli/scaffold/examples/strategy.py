import torch
from torch import Tensor

from ablatio import strategies
from ablatio.model.strategy import Strategy


@strategies.register("summed", paper="arXiv:1802.05799")
class Summed(Strategy):
    """g = sum over ranks of their gradients, one parameter after another, after the last backward pass of a step."""

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()
        if last:
            for p in self.step_module.parameters():
                if p.requires_grad:
                    p.grad = self.ranks.total(torch.zeros_like(p) if p.grad is None else p.grad)
