"""Adafactor, with and without momentum and factored second moments."""

from typing import Annotated

import torch
from torch import Tensor
from torch.optim import Optimizer

from ablatio import Positive, optimizers
from ablatio.model.parameter_roles import ParameterGroup
from ablatio.registry.knobs import Range
from ablatio_std.optimizers._common import Below1, Decay, Foreach, Group, Tensors, decayed, shrink


@optimizers.register("adafactor", paper="arXiv:1804.04235", entrywise=False)
def adafactor(
    groups: list[ParameterGroup],
    *,
    lr: Annotated[float, Positive, "peak of the schedule, relative to the root mean square of a tensor"] = 5e-2,
    decay: Annotated[float, Range(-1, 0, open_high=True), "beta2 at step t is 1 - t^decay"] = -0.8,
    floor: Annotated[float, Positive, "lower bound of the root mean square that lr is relative to"] = 1e-3,
    clip: Annotated[float, Range(1), "upper bound of the root mean square of an update"] = 1.0,
    beta1: Annotated[float, Below1, "decay of the moving average of the updates; 0: none (PaLM: 0.9)"] = 0.0,
    factored: Annotated[bool, "keep row and column means of g^2; false: all of g^2, as PaLM"] = True,
    weight_decay: Decay = 0.0,
) -> Optimizer:
    """w <- w - max(floor, rms(w)) min(lr, 1/sqrt(t)) u / max(1, rms(u) / clip),  u = g / sqrt(r c / mean(r)).

    r and c are moving averages of the row and column means of g^2: n + m numbers instead of n m; with factored=false
    u = g / sqrt(v), v the moving average of g^2.  With beta1, w moves by the moving average of these steps, which
    starts at 0 and is not corrected for it.
    """
    # torch's own class where it can do it, which is also the oracle of the other.
    if beta1 or not factored:
        knobs = {"lr": lr, "decay": decay, "floor": floor, "clip": clip, "beta1": beta1, "factored": factored}
        return _Adafactor(groups, weight_decay=weight_decay, **knobs)
    # eps[0] is None: torch then takes the machine epsilon of the dtype, as `_Adafactor` does.
    settings = {"lr": lr, "beta2_decay": decay, "eps": (None, floor), "d": clip}
    return torch.optim.Adafactor(decayed(groups, weight_decay), **settings)


class _Adafactor(Foreach):
    """Adafactor with momentum or without factors, which torch's has not; all else as there."""

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        state = {"m": torch.zeros_like(p)} if group["beta1"] else {}
        if group["factored"] and p.dim() > 1:
            return state | {"row": torch.zeros_like(p[..., :1]), "column": torch.zeros_like(p[..., :1, :])}
        return state | {"v": torch.zeros_like(p)}

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        # share is 1 - beta2 and 1 at the first step, which replaces v's initial 0: no bias correction is needed.
        rate, share = min(group["lr"], t**-0.5), t ** group["decay"]
        sizes = [_rms(p).clamp(min=group["floor"]) * rate for p in w]  # of w before it decays, as in torch
        shrink(group, w)
        for p, grad, size in zip(w, g, sizes, strict=True):
            state, eps = self.state[p], torch.finfo(p.dtype).eps
            if "v" in state:
                v = state["v"].lerp_(grad.square(), share)
            else:
                row = state["row"].lerp_(grad.square().mean(-1, keepdim=True), share)
                column = state["column"].lerp_(grad.square().mean(-2, keepdim=True), share)
                # Rank one with the right row and column sums: the sum over r c is divided out once.
                v = row @ column / row.mean(-2, keepdim=True).clamp(min=eps)
            u = grad * v.clamp(min=eps**2).rsqrt()
            # Clipped by the update's own root mean square, not by the gradient's: v can lag behind a sudden large
            # gradient.
            step = u * (size / (_rms(u) / group["clip"]).clamp(min=1))
            p.sub_(state["m"].lerp_(step, 1 - group["beta1"]) if "m" in state else step)


def _rms(x: Tensor) -> Tensor:
    """Root mean square of a tensor, a scalar tensor."""
    return x.square().mean().sqrt()
