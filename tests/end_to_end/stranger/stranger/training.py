"""What stands in a training: optimizer, schedule, stabilizer, objective, init, logger, design."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from ablatio import Fraction, Positive, designs, inits, loggers, objectives, optimizers, schedules, stabilizers
from ablatio.model.example import Example


class _SignMomentum(torch.optim.Optimizer):
    def __init__(self, groups: list[dict[str, Any]], lr: float, beta: float) -> None:
        super().__init__(groups, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for weight in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["beta"])
                weight.sub_(group["lr"] * momentum.sign())
        return loss


@optimizers.register("sign_momentum", paper="arXiv:1802.04434", decays=False)
def sign_momentum(
    groups: list[dict[str, Any]], *, lr: Annotated[float, Positive] = 1e-3, beta: Annotated[float, Fraction] = 0.9
) -> torch.optim.Optimizer:
    """m <- beta m + (1 - beta) g;  w <- w - lr sign(m)."""
    return _SignMomentum([dict(group) for group in groups], lr, beta)


@schedules.register("root", paper="arXiv:2405.18392")
def root(step: int, total: int, *, power: Annotated[float, Positive] = 0.5) -> float:
    """1 - (step / total)^power."""
    return max(0.0, 1 - (step / total) ** power)


@stabilizers.register("centralize", paper="arXiv:2004.01461")
class Centralize:
    """g <- g - mean of each row of g, for matrices, before each step."""

    metrics = ("train/gradient_mean",)

    def before_step(self, step: Any) -> dict[str, Tensor]:
        matrices = [p.grad for p in step.parameters if p.grad is not None and p.grad.ndim == 2]
        means = [g.mean(-1, keepdim=True) for g in matrices]
        for gradient, mean in zip(matrices, means, strict=True):
            gradient.sub_(mean)
        return {"train/gradient_mean": torch.stack([m.abs().mean() for m in means]).mean()}


@objectives.register("later_tokens", paper="arXiv:2404.07965")
class LaterTokens:
    """Score only targets after the first `skip` share of a row.  (B, T + 1) -> inputs, targets, weights (B, T)."""

    def __init__(self, *, skip: Annotated[float, Fraction] = 0.25) -> None:
        self.skip = skip

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        length = tokens.shape[1] - 1
        counted = (torch.arange(length, device=tokens.device) >= self.skip * length).float().expand(len(tokens), -1)
        return Example(tokens[:, :-1], tokens[:, 1:], counted, None if segments is None else segments[:, :-1])


@inits.register("triangular", paper="https://proceedings.mlr.press/v9/glorot10a.html")
def triangular(
    weight: Tensor, info: Any, generator: torch.Generator, *, width: Annotated[float, Positive] = 0.05
) -> None:
    """w is the sum of two uniform numbers from -width / 2 to width / 2."""
    other = torch.empty_like(weight).uniform_(-width / 2, width / 2, generator=generator)
    weight.uniform_(-width / 2, width / 2, generator=generator).add_(other)


@loggers.register("tsv")
class TabSeparated:
    """metrics.tsv: name, tab, number.  Source: written for a first day."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.tsv"

    def start(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.path.write_text("")
        for row in rows:
            self.log(row)

    def log(self, row: Mapping[str, float]) -> None:
        with self.path.open("a") as file:
            file.writelines(f"{name}\t{value}\n" for name, value in row.items())

    def finish(self, status: str) -> None:
        """Nothing is open."""


@designs.register("corners")
class Corners:
    """Two arms: all axes at their first value, all at their last.  Source: Box, Hunter and Hunter 2005."""

    def __init__(self, axes: Sequence[Any]) -> None:
        self.axes = axes

    def count(self) -> int:
        return 2

    def arms(self) -> Iterator[dict[str, str]]:
        yield {axis.key: axis.values[0] for axis in self.axes}
        yield {axis.key: axis.values[-1] for axis in self.axes}
