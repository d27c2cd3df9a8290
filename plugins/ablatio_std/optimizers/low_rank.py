"""Adam in a low-rank subspace of the gradient: galore."""

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
from ablatio_std.optimizers._decompositions import left_singular_vectors


@optimizers.register("galore", paper="arXiv:2403.03507", entrywise=False)
class GaLore(Foreach):
    """W <- W - lr (scale P N + weight_decay W), N Adam's direction on P^T G, for hidden matrices; AdamW for the rest.

    P (rows, rank) holds the first `rank` left singular vectors of G, recomputed every `every` steps; if W has more rows
    than columns the right ones, with N P^T.  m and v are kept in the subspace: rank / min(rows, columns) of Adam's
    memory.
    """

    buffers = ("m", "v")

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Rate = 1e-2,
        betas: Betas = (0.9, 0.999),
        eps: Eps = 1e-8,
        rank: Annotated[int, Positive, "dimension of the subspace; at most the shorter side of a matrix"] = 64,
        every: Annotated[int, Positive, "steps between computations of the subspace"] = 200,
        scale: Annotated[float, NonNegative] = 0.25,
        weight_decay: Decay = 0.1,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "rank": rank, "every": every, "scale": scale}
        super().__init__(groups, weight_decay=weight_decay, **settings)

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        if group["role"] != "matrix":
            return super().start(group, p)
        # The shorter side is projected: its singular vectors are the smaller matrix.
        (*stack, rows, columns), rank = p.shape, min(group["rank"], *p.shape[-2:])
        projected = (*stack, rank, columns) if rows <= columns else (*stack, rows, rank)
        basis = p.new_zeros(*stack, min(rows, columns), rank)
        return {"m": p.new_zeros(projected), "v": p.new_zeros(projected), "basis": basis}

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        if group["role"] != "matrix":
            return adamw_(group, t, w, g, *buffers)
        bases = [self.state[p]["basis"] for p in w]
        # At the first step, too: t counts from 1.
        if (t - 1) % group["every"] == 0:
            for basis, vectors in zip(bases, left_singular_vectors(map(_as_wide, g)), strict=True):
                # m and v stay in the coordinates of the old subspace, as in the authors' code.
                basis.copy_(vectors[..., : basis.shape[-1]])
        projected = [_transposed_if_tall(basis.mT @ _as_wide(x), x) for basis, x in zip(bases, g, strict=True)]
        u = adam_direction(group, t, projected, *buffers)
        shrink(group, w)
        updates = [
            _transposed_if_tall(basis @ _transposed_if_tall(n, p), p) for basis, n, p in zip(bases, u, w, strict=True)
        ]
        torch._foreach_add_(w, updates, alpha=-group["lr"] * group["scale"])
        return None


def _as_wide(x: Tensor) -> Tensor:
    """x, transposed if it has more rows than columns."""
    return x if x.shape[-2] <= x.shape[-1] else x.mT


def _transposed_if_tall(x: Tensor, p: Tensor) -> Tensor:
    """x, transposed if p has more rows than columns."""
    return x if p.shape[-2] <= p.shape[-1] else x.mT
