"""Muon: the update of a hidden matrix is its momentum, orthogonalized by Newton-Schulz steps."""

import functools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ablatio import Positive, optimizers, rule
from ablatio.model.parameter_roles import ParameterGroup
from ablatio_std.optimizers._common import Betas, Decay, Eps, Foreach, Group, Momentum, Tensors, adamw_, shrink

A, B, C = 3.4445, -4.7750, 2.0315  # a large slope at 0: 5 steps bring all singular values into 0.7 ... 1.2
Precision = Literal["auto", "float32", "bfloat16"]


@optimizers.register("muon", paper="https://kellerjordan.github.io/posts/muon/", entrywise=False)
class Muon(Foreach):
    """W <- W - lr (scale U V^T + weight_decay W), U S V^T = momentum, for hidden matrices; AdamW for the other roles.

    M <- momentum M + (1 - momentum) G.  U V^T is approximated by `ns_steps` Newton-Schulz steps on M, or with Nesterov
    momentum on momentum M + (1 - momentum) G.  scale=shape is the factor sqrt(max(1, rows / columns)); scale=rms is
    0.2 sqrt(max(rows, columns)), which gives updates of the size of AdamW's (arXiv:2502.16982).  Tensors with more than
    two axes are stacks of matrices.
    """

    def __init__(
        self,
        groups: list[ParameterGroup],
        *,
        lr: Annotated[float, Positive, "learning rate of hidden matrices at the peak of the schedule"] = 0.02,
        momentum: Momentum = 0.95,
        nesterov: bool = True,
        ns_steps: Annotated[int, Positive, "number of Newton-Schulz steps"] = 5,
        scale: Literal["shape", "rms"] = "shape",
        weight_decay: Decay = 0.1,
        aux_lr: Annotated[float, Positive, "peak learning rate of embedding, head and vectors (AdamW)"] = 6e-3,
        betas: Annotated[Betas, "of the auxiliary AdamW"] = (0.9, 0.95),
        eps: Eps = 1e-8,
        precision: Annotated[Precision, "of Newton-Schulz; auto: bfloat16 where the hardware supports it"] = "auto",
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
            orthogonalized_step(group, *batch)
        return None


rule(
    when="optimizer.name == 'muon' and optimizer.nesterov and optimizer.momentum == 0",
    why="optimizer.nesterov=true needs momentum, and optimizer.momentum is 0",
    fix="optimizer.nesterov=false",
)


def orthogonalized_step(group: Group, w: Tensors, g: Tensors, m: Tensors) -> None:
    """Update matrices w of one shape, with gradients g and momenta m, in place.

    All operations are done on one batch of matrices before the next, while the batch is in the processor's cache.
    """
    torch._foreach_lerp_(m, g, 1 - group["momentum"])
    u = torch._foreach_lerp(g, m, group["momentum"]) if group["nesterov"] else m
    shrink(group, w)
    rows, columns = w[0].shape
    stack = (torch.stack(list(u)) if len(u) > 1 else u[0][None]).to(_precision(group["precision"], w[0]))
    o = orthogonal(stack.mT, group["ns_steps"]).mT if rows > columns else orthogonal(stack, group["ns_steps"])
    size = max(1, rows / columns) ** 0.5 if group["scale"] == "shape" else 0.2 * max(rows, columns) ** 0.5
    torch._foreach_add_(w, list(o.to(w[0].dtype)), alpha=-group["lr"] * size)


def _precision(choice: Precision, w: Tensor) -> torch.dtype:
    """Dtype of Newton-Schulz for weights w.  `auto` keeps float64, which is chosen for exactness."""
    if choice != "auto":
        return torch.float32 if choice == "float32" else torch.bfloat16
    native = w.is_cuda or (w.is_cpu and _has_bfloat16_units())
    return torch.bfloat16 if native and w.dtype != torch.float64 else torch.promote_types(w.dtype, torch.float32)


@functools.cache
def _has_bfloat16_units() -> bool:
    """True if the CPU has bfloat16 instructions; without, bfloat16 products take up to 5 times as long as float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(unit) for unit in ("avx512_bf16", "amx_bf16"))


def batches(*tensors: Tensors) -> Iterator[list[Tensors]]:
    """Yield batches of matrices of one shape, dtype and device, from parallel lists such as weights and gradients.

    A batch holds as many matrices as fit the cache of a CPU, or enough to occupy a GPU.
    """
    groups: dict[Any, list[tuple[Tensor, ...]]] = {}
    for parallel in zip(*tensors, strict=True):
        key = parallel[0].shape[-2:], parallel[0].dtype, parallel[0].device
        groups.setdefault(key, []).extend(zip(*map(_matrices, parallel), strict=True))
    for (shape, _, device), items in groups.items():
        count = max(1, (1 << 17 if device.type == "cpu" else 1 << 26) // shape.numel())
        for i in range(0, len(items), count):
            yield [list(matrices) for matrices in zip(*items[i : i + count], strict=True)]


def _matrices(x: Tensor) -> Tensors:
    """The matrices of a stack (..., m, n): views (m, n)."""
    return [x] if x.dim() == 2 else list(x.reshape(-1, *x.shape[-2:]))


def orthogonal(x: Tensor, steps: int) -> Tensor:
    """x <- a x + b (x x^T) x + c (x x^T)^2 x, `steps` times from |x| = 1: U S V^T -> about U V^T.  (N, m, n), m <= n.

    Each step multiplies x from the left by a polynomial p of x x^T, and these polynomials commute.  For a wide x it is
    therefore enough to iterate the small x x^T, and to multiply x once by the product of the p.  This squares the
    condition number, so it is not used in bfloat16.
    """
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None].to(x.dtype)
    if 2 * x.shape[-1] < 3 * x.shape[-2] or x.dtype == torch.bfloat16:
        for _ in range(steps):
            gram = symmetric_product(x, x.mT)
            x = torch.baddbmm(x, symmetric_product(gram, gram, gram, B, C), x, beta=A)
        return x
    gram, product = symmetric_product(x, x.mT), None  # (N, m, m)
    for step in range(steps):
        p = symmetric_product(gram, gram, gram, B, C)
        p.diagonal(dim1=-2, dim2=-1).add_(A)
        product = p if product is None else symmetric_product(product, p)
        if step < steps - 1:
            gram = symmetric_product(symmetric_product(gram, p), p)
    assert product is not None
    return product @ x


def symmetric_product(
    a: Tensor, b: Tensor, plus: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """alpha a b + beta plus for a result known to be symmetric.  (N, n, k), (N, k, n) -> (N, n, n).

    On the CPU the blocks below the diagonal are copied from those above, not computed.
    """
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
