"""contra_muon: Muon whose update is bent away from the largest singular directions, and held in its length."""

from typing import Annotated, Any

import torch
from torch import Tensor

from ablatio import Fraction, NonNegative, Positive, Schedulable, optimizers, rule
from ablatio.model.parameter_roles import ParameterGroup
from ablatio.registry.knobs import Range
from ablatio_std.optimizers._common import (
    TINY,
    Betas,
    Decay,
    Eps,
    Group,
    Momentum,
    Tensors,
    frobenius,
    shrink,
)  # fmt: skip
from ablatio_std.optimizers._orthogonal import Precision, batches, orthogonalized
from ablatio_std.optimizers.muon import Polynomials, _Orthogonalized


@optimizers.register("contra_muon", paper="https://github.com/nilin/contra-muon", entrywise=False)
class ContraMuon(_Orthogonalized):
    """W <- W - lr (c (U S^power V^T - contra M / |M|_4) + weight_decay W), U S V^T = M, a hidden matrix's momentum.

    |M|_4 is the root of |M M^T|_F, close to the largest singular value, and c restores the Frobenius norm of U S^power
    V^T, sqrt(min(rows, columns)), times Muon's sqrt(max(1, rows / columns)).  contra > 0 moves least along the largest
    singular directions (Contra-Muon); power > 0 moves more along them (Soft-Muon), power < 0 less.  Records go from the
    one to the other during training: `optimizer.contra=linear(0.2,0)`.  power = 0 is approximated by Newton-Schulz
    steps, another power computed from the eigenvalues of M M^T.

    outward  the part of the update along W that lengthens W is multiplied by this, and the length of W then changes by
             the part along W alone, not by the drift of a step along the tangent (the radial brake)
    floor    an update shorter than floor |W|_F is lengthened to that

    Embedding, head and vectors are updated by AdamW.
    Source of both: the optimizer track of https://github.com/KellerJordan/modded-nanogpt, records 9 and 29
    """

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Annotated[float, Positive, "learning rate of hidden matrices at the peak of the schedule"] = 0.02,
        momentum: Momentum = 0.95,
        contra: Annotated[float, NonNegative, Schedulable(), "share of the momentum that is subtracted"] = 0.2,
        power: Annotated[float, Range(-1, 1), Schedulable(), "power of the singular values"] = 0.0,
        outward: Annotated[float, Fraction, Schedulable(), "factor on the part that lengthens W; 1: no brake"] = 1.0,
        floor: Annotated[float, NonNegative, Schedulable(), "least |update| / |W|; 0: none"] = 0.0,
        nesterov: bool = True,
        ns_steps: Annotated[int, Positive, "number of Newton-Schulz steps"] = 5,
        coefficients: Polynomials = "jordan",
        weight_decay: Decay = 0.1,
        aux_lr: Annotated[float, Positive, "peak learning rate of embedding, head and vectors (AdamW)"] = 6e-3,
        betas: Annotated[Betas, "of the auxiliary AdamW"] = (0.9, 0.95),
        eps: Eps = 1e-8,
        precision: Annotated[Precision, "of Newton-Schulz; auto: bfloat16 where the hardware supports it"] = "auto",
    ) -> None:
        settings: dict[str, Any] = {"momentum": momentum, "contra": contra, "power": power, "outward": outward}
        settings |= {"floor": floor, "nesterov": nesterov, "ns_steps": ns_steps, "coefficients": coefficients}
        settings |= {"betas": betas, "eps": eps, "precision": precision}
        super().__init__(groups, lr=lr, aux_lr=aux_lr, weight_decay=weight_decay, **settings)

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        if group["role"] != "matrix":
            return self._auxiliary(group, t, w, g)
        for batch in batches(w, g, [self.state[p]["m"] for p in w]):
            contra_step(group, *batch)
        return None


rule(
    when="optimizer.name == 'contra_muon' and optimizer.nesterov and optimizer.momentum == 0",
    why="optimizer.nesterov=true needs momentum, and optimizer.momentum is 0",
    fix="optimizer.nesterov=false",
)


def contra_step(group: Group, w: Tensors, g: Tensors, m: Tensors) -> None:
    """Update matrices w of one shape, with gradients g and momenta m, in place."""
    torch._foreach_lerp_(m, g, 1 - group["momentum"])
    moved = torch._foreach_lerp(g, m, group["momentum"]) if group["nesterov"] else m
    x = torch.stack(list(moved))  # (N, rows, columns)
    if group["power"] == 0:
        o = orthogonalized(list(moved), group["ns_steps"], group["coefficients"], group["precision"]).to(x.dtype)
    else:
        o = powered(x, group["power"])
    rows, columns = x.shape[-2:]
    length = min(rows, columns) ** 0.5 * max(1, rows / columns) ** 0.5
    o = o - group["contra"] * x / schatten_4(x).clamp(min=TINY)
    o = o * (length / frobenius(o).clamp(min=TINY))
    shrink(group, w)
    held = torch.stack(list(w))
    outwards = (o * held).sum((-2, -1), keepdim=True).clamp(max=0)  # of -o, negative where the step lengthens W
    size = frobenius(held).clamp(min=TINY)
    o = o - (1 - group["outward"]) * outwards * held / size.square()
    if group["floor"]:
        o = o * (group["floor"] * size / frobenius(o).clamp(min=TINY)).clamp(min=1)
    after = held - group["lr"] * o
    if group["outward"] < 1:
        along = (o * held).sum((-2, -1), keepdim=True) / size
        # A matrix of zeros has no direction to be held in.
        kept = (size - group["lr"] * along).clamp(min=TINY) / frobenius(after).clamp(min=TINY)
        after = after * torch.where(size > TINY, kept, 1.0)
    torch._foreach_copy_(w, list(after))


def powered(x: Tensor, power: float) -> Tensor:
    """U S^power V^T of U S V^T, times a factor: (N, rows, columns) -> same."""
    if x.shape[-2] > x.shape[-1]:
        return powered(x.mT, power).mT
    gram = x @ x.mT
    values, vectors = torch.linalg.eigh(gram / gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None].clamp(min=TINY))
    # Smaller eigenvalues are rounding errors, which a negative power would make the largest.
    values = values.clamp(min=torch.finfo(x.dtype).eps)
    return vectors * values[:, None].pow((power - 1) / 2) @ vectors.mT @ x


def schatten_4(x: Tensor) -> Tensor:
    """Fourth root of the sum of the fourth powers of the singular values.  (N, rows, columns) -> (N, 1, 1)."""
    return frobenius(x @ x.mT if x.shape[-2] <= x.shape[-1] else x.mT @ x).sqrt()
