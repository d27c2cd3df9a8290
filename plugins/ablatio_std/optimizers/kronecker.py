"""Kronecker-factored preconditioners, with one factor for the rows and one for the columns: shampoo, soap, kl_soap."""

from typing import Annotated

import torch
from torch import Tensor

from ablatio import Positive, optimizers
from ablatio.model.parameter_roles import ParameterGroup
from ablatio_std.optimizers._common import Betas, Decay, Eps, Foreach, Group, Momentum, Rate, Tensors, adamw_, shrink
from ablatio_std.optimizers._decompositions import eigh, orthonormal_factors
from ablatio_std.optimizers._orthogonal import Precision, orthogonalized

Every = Annotated[int, Positive, "steps between factorizations"]
Largest = Annotated[int, Positive, "longer sides get no factor; that of a vocabulary would take most of the time"]


@optimizers.register("shampoo", paper="arXiv:1802.09568", entrywise=False)
class Shampoo(Foreach):
    """W <- W - lr M, M <- momentum M + L^(-1/4) G R^(-1/4), with L <- L + G G^T, R <- R + G^T G, initially eps I.

    A vector has one factor: L^(-1/2) g.  A side longer than `largest` has none, and the other side's factor then gets
    the power -1/2.  The roots are recomputed at each of the first `every` steps, in which L and R change most, and then
    every `every` steps.
    """

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Rate = 0.02,
        momentum: Momentum = 0.9,
        eps: Eps = 1e-4,
        every: Every = 10,
        largest: Largest = 1024,
        weight_decay: Decay = 0.0,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "eps": eps, "every": every, "largest": largest}
        super().__init__(groups, weight_decay=weight_decay, **settings)

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        state = {"m": torch.zeros_like(p)}
        for side, n in _sides(p, group["largest"]):
            # eps I makes the first roots finite; expanded for stacks of matrices, each with factors of its own.
            eye = torch.eye(n, dtype=p.dtype, device=p.device).expand(*p.shape[:-2], n, n)
            state |= {side: eye * group["eps"], f"{side}_root": eye.clone()}
        return state

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        shrink(group, w)
        sides = [[side for side, _ in _sides(p, group["largest"])] for p in w]
        factors = [(self.state[p], side, len(own)) for p, own in zip(w, sides, strict=True) for side in own]
        for p, grad, own in zip(w, g, sides, strict=True):
            for side in own:
                # A sum and not a mean: Shampoo's steps shrink as AdaGrad's do.
                self.state[p][side] += _outer(_as_matrix(grad), side)
        if t < group["every"] or t % group["every"] == 0:
            found = eigh(state[side] for state, side, _ in factors)
            for (state, side, count), (values, basis) in zip(factors, found, strict=True):
                # Rounding can make the smallest eigenvalues negative, whose roots are NaN.
                values = values.clamp(min=group["eps"]) ** (-0.5 / count)
                state[f"{side}_root"].copy_(basis * values[..., None, :] @ basis.mT)
        for p, grad, own in zip(w, g, sides, strict=True):
            state, u = self.state[p], _as_matrix(grad)
            for side in own:
                u = _apply(u, side, state[f"{side}_root"])
            # Momentum after preconditioning, as in the paper: old steps keep the factors of their own time.
            state["m"].mul_(group["momentum"]).add_(u.view_as(p))
            p.add_(state["m"], alpha=-group["lr"])


