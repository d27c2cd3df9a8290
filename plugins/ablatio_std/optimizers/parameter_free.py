"""Optimizers without a schedule or a learning rate to tune: schedule_free, prodigy."""

from typing import Annotated

import torch
from torch import Tensor

from ablatio import NonNegative, Positive, optimizers, rule
from ablatio.model.parameter_roles import ParameterGroup
from ablatio.registry.knobs import Range
from ablatio_std.optimizers._common import Betas, Decay, Eps, Foreach, Group, Rate, Tensors, denominator

Averaging = Annotated[tuple[float, float], Range(0, 1, open_low=True, open_high=True)]


@optimizers.register("schedule_free", paper="arXiv:2405.15682")
class ScheduleFree(Foreach):
    """z <- z - lr u;  x <- (1 - c) x + c z;  y = (1 - b1) z + b1 x, with u = g / (sqrt(v^) + eps) + weight_decay y.

    Gradients are computed at y; evaluation and checkpoints use x, the weighted mean of all z.  c is the share of this
    step in the sum of lr^power over the steps, with lr the largest rate so far.  In training the parameters hold y;
    `eval()` sets them to x, and `train()` restores y bit for bit, also after a checkpoint in between.
    """

    updates = "entry"
    buffers = ("z", "v")

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Rate = 6e-3,
        betas: Averaging = (0.9, 0.999),
        eps: Eps = 1e-8,
        power: Annotated[float, NonNegative, "steps have the weight lr^power in the mean: less in a warm-up"] = 2.0,
        weight_decay: Decay = 0.1,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "power": power}
        super().__init__(groups, weight_decay=weight_decay, **settings, highest=0.0, weights=0.0, averaged=False)

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        return {"z": p.detach().clone(), "v": torch.zeros_like(p)}

    def update_all(self) -> None:
        for group in self.param_groups:
            if group["averaged"]:
                raise RuntimeError(
                    "step() of schedule_free was called while the parameters hold the averaged weights x; "
                    "call train() first"
                )
            # The largest rate so far: steps after a peak are not weighted less in the mean, those of a warm-up are.
            group["highest"] = max(group["highest"], group["lr"])
            group["weights"] += group["highest"] ** group["power"]
        super().update_all()

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        (z, v), (b1, b2), lr = buffers, group["betas"], group["lr"]
        # The first step has share 1, which replaces the initial weights in the mean.
        share = group["highest"] ** group["power"] / group["weights"] if group["weights"] else 0.0
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, g, g, 1 - b2)
        # Without m: the averages x and y take the place of momentum.
        u = torch._foreach_div(g, denominator(v, t, b2, group["eps"]))
        torch._foreach_add_(u, w, alpha=group["weight_decay"])
        # y directly, from y and z alone: x = (y - (1 - b1) z) / b1 is not stored.
        torch._foreach_lerp_(w, z, share)
        torch._foreach_add_(w, u, alpha=-lr * (1 - b1 * (1 - share)))
        torch._foreach_add_(z, u, alpha=-lr)

    @torch.no_grad()
    def eval(self) -> None:
        """Set the parameters to the averaged weights x, and keep y in the state."""
        for group in self.param_groups:
            if not group["averaged"]:
                group["averaged"] = True
                for p in group["params"]:
                    if state := self.state.get(p):
                        # Kept rather than computed back: x + (1 - b1) (z - x) would differ from y by rounding.
                        state["y"] = p.detach().clone()
                        # Solves y = (1 - b1) z + b1 x for x.
                        p.lerp_(state["z"], 1 - 1 / group["betas"][0])

    @torch.no_grad()
    def train(self) -> None:
        """Set the parameters back to y."""
        for group in self.param_groups:
            if group["averaged"]:
                group["averaged"] = False
                for p in group["params"]:
                    if "y" in self.state.get(p, {}):
                        p.copy_(self.state[p].pop("y"))


