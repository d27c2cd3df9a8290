"""Muon and normuon: the update of a hidden matrix is its momentum, orthogonalized by Newton-Schulz steps."""

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ablatio import Positive, optimizers, rule
from ablatio.model.parameter_roles import ParameterGroup
from ablatio_std.optimizers._common import (
    Below1,
    Betas,
    CautiousDecay,
    Decay,
    Eps,
    Foreach,
    Group,
    Hyperball,
    Momentum,
    Tensors,
    adam_direction,
    adamw_,
    descend,
    frobenius,
)  # fmt: skip
from ablatio_std.optimizers._orthogonal import Coefficients, Precision, batches, orthogonalized

Polynomials = Annotated[
    Coefficients, "of the Newton-Schulz steps; polar_express: the best for each step (arXiv:2505.16932)"
]


class _Orthogonalized(Foreach):
    """Base of muon and normuon: knobs by name in each group, AdamW at `aux_lr` for roles other than matrix."""

    matrix_buffers = ("m",)

    def __init__(self, groups: list[ParameterGroup], *, lr: float, aux_lr: float, **settings: Any) -> None:
        # The schedule scales the rate of each group, so both peaks are set here.
        rates: list[Any] = [{**g, "lr": lr if g["role"] == "matrix" else aux_lr} for g in groups]
        super().__init__(rates, lr=lr, **settings)

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        if group["role"] != "matrix":
            # As the author does: embedding and head learn better by AdamW, though they are matrices, and vectors have
            # nothing to orthogonalize.
            return {"m": torch.zeros_like(p), "v": torch.zeros_like(p)}
        state = {"m": torch.zeros_like(p)}
        if "rows" in self.matrix_buffers:
            state["rows"] = torch.zeros_like(p[..., :1])
        return state | ({"radius": frobenius(p.detach())} if group.get("hyperball") else {})

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        if group["role"] != "matrix":
            return self._auxiliary(group, t, w, g)
        names = [*self.matrix_buffers, *(["radius"] if group.get("hyperball") else [])]
        for w_, g_, *held in batches(w, g, *([self.state[p][name] for p in w] for name in names)):
            orthogonalized_step(group, w_, g_, **dict(zip(names, held, strict=True)))
        return None

    def _auxiliary(self, group: Group, t: int, w: Tensors, g: Tensors) -> None:
        m, v = ([self.state[p][name] for p in w] for name in ("m", "v"))
        # The fused kernel has the plain decay only.
        if group.get("cautious_decay"):
            descend(group, w, adam_direction(group, t, g, m, v))
        else:
            adamw_(group, t, w, g, m, v)


@optimizers.register("muon", paper="https://kellerjordan.github.io/posts/muon/", entrywise=False)
class Muon(_Orthogonalized):
    """W <- W - lr (scale U V^T + weight_decay W), U S V^T = momentum, for hidden matrices; AdamW for the other roles.

    M <- momentum M + (1 - momentum) G.  U V^T is approximated by `ns_steps` Newton-Schulz steps on M, or with Nesterov
    momentum on momentum M + (1 - momentum) G.  scale=shape is the factor sqrt(max(1, rows / columns)); scale=rms is
    0.2 sqrt(max(rows, columns)), which gives updates of the size of AdamW's (arXiv:2502.16982).  Tensors with more than
    two axes are stacks of matrices.  With hyperball the update has its own length, and `scale` has no effect.
    """

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Annotated[float, Positive, "learning rate of hidden matrices at the peak of the schedule"] = 0.02,
        momentum: Momentum = 0.95,
        nesterov: bool = True,
        ns_steps: Annotated[int, Positive, "number of Newton-Schulz steps"] = 5,
        coefficients: Polynomials = "jordan",
        scale: Literal["shape", "rms"] = "shape",
        weight_decay: Decay = 0.1,
        hyperball: Hyperball = False,
        cautious_decay: CautiousDecay = False,
        aux_lr: Annotated[float, Positive, "peak learning rate of embedding, head and vectors (AdamW)"] = 6e-3,
        betas: Annotated[Betas, "of the auxiliary AdamW"] = (0.9, 0.95),
        eps: Eps = 1e-8,
        precision: Annotated[Precision, "of Newton-Schulz; auto: bfloat16 where the hardware supports it"] = "auto",
    ) -> None:
        settings = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "coefficients": coefficients}
        settings |= {"scale": scale, "hyperball": hyperball, "cautious_decay": cautious_decay}
        settings |= {"betas": betas, "eps": eps, "precision": precision}
        super().__init__(groups, lr=lr, aux_lr=aux_lr, weight_decay=weight_decay, **settings)


