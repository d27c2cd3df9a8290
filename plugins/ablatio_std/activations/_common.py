"""Functions that torch's CPU kernels are slow at, on kernels that are fast; elsewhere torch's own.

An elementwise function costs what it moves through memory, fresh memory above all, and the one transcendental in it.
torch's CPU kernels vectorise exp and sigmoid well and tanh badly, and the backward of a square is that of any power.
Forward and backward, eager, tanh-GELU takes 1.7 to 2.9 times as long as erf-GELU, here 0.7 to 1.3; mish 4 to 7 times,
here 0.9 to 2; relu(x)^2 takes 8 to 15 times as long as relu, here 0.9 to 1.5.
"""

import math
from collections.abc import Callable
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio.model.cost.meta_tensors import is_meta_tensor

Fill = Callable[[Tensor, Tensor, Tensor | None], None]
PIECE = 1 << 17  # numbers: half a MiB of float32, and of Python's overhead a fiftieth
STEEP, CUBIC = math.sqrt(8 / math.pi), 0.044715


def gelu(x: Tensor, approximate: str) -> Tensor:
    """x Phi(x); with "tanh", x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2.  Any shape."""
    if approximate == "tanh" and _on_cpu(x):
        return _ByItsSlope.apply(x, _tanh_gelu)
    return F.gelu(x, approximate=approximate)


def mish(x: Tensor) -> Tensor:
    """x tanh(log(1 + e^x)).  Any shape."""
    return _ByItsSlope.apply(x, _mish) if _on_cpu(x) else F.mish(x)


def relu2(x: Tensor) -> Tensor:
    """max(0, x)^2.  Any shape."""
    return _ReLU2.apply(x)[0] if _on_cpu(x) else F.relu(x).square()


def _on_cpu(x: Tensor) -> bool:
    """A compiler fuses the plain form better, low precision would round between the passes, and of a large shape
    without numbers each piece would be traced.
    """
    wide = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return wide and not torch.compiler.is_compiling() and not is_meta_tensor(x)


class _ByItsSlope(torch.autograd.Function):
    """y = f(x) that keeps f'(x) in place of x: as much memory, and backward is one product, in place.

    f(x, y, slope) fills the last two, or y alone when slope is None because nothing is trained; it gets a piece at a
    time, which its passes find in the processor's cache.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, fill: Fill) -> Tensor:
        x = x.contiguous()
        y, slope = torch.empty_like(x), torch.empty_like(x) if ctx.needs_input_grad[0] else None
        pieces = [repeat(None) if t is None else t.view(-1).split(PIECE) for t in (x, y, slope)]
        for piece in zip(*pieces, strict=False):
            fill(*piece)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # once_differentiable would let a gradient that is constant in x pass
            raise RuntimeError("tanh-GELU and mish keep no second derivative on the CPU; activation=gelu has one")
        (slope,) = ctx.saved_tensors
        kept = torch._C._autograd._get_current_graph_task_keep_graph()  # for a second backward pass
        return grad * slope if kept else slope.mul_(grad), None


def _tanh_gelu(x: Tensor, y: Tensor, slope: Tensor | None) -> None:
    """(1 + tanh(z / 2)) / 2 = sigmoid(z), so y = x s with s = sigmoid(z), and y' = s + x z' s (1 - s)."""
    steep = x.new_full((), STEEP)
    s = torch.addcmul(steep, x, x, value=STEEP * CUBIC, out=y).mul_(x).sigmoid_()
    if slope is not None:
        torch.addcmul(steep, x, x, value=3 * STEEP * CUBIC, out=slope).mul_(x)  # x z'
        torch.ops.aten.sigmoid_backward(slope, s, grad_input=slope).add_(s)
    s.mul_(x)


def _mish(x: Tensor, y: Tensor, slope: Tensor | None) -> None:
    """tanh(log(1 + e^x)) = w / v with s = sigmoid(x), w = s (2 - s), v = 2 - w: nothing here overflows or cancels."""
    s = torch.sigmoid(x)
    w = torch.sub(2, s, out=y).mul_(s)
    v = 2 - w
    t = w.div_(v)
    if slope is not None:
        torch.ops.aten.sigmoid_backward(x, s, grad_input=slope).mul_(1 - s).div_(v).div_(v).mul_(4)  # x t'
        slope.add_(t)
    t.mul_(x)


class _ReLU2(torch.autograd.Function):
    """max(0, x)^2 and r = max(0, x), which alone is kept: backward is one pass over it, 2 r dy, in its own memory.

    r is an output so that it has a derivative, for those who want a second one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        r = torch.relu(x)
        ctx.save_for_backward(r)
        ctx.set_materialize_grads(False)
        return r * r, r

    @staticmethod
    def backward(ctx: Any, d_square: Tensor | None, d_r: Tensor | None) -> Tensor | None:
        (r,) = ctx.saved_tensors
        kept = torch._C._autograd._get_current_graph_task_keep_graph()
        if d_square is not None and d_r is None and not kept and not torch.is_grad_enabled():
            return torch.addcmul(r.new_zeros(()), r, d_square, value=2, out=r.detach())
        parts = [p * d for p, d in ((2 * r, d_square), (r > 0, d_r)) if d is not None]
        return sum(parts[1:], parts[0]) if parts else None
