"""Preconditioners that are fitted by multiplicative steps on a group of matrices: psgd."""

from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor

from ablatio import Positive, Range, optimizers
from ablatio.model.parameter_roles import ParameterGroup
from ablatio_std.optimizers._common import Below1, Decay, Foreach, Group, Rate, Tensors, shrink


@optimizers.register("psgd", paper="arXiv:1809.10232", entrywise=False)
class PSGD(Foreach):
    """W <- W - lr (min(1, 1.1 / rms(U)) U + weight_decay W),  U = Q_L^T Q_L M Q_R^T Q_R whitens the momentum M.

    M is Adam's m^.  Q_L and Q_R are upper triangular, initially I; vectors and sides longer than `largest` have a
    diagonal one, and a vector only Q_L.  Every `every` steps, with A = Q_L M Q_R^T and B = Q_L^-T V Q_R^-1, V normal:
    Q_L <- Q_L - factor_lr triu(A A^T - B B^T) Q_L / |A A^T + B B^T|, and Q_R with A^T A and B^T B.  The norm is a lower
    bound of the spectral one.  V follows from the step count, so that a resumed run draws the same.
    """

    updates = "model"  # the random probes of all tensors are one stream

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Rate = 1e-2,
        momentum: Annotated[float, Below1] = 0.9,
        factor_lr: Annotated[float, Range(0, 1, open_low=True), "learning rate of Q"] = 0.1,
        every: Annotated[int, Positive, "steps between updates of Q"] = 1,
        largest: Annotated[int, Positive, "longer sides get a diagonal factor"] = 1024,
        weight_decay: Decay = 0.1,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "factor_lr": factor_lr, "every": every, "largest": largest}
        super().__init__(groups, weight_decay=weight_decay, **settings)

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        state = {"m": torch.zeros_like(p)}
        for side, n in zip(("left", "right"), p.shape[-2:] or (1,), strict=False):
            one = torch.ones(n, dtype=p.dtype, device=p.device)
            one = one if p.dim() < 2 or n > group["largest"] else torch.diag(one)
            state[side] = one.expand(*p.shape[:-2], *one.shape).clone()
        return state

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        shrink(group, w)
        draws = torch.Generator(w[0].device).manual_seed(t)
        for p, grad in zip(w, g, strict=True):
            state = self.state[p]
            # Q is fitted to the momentum that it will whiten, not to single gradients.
            m = state["m"].lerp_(grad, 1 - group["momentum"]) / (1 - group["momentum"] ** t)
            m = m.reshape(-1, 1) if p.dim() < 2 else m
            if (t - 1) % group["every"] == 0:
                # B stands for the identity: Q is at rest where A A^T equals B B^T in the mean, that is where Q whitens
                # M.
                v = torch.randn(m.shape, generator=draws, dtype=m.dtype, device=m.device)
                _fit(state, m, v, group["factor_lr"])
            u = m
            for side, q in _factors(state):
                u = _times(_times(u, side, q), side, q if _is_diagonal(q, m) else q.mT)
            size = u.square().mean((-2, -1), keepdim=True).sqrt()
            # A whitened M has rms 1; more is an estimate that lags, and is cut to 1.1 as in the Kron code of PSGD.
            u = u * (1.1 / (size + 1e-6)).clamp(max=1)
            p.sub_(u.view_as(p), alpha=group["lr"])


def _fit(state: dict[str, Tensor], m: Tensor, v: Tensor, rate: float) -> None:
    """Take one step of the factors in place, from m and the normal draw v, (..., rows, columns)."""
    a, b = m, v
    for side, q in _factors(state):
        # A and B need all factors before any is changed.
        a, b = _times(a, side, q), _divided(b, side, q)
    for side, q in _factors(state):
        x, y = (a, b) if side == "left" else (a.mT, b.mT)
        if _is_diagonal(q, m):
            one, two = x.square().sum(-1), y.square().sum(-1)
            q.sub_(rate * (one - two) * q / (one + two).amax(-1, keepdim=True))
        else:
            one, two = x @ x.mT, y @ y.mT
            # Divided by the norm, the step is relative to Q and keeps it away from singular matrices; triu keeps it
            # triangular.
            q.sub_(torch.triu(one - two) @ q * (rate / _spectral_norm(one + two)))


def _factors(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The sides that have a factor, and the factors."""
    return ((side, state[side]) for side in ("left", "right") if side in state)


def _is_diagonal(q: Tensor, m: Tensor) -> bool:
    """True if q holds the diagonal alone, (..., n) for a matrix m (..., rows, columns)."""
    return q.dim() < m.dim()


def _times(x: Tensor, side: str, q: Tensor) -> Tensor:
    """q x for the left side, x q^T for the right.  (..., rows, columns) -> same."""
    if _is_diagonal(q, x):
        return q[..., :, None] * x if side == "left" else x * q[..., None, :]
    return q @ x if side == "left" else x @ q.mT


def _divided(x: Tensor, side: str, q: Tensor) -> Tensor:
    """q^-T x for the left side, x q^-1 for the right.  (..., rows, columns) -> same."""
    if _is_diagonal(q, x):
        return x / (q[..., :, None] if side == "left" else q[..., None, :])
    exact, upper = torch.promote_types(x.dtype, torch.float32), side == "right"
    # A triangular solve instead of an inverse; it has no half precision.
    factor = (q if upper else q.mT).to(exact)
    return torch.linalg.solve_triangular(factor, x.to(exact), upper=upper, left=not upper).to(x.dtype)


def _spectral_norm(x: Tensor) -> Tensor:
    """Lower bound of the spectral norm of symmetric x, from its longest row.  (..., n, n) -> (..., 1, 1)."""
    largest = x.abs().amax((-2, -1), keepdim=True)  # squares of small numbers would be 0
    x = x / largest
    row = torch.take_along_dim(x, x.square().sum(-1).argmax(-1)[..., None, None], -2) @ x  # (..., 1, n)
    return (
        largest
        * torch.linalg.vector_norm(row @ x, dim=-1, keepdim=True)
        / torch.linalg.vector_norm(row, dim=-1, keepdim=True)
    )
