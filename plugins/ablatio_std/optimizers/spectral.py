"""Updates that are the steepest of a norm ball, or a low-rank approximation of it: scion, dion."""

from typing import Annotated, Any

import torch
from torch import Tensor

from ablatio import NonNegative, Positive, optimizers
from ablatio.model.parameter_roles import ParameterGroup
from ablatio_std.optimizers._common import Below1, Betas, Decay, Eps, Foreach, Group, Tensors, adamw_, descend, shrink
from ablatio_std.optimizers._decompositions import orthonormal_factors
from ablatio_std.optimizers._orthogonal import Precision, batches, orthogonalized
from ablatio_std.optimizers.muon import Polynomials


@optimizers.register("scion", paper="arXiv:2502.07529", entrywise=False)
class Scion(Foreach):
    """w <- (1 - lr weight_decay) w - lr R u, u the steepest direction for M in a norm of length 1, by the role of w.

    M <- momentum M + (1 - momentum) G.  Hidden matrices: u = sqrt(rows / columns) U V^T, M = U S V^T (Newton-Schulz),
    R = radius.  Head: u = sign(M) / columns, R = head_radius.  Embedding: u = sign(M), R = embedding_radius, the norm
    for one-hot inputs.  Vectors: u = M / rms(M), R = radius; they do not decay.

    weight_decay=1 is the paper's Scion: the weights stay in the ball of radius R.  0 is its unconstrained Scion.  lr
    scales all roles alike; the authors' radii for GPT-2 are 50 and 3000, with 3000 / columns for the tied embedding.
    """

    buffers = ("m",)

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Annotated[float, Positive, "learning rate at the peak of the schedule; times a radius it is a step"] = 4e-4,
        momentum: Annotated[float, Below1] = 0.9,
        radius: Annotated[float, Positive, "of hidden matrices and vectors"] = 50.0,
        head_radius: Annotated[float, Positive] = 3000.0,
        embedding_radius: Annotated[float, Positive] = 20.0,
        ns_steps: Annotated[int, Positive, "number of Newton-Schulz steps"] = 5,
        coefficients: Polynomials = "jordan",
        weight_decay: Annotated[float, NonNegative, "1: constrained; 0: unconstrained; vectors are not decayed"] = 1.0,
        precision: Annotated[Precision, "of Newton-Schulz; auto: bfloat16 where the hardware supports it"] = "auto",
    ) -> None:
        radii = {"matrix": radius, "vector": radius, "head": head_radius, "embedding": embedding_radius}
        sized: list[Any] = [{**g, "radius": radii[g["role"]]} for g in groups]
        settings = {"momentum": momentum, "ns_steps": ns_steps, "coefficients": coefficients, "precision": precision}
        super().__init__(sized, weight_decay=weight_decay, lr=lr, **settings)

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        (m,), role = buffers, group["role"]
        torch._foreach_lerp_(m, g, 1 - group["momentum"])
        if role == "matrix":
            for w_, m_ in batches(w, m):
                rows, columns = w_[0].shape
                o = orthogonalized(m_, group["ns_steps"], group["coefficients"], group["precision"])
                # sqrt(rows / columns) U V^T maps inputs of root mean square 1 to outputs of at most 1, whatever the
                # width.
                descend(group, w_, list(o.to(w_[0].dtype)), group["radius"] * (rows / columns) ** 0.5)
        elif role == "vector":
            descend(group, w, [x / (x.square().mean().sqrt() + 1e-8) for x in m], group["radius"])
        else:
            # Head: with inputs of root mean square 1 no logit changes by more than 1. Embedding: a one-hot input reads
            # one row, whose entries change by 1.
            u = [x.sign() / (x.shape[-1] if role == "head" else 1) for x in m]
            descend(group, w, u, group["radius"])


@optimizers.register("dion", paper="arXiv:2504.05295", entrywise=False)
class Dion(Foreach):
    """W <- W - lr (sqrt(rows / columns) P Q^T + weight_decay W) for hidden matrices; AdamW for the other roles.

    B = M + G;  P (rows, rank) = the orthonormal factor of qr(B Q);  R = B^T P;  M <- B - (1 - momentum) P R^T;
    Q (columns, rank) = R with columns of length 1, the start of the next step's power iteration.  What the rank leaves
    out stays in M (error feedback).  Q starts as a fixed normal draw.  Tensors with more than two axes are stacks of
    matrices.
    """

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Annotated[float, Positive, "learning rate of hidden matrices at the peak of the schedule"] = 0.02,
        momentum: Annotated[float, Below1] = 0.95,
        rank: Annotated[int, Positive, "of the updates; at most the shorter side of a matrix"] = 64,
        weight_decay: Decay = 0.1,
        aux_lr: Annotated[float, Positive, "peak learning rate of embedding, head and vectors (AdamW)"] = 6e-3,
        betas: Annotated[Betas, "of the auxiliary AdamW"] = (0.9, 0.95),
        eps: Eps = 1e-8,
    ) -> None:
        rates: list[Any] = [{**g, "lr": lr if g["role"] == "matrix" else aux_lr} for g in groups]
        settings = {"momentum": momentum, "rank": rank, "betas": betas, "eps": eps}
        super().__init__(rates, weight_decay=weight_decay, lr=lr, **settings)

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        if group["role"] != "matrix":
            return {"m": torch.zeros_like(p), "v": torch.zeros_like(p)}
        *stack, rows, columns = p.shape
        rank = min(group["rank"], rows, columns)
        # Drawn on the CPU with a fixed seed, so that every device and every resumed run starts from the same Q.
        draw = torch.randn(columns, rank, generator=torch.Generator().manual_seed(0))
        return {"m": torch.zeros_like(p), "q": draw.to(p).expand(*stack, columns, rank).clone()}

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        if group["role"] != "matrix":
            return adamw_(group, t, w, g, *([self.state[p][name] for p in w] for name in ("m", "v")))
        shrink(group, w)
        held = [(self.state[weight]["m"], self.state[weight]["q"]) for weight in w]
        for (m, _), grad in zip(held, g, strict=True):
            # The buffer is a sum with error feedback, not a mean: only the part that was applied decays.
            m.add_(grad)
        # qr has no lower precision than float32.
        factors = orthonormal_factors((m @ q).to(torch.promote_types(m.dtype, torch.float32)) for m, q in held)
        for weight, (m, q), factor in zip(w, held, factors, strict=True):
            p = factor.to(m.dtype)  # (..., rows, rank)
            r = m.mT @ p  # (..., columns, rank)
            m.sub_(p @ r.mT, alpha=1 - group["momentum"])
            # Columns of length 1: the update is P Q^T with singular values near 1, as Muon's, and not weighted by R.
            q.copy_(r / (torch.linalg.vector_norm(r, dim=-2, keepdim=True) + 1e-8))
            size = (weight.shape[-2] / weight.shape[-1]) ** 0.5
            weight.sub_(p @ q.mT, alpha=group["lr"] * size)
        return None
