"""Muon: hidden matrices move along the nearest orthogonal matrix of their momentum."""

import functools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ablatio import Positive, optimizers, rule
from ablatio.model.parameter_roles import ParameterGroup
from ablatio_std.optimizers._common import Below1, Betas, Decay, Eps, Foreach, Group, Tensors, adamw_, shrink

A, B, C = 3.4445, -4.7750, 2.0315  # steep at 0, so that 5 steps bring all singular values into 0.7 ... 1.2
Precision = Literal["auto", "float32", "bfloat16"]


@optimizers.register("muon", paper="https://kellerjordan.github.io/posts/muon/", entrywise=False)
class Muon(Foreach):
    """W <- W - lr (scale U V^T + weight_decay W), U S V^T = momentum, for hidden matrices; AdamW for the other roles.

    M <- momentum M + (1 - momentum) G;  U V^T is about what `ns_steps` Newton-Schulz steps make of M (with Nesterov, of
    momentum M + (1 - momentum) G once more).  scale: by `shape` sqrt(max(1, rows / columns)); by `rms`
    0.2 sqrt(max(rows, columns)), for updates the size of AdamW's (arXiv:2502.16982).  A tensor of more than two axes is
    a stack of matrices.
    """

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Annotated[float, Positive, "peak, of hidden matrices"] = 0.02,
        momentum: Annotated[float, Below1] = 0.95,
        nesterov: bool = True,
        ns_steps: Annotated[int, Positive] = 5,
        scale: Literal["shape", "rms"] = "shape",
        weight_decay: Decay = 0.1,
        aux_lr: Annotated[float, Positive, "peak, of embedding, head and vectors"] = 6e-3,
        betas: Annotated[Betas, "of the auxiliary AdamW"] = (0.9, 0.95),
        eps: Eps = 1e-8,
        precision: Annotated[Precision, "of Newton-Schulz; auto: bfloat16 on devices with units for it"] = "auto",
    ) -> None:
        rates: list[Any] = [{**g, "lr": lr if g["role"] == "matrix" else aux_lr} for g in groups]
        settings = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "scale": scale}
        settings |= {"betas": betas, "eps": eps, "precision": precision}
        super().__init__(rates, weight_decay=weight_decay, lr=lr, **settings)

    def start(self, group: Group, p: Tensor) -> dict[str, Tensor]:
        return {name: torch.zeros_like(p) for name in (("m",) if group["role"] == "matrix" else ("m", "v"))}

    def update(self, group: Group, t: int, w: Tensors, g: Tensors, *buffers: Tensors) -> None:
        m = [self.state[p]["m"] for p in w]
        if group["role"] != "matrix":
            return adamw_(group, t, w, g, m, [self.state[p]["v"] for p in w])
        for batch in batches(w, g, m):
            turn(group, *batch)
        return None


rule(
    when="optimizer.name == 'muon' and optimizer.nesterov and optimizer.momentum == 0",
    why="Nesterov's step looks ahead along the momentum, and optimizer.momentum is 0",
    fix="optimizer.nesterov=false",
)


def turn(group: Group, w: Tensors, g: Tensors, m: Tensors) -> None:
    """One step of matrices of one shape: while they are in the cache, all that is done with them."""
    torch._foreach_lerp_(m, g, 1 - group["momentum"])
    u = torch._foreach_lerp(g, m, group["momentum"]) if group["nesterov"] else m
    shrink(group, w)
    rows, columns = w[0].shape
    stack = (torch.stack(list(u)) if len(u) > 1 else u[0][None]).to(_precision(group["precision"], w[0]))
    o = orthogonal(stack.mT, group["ns_steps"]).mT if rows > columns else orthogonal(stack, group["ns_steps"])
    size = max(1, rows / columns) ** 0.5 if group["scale"] == "shape" else 0.2 * max(rows, columns) ** 0.5
    torch._foreach_add_(w, list(o.to(w[0].dtype)), alpha=-group["lr"] * size)


def _precision(wish: Precision, w: Tensor) -> torch.dtype:
    """float64 weights are there to be exact: `auto` leaves them so."""
    if wish != "auto":
        return torch.float32 if wish == "float32" else torch.bfloat16
    native = w.is_cuda or (w.is_cpu and _has_bfloat16_units())
    return torch.bfloat16 if native and w.dtype != torch.float64 else torch.promote_types(w.dtype, torch.float32)


@functools.cache
def _has_bfloat16_units() -> bool:
    """Of the processor; without them a product in bfloat16 takes up to five times as long as one in float32."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(unit) for unit in ("avx512_bf16", "amx_bf16"))


def batches(*tensors: Tensors) -> Iterator[list[Tensors]]:
    """Matrices of one shape at a time; on the CPU as many as the cache holds, on a GPU enough to fill it."""
    alike: dict[Any, list[tuple[Tensor, ...]]] = {}
    for same in zip(*tensors, strict=True):
        key = same[0].shape[-2:], same[0].dtype, same[0].device
        alike.setdefault(key, []).extend(zip(*map(_matrices, same), strict=True))
    for (shape, _, device), found in alike.items():
        count = max(1, (1 << 17 if device.type == "cpu" else 1 << 26) // shape.numel())
        for i in range(0, len(found), count):
            yield [list(matrices) for matrices in zip(*found[i : i + count], strict=True)]


def _matrices(x: Tensor) -> Tensors:
    return [x] if x.dim() == 2 else list(x.reshape(-1, *x.shape[-2:]))


def orthogonal(x: Tensor, steps: int) -> Tensor:
    """x <- a x + b (x x^T) x + c (x x^T)^2 x, `steps` times from |x| = 1: U S V^T -> about U V^T.  (N, m, n), m <= n.

    Each step multiplies x by p(x x^T) from the left, and all of these commute.  So for a wide x only the small x x^T
    goes from step to step, and the product of the p's meets x once.  That squares the condition: not for bfloat16.
    """
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None].to(x.dtype)
    if 2 * x.shape[-1] < 3 * x.shape[-2] or x.dtype == torch.bfloat16:
        for _ in range(steps):
            gram = symmetric_product(x, x.mT)
            x = torch.baddbmm(x, symmetric_product(gram, gram, gram, B, C), x, beta=A)
        return x
    gram, whole = symmetric_product(x, x.mT), None
    for step in range(steps):
        p = symmetric_product(gram, gram, gram, B, C)
        p.diagonal(dim1=-2, dim2=-1).add_(A)
        whole = p if whole is None else symmetric_product(whole, p)
        if step < steps - 1:
            gram = symmetric_product(symmetric_product(gram, p), p)
    assert whole is not None
    return whole @ x


def symmetric_product(
    a: Tensor, b: Tensor, plus: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """alpha a b + beta plus, known to be symmetric: on the CPU only the blocks from the diagonal on are computed."""
    n = a.shape[-2]
    size = -(-n // 2) if n >= 256 and a.device.type == "cpu" and a.dtype != torch.bfloat16 else n
    out = a.new_empty(*a.shape[:-1], n)
    for i in range(0, n, size):
        block, rest = out[:, i : i + size, i:], (a[:, i : i + size], b[:, :, i:])
        if plus is None:
            torch.bmm(*rest, out=block)
        else:
            torch.baddbmm(plus[:, i : i + size, i:], *rest, beta=beta, alpha=alpha, out=block)
        if i + size < n:
            out[:, i + size :, i : i + size] = block[:, :, size:].mT
    return out