rule(
    when="optimizer.name == 'schedule_free'",
    unless="schedule.name == 'constant'",
    why="schedule_free replaces a schedule by weight averaging, and schedule={schedule.name} changes the learning rate",
    fix="schedule=constant",
)


@optimizers.register("prodigy", paper="arXiv:2306.06101", entrywise=False)
class Prodigy(Foreach):
    """w <- w - lr d (m / (sqrt(v) + d eps) + weight_decay w), d a growing estimate of |w0 - w*|, w* the optimum.

    m and v are the moving averages of d g and d^2 g^2.  Over all parameters, with b3 = sqrt(b2) and k = d^2 / d0:
    r <- b3 r + lr k <g, w0 - w>,  s <- b3 s + k g,  d <- max(d, coef r / |s|_1).  lr is a factor on d: keep it at 1.
    s does not contain lr, so that d does not grow too large during a warm-up.
    """

    updates = "model"
    buffers = ("m", "v", "s", "origin")

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Annotated[float, Positive, "factor on the estimated rate d, at the peak of the schedule"] = 1.0,
        betas: Betas = (0.9, 0.999),
        eps: Eps = 1e-8,
        d0: Annotated[float, Positive, "initial d; too small costs a few steps, too large diverges"] = 1e-6,
        coef: Annotated[float, Positive, "factor on the estimate r / |s|_1"] = 1.0,
        weight_decay: Decay = 0.0,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "d0": d0, "coef": coef}
        super().__init__(groups, weight_decay=weight_decay, **settings, d=d0, r=0.0)

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        return {"origin": p.detach().clone()} | {name: torch.zeros_like(p) for name in ("m", "v", "s")}

    def update_all(self) -> None:
        due = [(group, w, g) for group in self.param_groups for _, w, g in self.due(group)]
        if not due:
            return
        # The d of all groups is one number: the first group's stands for it.
        old, (r, length) = self.param_groups[0]["d"], self._accumulate(due)
        for group in self.param_groups:  # r and d are computed over all parameters, and the same in each group
            group["r"] = r
            # The estimate is a lower bound of the distance, so the largest one so far is the best.
            group["d"] = max(old, group["coef"] * r / length) if length else old
        for group, w, _ in due:
            m, v, _, _ = self.of(w)
            d = torch._foreach_sqrt(v)
            # As in the authors' code: eps is scaled by the new d, the step by the old one, with which m was collected.
            torch._foreach_add_(d, group["d"] * group["eps"])
            torch._foreach_mul_(w, 1 - group["lr"] * old * group["weight_decay"])
            torch._foreach_addcdiv_(w, m, d, value=-group["lr"] * old)

    def _accumulate(self, due: list[tuple[Group, Tensors, Tensors]]) -> tuple[float, float]:
        """Update m, v and s; return (r, |s|_1), with one transfer from the device for both."""
        gains, lengths = [], []
        for group, w, g in due:
            (m, v, s, origin), (b1, b2), d = self.of(w), group["betas"], group["d"]
            # Divided by d0 so that r and s do not underflow while d is 1e-6; their quotient does not change.
            k = d * d / group["d0"]
            distance = torch._foreach_sub(origin, w)
            gains += [k * group["lr"] * (a * b).sum() for a, b in zip(distance, g, strict=True)]
            torch._foreach_mul_(m, b1)
            torch._foreach_add_(m, g, alpha=d * (1 - b1))
            torch._foreach_mul_(v, b2)
            torch._foreach_addcmul_(v, g, g, d * d * (1 - b2))
            torch._foreach_mul_(s, b2**0.5)
            torch._foreach_add_(s, g, alpha=k)
            lengths += torch._foreach_norm(s, 1)
        gain, length = torch.stack([sum(gains, start=gains[0] * 0), sum(lengths, start=gains[0] * 0)]).tolist()
        first = self.param_groups[0]
        return first["r"] * first["betas"][1] ** 0.5 + gain, length
