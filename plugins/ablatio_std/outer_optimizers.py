"""Outer optimizers: steps on the movement of the weights over several steps of the inner optimizer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ablatio import Positive, Range, rule, stabilizers
from ablatio.model.optimizer_step import OptimizerStep
from ablatio_std.stabilizers import exchanged_weights


@stabilizers.register("outer", paper="arXiv:2510.15830")
class Outer:
    """Every `every` steps w moved from s to f:  b <- momentum b + (s - f),  s <- s - lr (momentum b + s - f),  w <- s.

    SNOO: Nesterov momentum on the movement of any optimizer; DiLoCo (arXiv:2311.08105) with one worker.  momentum=0 is
    Lookahead (arXiv:1907.08610), with lr=0.5 and every=5 in its paper; nesterov=false steps by b alone.  The slow
    weights s are evaluated and saved.  State: two copies of the weights, one without momentum.
    """

    def __init__(
        self,
        *,
        every: Annotated[int, Positive, "steps of the inner optimizer for each outer step"] = 20,
        lr: Annotated[float, Positive, "outer learning rate; constant over the run"] = 0.7,
        momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.6,
        nesterov: bool = True,
    ) -> None:
        self.every, self.lr, self.momentum, self.nesterov = every, lr, momentum, nesterov
        self.count, self.slow, self.buffer = 0, dict[str, Tensor](), dict[str, Tensor]()

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        if not self.slow:
            self.slow = {name: p.detach().clone() for name, p in step.model.named_parameters() if p.requires_grad}
            self.buffer = {name: torch.zeros_like(p) for name, p in self.slow.items() if self.momentum}
        return {}

    @torch.no_grad()
    def after_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        self.count += 1
        if self.count % self.every:
            return {}
        for name, p in step.model.named_parameters():
            if name in self.slow:
                slow = self.slow[name]
                moved = slow - p
                if name in self.buffer:
                    b = self.buffer[name].mul_(self.momentum).add_(moved)
                    moved = moved.add_(b, alpha=self.momentum) if self.nesterov else b
                slow.sub_(moved, alpha=self.lr)
                p.copy_(slow)
        return {}

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[None]:
        with exchanged_weights(model, self.slow):
            yield

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "slow": dict(self.slow), "buffer": dict(self.buffer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = int(state["count"])
        self.slow, self.buffer = ({n: t.clone() for n, t in state[name].items()} for name in ("slow", "buffer"))


rule(
    when="'outer' in stabilizer and optimizer.name == 'schedule_free'",
    why="stabilizer=outer moves the weights between steps, and schedule_free derives them from its own two sequences",
    fix="optimizer=adamw",
    where="stabilizer",
)