@optimizers.register("soap", paper="arXiv:2409.11321", entrywise=False)
class SOAP(Foreach):
    """W <- W - lr (Q_L N Q_R^T + weight_decay W), N Adam's direction in the eigenbases Q_L, Q_R of Shampoo's L and R.

    L and R are moving averages (betas[1]) of G G^T and G^T G.  The first bases are from eigh; every `every` steps
    Q <- qr(L Q).  Adam's m is kept in the original basis, v in the eigenbasis.  Vectors are updated by AdamW.

    The first step only sets L, R and the bases, as in the authors' code: in the eigenbases of its own G L and R, a
    gradient is diagonal up to rounding, and Adam would divide that rounding by itself.
    """

    buffers = ("m", "v")

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Rate = 6e-3,
        betas: Betas = (0.95, 0.95),
        eps: Eps = 1e-8,
        every: Every = 10,
        largest: Largest = 1024,
        weight_decay: Decay = 0.01,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "every": every, "largest": largest}
        super().__init__(groups, weight_decay=weight_decay, **settings)

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        state = super().start(group, p)
        if group["role"] != "vector" and p.grad is not None:
            for side, _ in _sides(p, group["largest"]):
                # As one step of the moving average from 0.
                state[side] = _outer(p.grad, side) * (1 - group["betas"][1])
                # eigh sorts eigenvalues in ascending order, qr(L Q) keeps the largest first
                state[f"{side}_basis"] = eigh([state[side]])[0][1].flip(-1)
        return state

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        # No decay either: the step does not exist for the weights.
        if t == 1:
            return None
        t -= 1  # steps of Adam
        if group["role"] == "vector":
            return adamw_(group, t, w, g, *buffers)
        shrink(group, w)
        b1, b2 = group["betas"]
        for p, grad, m, v in zip(w, g, *buffers, strict=True):
            state, sides = self.state[p], [side for side, _ in _sides(p, group["largest"])]
            # In the original basis, so that m need not be turned when the basis changes; v cannot be turned, and stays.
            m.lerp_(grad, 1 - b1)
            rotated_grad, rotated_m = grad, m  # into the eigenbases
            for side in sides:
                basis = state[f"{side}_basis"].mT
                rotated_grad, rotated_m = (_apply(x, side, basis) for x in (rotated_grad, rotated_m))
            v.mul_(b2).addcmul_(rotated_grad, rotated_grad, value=1 - b2)
            u = rotated_m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + group["eps"])
            for side in sides:
                u = _apply(u, side, state[f"{side}_basis"])
                state[side].lerp_(_outer(grad, side), 1 - b2)
            p.add_(self.finished(group, u), alpha=-group["lr"])
        if t % group["every"] == 0:
            _turn_bases([self.state[p] for p in w])
        return None

    def finished(self, group: Group, u: Tensor) -> Tensor:
        """The direction that is taken, from Q_L N Q_R^T."""
        return u


@optimizers.register("soap_muon", paper="https://nikhilvyas.github.io/SOAP_Muon.pdf", entrywise=False)
class SOAPMuon(SOAP):
    """W <- W - lr (c U V^T + weight_decay W), U S V^T = Q_L N Q_R^T, the direction of soap, for hidden matrices.

    U V^T is approximated by `ns_steps` Newton-Schulz steps, and c = 0.2 sqrt(max(rows, columns)) gives it the size of
    AdamW's updates, as scale=rms of muon does.  All else, the directions of embedding and head too, is as in soap.
    """

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Rate = 6e-3,
        betas: Betas = (0.95, 0.95),
        eps: Eps = 1e-8,
        every: Every = 10,
        largest: Largest = 1024,
        ns_steps: Annotated[int, Positive, "number of Newton-Schulz steps"] = 5,
        weight_decay: Decay = 0.01,
        precision: Annotated[Precision, "of Newton-Schulz; auto: bfloat16 where the hardware supports it"] = "auto",
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, every=every, largest=largest, weight_decay=weight_decay)
        for group in self.param_groups:
            group |= {"ns_steps": ns_steps, "precision": precision}

    def finished(self, group: Group, u: Tensor) -> Tensor:
        if group["role"] != "matrix":
            return u
        matrices = list(u.reshape(-1, *u.shape[-2:]))
        o = orthogonalized(matrices, group["ns_steps"], "jordan", group["precision"]).to(u.dtype)
        return 0.2 * max(u.shape[-2:]) ** 0.5 * o.view_as(u)


