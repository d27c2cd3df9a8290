"""Averages of the weights along a run: scored and saved (SWA, LAWA), or where the next step looks ahead to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ablatio import Fraction, NonNegative, Positive, Range, Schedulable, rule, stabilizers
from ablatio.model.exchanged_weights import exchanged_weights, move_towards
from ablatio.model.optimizer_step import OptimizerStep

Weights = dict[str, Tensor]


def trained(model: nn.Module) -> Weights:
    """The trainable weights by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@stabilizers.register("swa", paper="arXiv:1803.05407")
class Swa:
    """a <- a + (w - a) / n: the mean of the weights of every `every`-th step after the share `start` of the run.

    The mean is evaluated and saved, w trains.  In the paper (stochastic weight averaging) the learning rate is then
    constant or cyclic: schedule=constant or schedule=cyclic.
    """

    def __init__(
        self,
        *,
        start: Annotated[float, Fraction, "share of the run without averaging"] = 0.75,
        every: Annotated[int, Positive, "steps between the averaged weights"] = 1,
    ) -> None:
        self.start, self.every, self.count, self.mean = start, every, 0, Weights()

    @torch.no_grad()
    def after_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        since = step.index + 1 - self.start * step.total
        if since <= 0 or (step.index + 1) % self.every:
            return {}
        weights, self.count = trained(step.model), self.count + 1
        if self.count == 1:
            self.mean = {name: w.clone() for name, w in weights.items()}
        else:
            move_towards(self.mean, weights, 1 / self.count)
        return {}

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[None]:
        with exchanged_weights(model, self.mean):
            yield

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": dict(self.mean)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean = int(state["count"]), {name: t.clone() for name, t in state["mean"].items()}


@stabilizers.register("lawa", paper="arXiv:2209.14981")
class Lawa:
    """a = (w_t + w_{t-s} + ... + w_{t-(k-1)s}) / k: the mean of the last k = `count` weights, s = `every` steps apart.

    The mean is evaluated and saved, w trains (latest weight averaging).  State: k copies of the weights.
    """

    def __init__(
        self,
        *,
        count: Annotated[int, Range(1, 100), "number of latest weights that are averaged"] = 5,
        every: Annotated[int, Positive, "steps between them"] = 10,
    ) -> None:
        self.count, self.every, self.latest = count, every, list[Weights]()

    def after_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        if (step.index + 1) % self.every == 0:
            taken = {name: w.clone() for name, w in trained(step.model).items()}
            self.latest = [*self.latest, taken][-self.count :]
        return {}

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[None]:
        # Before the first weights are kept, the model's own are evaluated.
        names = self.latest[-1] if self.latest else ()
        mean = {name: torch.stack([held[name] for held in self.latest]).mean(0) for name in names}
        with exchanged_weights(model, mean):
            yield

    def state_dict(self) -> dict[str, Any]:
        return {"latest": [dict(held) for held in self.latest]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.latest = [dict(held) for held in state["latest"]]


@stabilizers.register("ema_nesterov", paper="arXiv:2605.25395")
class EmaNesterov:
    """x' = A(x + b m), m' = decay m + (1 - decay) (x' - x): a step A of any optimizer, from a point ahead of x.

    m is the mean direction of the past steps; gradients are computed at x + b m, where Nesterov's method looks along
    the last step alone.  b = lookahead lr / max lr between the shares `start` and `end` of the run, and 0 before and
    after.  x is evaluated and saved.  State: two copies of the weights.
    """

    def __init__(
        self,
        *,
        lookahead: Annotated[float, NonNegative, Schedulable(), "largest b"] = 0.3,
        decay: Annotated[float, Range(0, 1, open_high=True), Schedulable()] = 0.99,
        start: Annotated[float, Fraction, "share of the run before it looks ahead"] = 0.1,
        end: Annotated[float, Fraction, "share of the run after which it no longer does"] = 0.7,
    ) -> None:
        self.lookahead, self.decay, self.start, self.end = lookahead, decay, start, end
        self.highest, self.held, self.direction = 0.0, Weights(), Weights()

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        if not self.held:
            self.held = {name: w.clone() for name, w in trained(step.model).items()}
            self.direction = {name: torch.zeros_like(w) for name, w in self.held.items()}
        return {}

    @torch.no_grad()
    def after_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        # Relative to the largest rate so far: the step ahead shrinks with the steps, as the schedule falls.
        rate = float(step.optimizer.param_groups[0]["lr"])
        self.highest = max(self.highest, rate)
        ahead = self.start * step.total <= step.index + 1 < self.end * step.total
        b = self.lookahead * rate / self.highest if ahead and self.highest else 0.0
        for name, w in trained(step.model).items():
            held, direction = self.held[name], self.direction[name]
            # `held` is x of the last step, without the step ahead: the direction is that of x alone.
            direction.lerp_(w - held, 1 - self.decay)
            # x is kept before the model's weights move ahead of it.
            held.copy_(w)
            w.add_(direction, alpha=b)
        return {}

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[None]:
        with exchanged_weights(model, self.held):
            yield

    def state_dict(self) -> dict[str, Any]:
        return {"highest": self.highest, "held": dict(self.held), "direction": dict(self.direction)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.highest = float(state["highest"])
        self.held, self.direction = ({n: t.clone() for n, t in state[k].items()} for k in ("held", "direction"))


for _name in ("swa", "lawa", "ema_nesterov"):
    for _other in ("ema", "outer", "swa", "lawa", "ema_nesterov"):
        if _other != _name:
            rule(
                when=f"'{_name}' in stabilizer and '{_other}' in stabilizer",
                why=f"stabilizer={_name} and stabilizer={_other} both choose the weights that are evaluated and saved",
                fix=f"stabilizer=[clip,{_name}]",
                where="stabilizer",
            )
rule(
    when="'ema_nesterov' in stabilizer and optimizer.name == 'schedule_free'",
    why="stabilizer=ema_nesterov moves the weights between steps, and schedule_free derives them from its own two "
    "sequences",
    fix="optimizer=adamw",
    where="stabilizer",
)
rule(
    when="stabilizer.ema_nesterov.start >= stabilizer.ema_nesterov.end",
    why="stabilizer.ema_nesterov looks ahead from the share start={stabilizer.ema_nesterov.start} of the run to "
    "end={stabilizer.ema_nesterov.end}",
    fix="stabilizer.ema_nesterov.start=0.0",
    where="stabilizer",
)
