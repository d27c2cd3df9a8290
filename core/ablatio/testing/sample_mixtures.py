"""Pools of sample texts for mixtures, and proxies whose losses are given by a formula."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ablatio.data.mixtures import Pool
from ablatio.testing import sample_texts

NAMES = ("law", "people", "web")


def pools() -> list[Pool]:
    """Three sources of different sizes and words; the held-out text of each is like its training text."""
    made = []
    for number, name in enumerate(NAMES):
        texts = [f"{name} {sample_texts.prose(100 * number + i, 3 + i % 3)} {name} of {name}." for i in range(6)]
        made.append(Pool(name, 1000 * 4**number, texts, [f"{name} of the {name}. {texts[0][:200]}"]))
    return made


class SampleProxies:
    """Stands for ablatio.training.proxies.Proxies: a proxy is a vector, and each source pulls it to a point."""

    names = NAMES

    def start(self, *, width: int, layers: int, steps: int, lr: float, seed: int) -> "SampleProxy":
        """A proxy whose start depends on all of these."""
        return SampleProxy(width, layers, steps, lr, seed)


class SampleProxy:
    """theta in R^3; the loss of source i is |theta - e_i|^2 / (1 + i), and a little more with fewer rows."""

    def __init__(self, width: int, layers: int, steps: int, lr: float, seed: int) -> None:
        start = [math.sin(1 + seed + i) * (1 + 1 / width + 0.1 / layers) for i in range(3)]
        self.theta, self.lr, self.steps = torch.tensor(start, dtype=torch.float64, requires_grad=True), lr, steps

    def rows(self, name: str, count: int) -> tuple[int, int]:
        """Stands for an example: (number of the source, number of rows)."""
        return NAMES.index(name), count

    def loss(self, example: tuple[int, int]) -> Tensor:
        """Loss of the rows, with its graph."""
        source, count = example
        point = torch.eye(3, dtype=torch.float64)[source]
        return (self.theta - point).square().sum() / (1 + source) * (1 + 0.1 / count)

    def token_losses(self, example: tuple[int, int]) -> Tensor:
        """The same for one token of each row: (B, 1)."""
        return self.loss(example).detach().expand(example[1], 1)

    def update(self, loss: Tensor, step: int) -> None:
        """A step of gradient descent."""
        (gradient,) = torch.autograd.grad(loss, self.theta)
        self.theta = (self.theta - 10 * self.lr * gradient).detach().requires_grad_()

    def train(self, shares: Mapping[str, float], batch: int) -> "SampleProxy":
        """Descend on the losses of the sources, weighted by their shares."""
        for step in range(min(self.steps, 50)):
            losses: Any = [share * self.loss(self.rows(name, batch)) for name, share in shares.items() if share > 0]
            self.update(torch.stack(losses).sum(), step)
        return self

    def held_out(self) -> dict[str, float]:
        """Loss of each source."""
        return {name: float(self.loss(self.rows(name, 4)).detach()) for name in NAMES}
