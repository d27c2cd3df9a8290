"""Adam in a subspace of low rank: galore."""

from typing import Annotated

import torch
from torch import Tensor

from ablatio import NonNegative, Positive, optimizers
from ablatio.model.parameter_roles import ParameterGroup
from ablatio_std.optimizers._common import (
    Betas,
    Decay,
    Eps,
    Foreach,
    Group,
    Rate,
    Tensors,
    adam_direction,
    adamw_,
    shrink,
)  # fmt: skip


@optimizers.register("galore", paper="arXiv:2403.03507", entrywise=False)
class GaLore(Foreach):
    """W <- W - lr (scale P N + weight_decay W), N Adam's step on P^T G, for hidden matrices; AdamW for other roles.

    P holds the first `rank` left singular vectors of G (right ones, and N P^T, where W has more rows than columns),
    taken anew each `every` steps; m and v live in the subspace: rank / min(rows, columns) of Adam's memory.
    """

    buffers = ("m", "v")

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Rate = 1e-2,
        betas: Betas = (0.9, 0.999),
        eps: Eps = 1e-8,
        rank: Annotated[int, Positive, "at most the shorter side"] = 64,
        every: Annotated[int, Positive, "steps from one subspace to the next"] = 200,
        scale: Annotated[float, NonNegative] = 0.25,
        weight_decay: Decay = 0.1,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "rank": rank, "every": every, "scale": scale}
        super().__init__(groups, weight_decay=weight_decay, **settings)

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        if group["role"] != "matrix":
            return super().start(group, p)
        (*stack, rows, columns), rank = p.shape, min(group["rank"], *p.shape[-2:])
        low = (*stack, rank, columns) if rows <= columns else (*stack, rows, rank)
        basis = p.new_zeros(*stack, min(rows, columns), rank)
        return {"m": p.new_zeros(low), "v": p.new_zeros(low), "basis": basis}

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        if group["role"] != "matrix":
            return adamw_(group, t, w, g, *buffers)
        bases = [self.state[p]["basis"] for p in w]
        if (t - 1) % group["every"] == 0:
            for basis, grad in zip(bases, g, strict=True):
                basis.copy_(torch.linalg.svd(_wide(grad), full_matrices=False).U[..., : basis.shape[-1]])
        low = [_like(basis.mT @ _wide(x), x) for basis, x in zip(bases, g, strict=True)]
        u = adam_direction(group, t, low, *buffers)
        shrink(group, w)
        moves = [_like(basis @ _like(n, p), p) for basis, n, p in zip(bases, u, w, strict=True)]
        torch._foreach_add_(w, moves, alpha=-group["lr"] * group["scale"])
        return None


def _wide(x: Tensor) -> Tensor:
    return x if x.shape[-2] <= x.shape[-1] else x.mT


def _like(x: Tensor, p: Tensor) -> Tensor:
    """x, turned on its side if p is tall."""
    return x if p.shape[-2] <= p.shape[-1] else x.mT