@optimizers.register("normuon", paper="arXiv:2510.05491", entrywise=False)
class NorMuon(_Orthogonalized):
    """Muon with O = U V^T divided by sqrt(v), one v for each row (neuron): W <- W - lr (scale c O' + weight_decay W).

    v <- beta2 v + (1 - beta2) mean(O^2) over each row, from 0 and without a correction;  O' = O / (sqrt(v) + 1e-10).
    scale=shape: c gives O' the Frobenius norm of O, times Muon's sqrt(max(1, rows / columns)), as in the authors' code.
    scale=rms: c gives O' the root mean square 0.2, as in the paper's algorithm 1.  All else as in muon.
    """

    matrix_buffers = ("m", "rows")

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Annotated[float, Positive, "learning rate of hidden matrices at the peak of the schedule"] = 0.02,
        momentum: Momentum = 0.95,
        beta2: Annotated[float, Below1, "decay of the mean square of each row"] = 0.95,
        nesterov: bool = True,
        ns_steps: Annotated[int, Positive, "number of Newton-Schulz steps"] = 5,
        coefficients: Polynomials = "jordan",
        scale: Literal["shape", "rms"] = "shape",
        weight_decay: Decay = 0.1,
        hyperball: Hyperball = False,
        cautious_decay: CautiousDecay = False,
        aux_lr: Annotated[float, Positive, "peak learning rate of embedding, head and vectors (AdamW)"] = 6e-3,
        betas: Annotated[Betas, "of the auxiliary AdamW"] = (0.9, 0.95),
        eps: Eps = 1e-8,
        precision: Annotated[Precision, "of Newton-Schulz; auto: bfloat16 where the hardware supports it"] = "auto",
    ) -> None:
        settings = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "coefficients": coefficients}
        settings |= {"scale": scale, "hyperball": hyperball, "cautious_decay": cautious_decay, "beta2": beta2}
        settings |= {"betas": betas, "eps": eps, "precision": precision}
        super().__init__(groups, lr=lr, aux_lr=aux_lr, weight_decay=weight_decay, **settings)


for _name in ("muon", "normuon"):
    rule(
        when=f"optimizer.name == '{_name}' and optimizer.nesterov and optimizer.momentum == 0",
        why="optimizer.nesterov=true needs momentum, and optimizer.momentum is 0",
        fix="optimizer.nesterov=false",
    )


def orthogonalized_step(
    group: Group, w: Tensors, g: Tensors, m: Tensors, rows: Tensors | None = None, radius: Tensors | None = None
) -> None:
    """Update matrices w of one shape, with gradients g and momenta m, in place.

    All operations are done on one batch of matrices before the next, while the batch is in the processor's cache.
    rows: mean squares of the rows (rows, 1), for normuon
    radius: Frobenius norms (1, 1) that the matrices keep, with hyperball
    """
    # A mean instead of the sum momentum M + G: the same direction up to the factor 1 - momentum, which
    # orthogonalization does not see.
    torch._foreach_lerp_(m, g, 1 - group["momentum"])
    u = torch._foreach_lerp(g, m, group["momentum"]) if group["nesterov"] else m
    # Checkpoints of versions without `coefficients` have no such entry in their groups.
    o = orthogonalized(list(u), group["ns_steps"], group.get("coefficients", "jordan"), group["precision"])
    n_rows, n_columns = w[0].shape
    # Taller matrices have fewer directions than outputs: without the factor each output would move less.
    shape = max(1, n_rows / n_columns) ** 0.5
    if rows is not None:
        o, size = _normalized_rows(group, o.to(w[0].dtype), rows), shape if group["scale"] == "shape" else 1.0
    else:
        # 0.2 is the root mean square of AdamW's usual updates (Moonlight).
        size = shape if group["scale"] == "shape" else 0.2 * max(n_rows, n_columns) ** 0.5
    descend(group, w, list(o.to(w[0].dtype)), size, radius)


def _normalized_rows(group: Group, o: Tensor, rows: Tensors) -> Tensor:
    """Update the mean squares of the rows by o, and return normuon's c O'.  (N, rows, columns) -> same."""
    torch._foreach_lerp_(rows, list(o.square().mean(-1, keepdim=True)), 1 - group["beta2"])
    # Measured before the rows are scaled, and restored after it: only the proportions between the rows change.
    length = frobenius(o) if group["scale"] == "shape" else 0.2 * o[0].numel() ** 0.5
    o = o / (torch.stack(rows).sqrt() + 1e-10)
    return o * (length / (frobenius(o) + 1e-10))
