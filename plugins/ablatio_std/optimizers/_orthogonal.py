"""Orthogonalization of matrices by Newton-Schulz polynomials, in batches of one shape."""

import functools
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from ablatio_std.optimizers._common import Tensors

Precision = Literal["auto", "float32", "bfloat16"]
Coefficients = Literal["jordan", "polar_express"]

SAFETY = {"jordan": 1.0, "polar_express": 1.01}  # margin for rounding, by which the input is divided too
_POLAR_EXPRESS = (  # the best quintic for the interval that the steps before leave, from [1e-3, 1]; algorithm 1
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
POLYNOMIALS = {
    # a large slope at 0: 5 steps bring all singular values into 0.7 ... 1.2
    "jordan": [(3.4445, -4.7750, 2.0315)],
    "polar_express": [
        *((a / SAFETY["polar_express"], b / SAFETY["polar_express"] ** 3, c / SAFETY["polar_express"] ** 5)
          for a, b, c in _POLAR_EXPRESS),
        (1.875, -1.25, 0.375),  # the limit; has no margin, so that it converges to 1
    ],
}  # fmt: skip


def orthogonalized(x: Tensors, steps: int, coefficients: Coefficients, precision: Precision) -> Tensor:
    """About U V^T of each matrix U S V^T: matrices (m, n) of one shape -> (N, m, n) in the dtype of the precision."""
    rows, columns = x[0].shape
    stack = (torch.stack(list(x)) if len(x) > 1 else x[0][None]).to(dtype_of(precision, x[0]))
    return orthogonal(stack.mT, steps, coefficients).mT if rows > columns else orthogonal(stack, steps, coefficients)


def dtype_of(choice: Precision, w: Tensor) -> torch.dtype:
    """Dtype of the orthogonalization for weights w.  `auto` keeps float64, which is chosen for exactness."""
    if choice != "auto":
        return torch.float32 if choice == "float32" else torch.bfloat16
    # The iteration tolerates bfloat16: it corrects its own rounding errors towards U V^T.
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
        # 2^17 numbers are 512 KB in float32.
        count = max(1, (1 << 17 if device.type == "cpu" else 1 << 26) // shape.numel())
        for i in range(0, len(items), count):
            yield [list(matrices) for matrices in zip(*items[i : i + count], strict=True)]


def _matrices(x: Tensor) -> Tensors:
    """The matrices of a stack (..., m, n): views (m, n)."""
    return [x] if x.dim() == 2 else list(x.reshape(-1, *x.shape[-2:]))


def orthogonal(x: Tensor, steps: int, coefficients: Coefficients = "jordan") -> Tensor:
    """x <- a x + b (x x^T) x + c (x x^T)^2 x, `steps` times from |x| = 1: U S V^T -> about U V^T.  (N, m, n), m <= n.

    Each step multiplies x from the left by a polynomial p of x x^T, and these polynomials commute.  For a wide x it is
    therefore enough to iterate the small x x^T, and to multiply x once by the product of the p.  This squares the
    condition number, so it is not used in bfloat16.
    """
    margin, polynomials = SAFETY[coefficients], schedule(coefficients, steps)
    # The Frobenius norm bounds the spectral norm, so all singular values start in [0, 1], where the polynomials
    # converge.
    x = x / (margin * x.flatten(1).norm(dim=1).clamp(min=1e-7))[:, None, None].to(x.dtype)
    # In units of m^3 the direct form costs 2 n/m + 1 a step, the Gram form 4 a step (3 less in all) and 2 n/m once:
    # equal at n = 1.5 m for 5 steps.
    if 2 * x.shape[-1] < 3 * x.shape[-2] or x.dtype == torch.bfloat16:
        for a, b, c in polynomials:
            gram = symmetric_product(x, x.mT)
            x = torch.baddbmm(x, symmetric_product(gram, gram, gram, b, c), x, beta=a)
        return x
    gram, product = symmetric_product(x, x.mT), None  # (N, m, m)
    for step, (a, b, c) in enumerate(polynomials):
        p = symmetric_product(gram, gram, gram, b, c)
        # a I, without an identity matrix.
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        product = p if product is None else symmetric_product(product, p)
        # The Gram matrix of p x is p gram p, and p commutes with gram; after the last step nobody reads it.
        if step < steps - 1:
            gram = symmetric_product(symmetric_product(gram, p), p)
    assert product is not None
    return product @ x


def schedule(coefficients: Coefficients, steps: int) -> list[tuple[float, float, float]]:
    """Return (a, b, c) of each step; the last polynomial of the list repeats."""
    polynomials = POLYNOMIALS[coefficients]
    return [polynomials[min(step, len(polynomials) - 1)] for step in range(steps)]


def symmetric_product(
    a: Tensor, b: Tensor, plus: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0
) -> Tensor:
    """alpha a b + beta plus for a result known to be symmetric.  (N, n, k), (N, k, n) -> (N, n, n).

    On the CPU the blocks below the diagonal are copied from those above, not computed.
    """
    n = a.shape[-2]
    # Two blocks leave out one of four.
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