@optimizers.register("kl_soap", paper="arXiv:2509.03378", entrywise=False)
class KLSOAP(Foreach):
    """SOAP with factors that fit the covariance of G in the Kullback-Leibler divergence: each whitens by the other.

    L <- b2 L + (1 - b2) G R^-1 G^T / columns,  R <- b2 R + (1 - b2) G^T L^-1 G / rows.

    L^-1 is Q_L diag(1 / l) Q_L^T, with eigenvalues l <- b2 l + (1 - b2) diag(Q_L^T G R^-1 G^T Q_L) / columns, initially
    `start`; the same for R.  Q_L <- qr(L Q_L) every `every` steps, all else in each step.  The update is SOAP's,
    W <- W - lr (Q_L N Q_R^T + weight_decay W), with N = m / (sqrt(v) + eps).  As in the authors' code, m and v are not
    corrected for their initial 0, the first step only sets L, R and the bases, and l is at least
    1 / max(10, min(rows, 4000))^2.  Vectors are updated by AdamW.
    """

    buffers = ("m", "v")

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Rate = 6e-3,
        betas: Betas = (0.9, 0.98),
        eps: Eps = 1e-8,
        every: Every = 10,
        largest: Largest = 1024,
        start: Annotated[float, Positive, "initial eigenvalues of the factors"] = 0.1,
        weight_decay: Decay = 0.01,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "every": every, "largest": largest, "start": start}
        super().__init__(groups, weight_decay=weight_decay, **settings)

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        state = super().start(group, p)
        if group["role"] != "vector" and p.grad is not None:
            for side, n in _sides(p, group["largest"]):
                state[side] = _outer(p.grad, side) * ((1 - group["betas"][1]) / _length_of_other(p, side))
                state[f"{side}_basis"] = eigh([state[side]])[0][1].flip(-1)
                state[f"{side}_values"] = p.new_full((*p.shape[:-2], n), group["start"])
        return state

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        if t == 1:
            return None
        if group["role"] == "vector":
            return adamw_(group, t - 1, w, g, *buffers)
        shrink(group, w)
        for p, grad, m, v in zip(w, g, *buffers, strict=True):
            state, sides = self.state[p], [side for side, _ in _sides(p, group["largest"])]
            m.lerp_(grad, 1 - group["betas"][0])
            rotated_grad, rotated_m = grad, m  # into the eigenbases
            for side in sides:
                basis = state[f"{side}_basis"].mT
                rotated_grad, rotated_m = (_apply(x, side, basis) for x in (rotated_grad, rotated_m))
            v.lerp_(rotated_grad.square(), 1 - group["betas"][1])
            u = rotated_m / (v.sqrt() + group["eps"])
            for side in sides:
                u = _apply(u, side, state[f"{side}_basis"])
            # After the update, as in SOAP: a gradient is not whitened by factors that contain it.
            _fit_factors(group, state, sides, grad, rotated_grad)
            p.add_(u, alpha=-group["lr"])
        if (t - 1) % group["every"] == 0:
            _turn_bases([self.state[p] for p in w])
        return None


def _fit_factors(group: Group, state: dict[str, Tensor], sides: list[str], grad: Tensor, rotated: Tensor) -> None:
    """Update the factors and eigenvalues of KL-SOAP in place, each from the others of before this step.

    rotated: the gradient in both eigenbases
    """
    # Roots of all sides before any is updated: each factor is fitted to the others of the last step.
    share, roots = 1 - group["betas"][1], {side: state[f"{side}_values"].rsqrt() for side in sides}
    for side in sides:
        other, n = ("right" if side == "left" else "left"), _length_of_other(grad, side)
        # A side longer than `largest` has no factor: the other is fitted to G as it is.
        whitened, diagonal = grad, rotated
        if other in roots:
            root = roots[other][..., None, :] if other == "right" else roots[other][..., :, None]
            whitened, diagonal = _apply(grad, other, state[f"{other}_basis"].mT) * root, rotated * root
        state[side].lerp_(_outer(whitened, side) / n, share)
        values = state[f"{side}_values"].lerp_(diagonal.square().mean(-1 if side == "left" else -2), share)
        values.clamp_(min=max(10, min(values.shape[-1], 4000)) ** -2.0)


def _turn_bases(states: list[dict[str, Tensor]]) -> None:
    """Q <- qr(L Q), one step of orthogonal iteration: a QR costs a fraction of an eigh, and L changes slowly."""
    factors = [(state, side) for state in states for side in ("left", "right") if side in state]
    products = (state[side] @ state[f"{side}_basis"] for state, side in factors)
    for (state, side), basis in zip(factors, orthonormal_factors(products), strict=True):
        state[f"{side}_basis"].copy_(basis)


def _length_of_other(p: Tensor, side: str) -> int:
    """Length of the side that the factor of `side` sums over."""
    return p.shape[-1] if side == "left" else p.shape[-2]


def _as_matrix(x: Tensor) -> Tensor:
    """A vector (n,) as one column, (n, 1); a matrix unchanged."""
    return x[:, None] if x.dim() == 1 else x


def _sides(p: Tensor, largest: int) -> list[tuple[str, int]]:
    """The sides with a factor and their lengths: ("left", rows) and ("right", columns); of a vector the left only."""
    sides = [("left", p.shape[-2]), ("right", p.shape[-1])] if p.dim() > 1 else [("left", p.shape[0])]
    return [(side, n) for side, n in sides if n <= largest]


def _outer(g: Tensor, side: str) -> Tensor:
    """g g^T, (rows, rows), for the left side; g^T g, (columns, columns), for the right."""
    return g @ g.mT if side == "left" else g.mT @ g


def _apply(x: Tensor, side: str, factor: Tensor) -> Tensor:
    """factor x for the left side, x factor^T for the right.  (rows, columns) -> same."""
    return factor @ x if side == "left" else x @ factor.mT
