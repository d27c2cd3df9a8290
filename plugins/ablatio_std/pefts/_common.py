"""Shared code of the methods: low-rank updates of a frozen linear layer, and export to the library peft."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ablatio.model.cost.meta_tensors import is_meta_tensor
from ablatio.model.number_format import compute_dtype
from ablatio.model.peft.adapters import MatrixAdapter, adapted, bias_of, said, weight_of
from ablatio.registry.knobs import Positive, Range

Rank = Annotated[int, Positive, "rank r of the update"]
Alpha = Annotated[float, Positive, "the update is multiplied by alpha / r"]
Dropout = Annotated[float, Range(0, 1, open_high=True), "dropout probability on the input of the update"]
QUERY_VALUE = ("q_proj", "v_proj")
Layers = dict[str, dict[str, Tensor]]  # path of the layer -> name in peft -> tensor
ToPeft = tuple[dict[str, Any], Layers, set[str] | None]  # see ablatio.interop.peft_export


def to_peft(kind: str, layers: Layers, by_row: set[str] | None, **config: Any) -> ToPeft:
    """Make the result of a method's `to_peft`: peft's config for its type `kind`, and the tensors by peft's names.

    by_row: names of the tensors whose rows belong to output rows of the layer; None if that is not known.
    """
    return {"peft_type": kind, "task_type": "CAUSAL_LM", "inference_mode": True, **config}, layers, by_row


def renamed(model: nn.Module, names: Mapping[str, str]) -> Layers:
    """Collect the parameters of each adapter by their names in peft; names: {peft's name: ours}."""
    return {path: {theirs: a.get_parameter(own) for theirs, own in names.items()} for path, _, a in adapted(model)}


def as_lora(pairs: Mapping[str, tuple[Tensor, Tensor]], scale: float, **config: Any) -> ToPeft:
    """Export low-rank updates scale * B A as peft's LoRA; pairs: {path: (A, B)}."""
    layers = {path: {"lora_A.weight": a, "lora_B.weight": b} for path, (a, b) in pairs.items()}
    rank = len(next(iter(pairs.values()))[0])
    return to_peft("LORA", layers, {"lora_B.weight"}, r=rank, lora_alpha=scale * rank, bias="none", **config)


class LowRank(MatrixAdapter):
    """W x + b + s B A x with A (r, in) and B (out, r).  (..., in) -> (..., out)."""

    column_parallel, row_parallel = ("lora_B",), ("lora_A",)

    def __init__(self, out: int, width: int, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.lora_A = nn.Parameter(torch.empty(rank, width))
        self.lora_B = nn.Parameter(torch.zeros(out, rank))
        # U(-1 / sqrt(in), 1 / sqrt(in)), torch's initial values of a linear layer, as in the authors' code.
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        # Dropout gives the update another input than W has, and other layers compute W x by themselves: no joint kernel
        # then.
        if type(layer) is not nn.Linear or (self.dropout and self.training):
            dropped = F.dropout(x, self.dropout, self.training)
            return said(layer, x) + self.scale * F.linear(F.linear(dropped, self.lora_A), self.lora_B)
        return low_rank_linear(x, weight_of(layer), bias_of(layer), self.lora_A, self.lora_B, self.scale)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.lora_B @ self.lora_A)


class LowRankExperts(LowRank):
    """W_e x + b_e + s B_e A_e x for the rows x of expert e: A (E, r, in), B (E, out, r).  (N, in) -> (N, out)."""

    def __init__(self, experts: int, out: int, width: int, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(out, width, rank, scale, dropout)
        self.lora_A = nn.Parameter(torch.empty(experts, rank, width).uniform_(-(width**-0.5), width**-0.5))
        self.lora_B = nn.Parameter(torch.zeros(experts, out, rank))

    def forward(  # type: ignore[override]
        self, layer: nn.Module, rows: Tensor, sizes: Sequence[int] | Tensor
    ) -> Tensor:
        y, x = said(layer, rows, sizes), F.dropout(rows, self.dropout, self.training)
        if is_meta_tensor(rows):  # no values: one product has the shapes and the FLOPs of all
            return y + self.scale * F.linear(F.linear(x, self.lora_A[0]), self.lora_B[0])
        if isinstance(sizes, Tensor):
            return y + self.scale * self._grouped(x, sizes)
        # Rows are sorted by expert, so that each expert has one product.
        of_expert = zip(x.split(list(sizes)), self.lora_A, self.lora_B, strict=True)
        return y + self.scale * torch.cat([F.linear(F.linear(part, a), b) for part, a, b in of_expert])

    def _grouped(self, x: Tensor, ends: Tensor) -> Tensor:
        """B_e A_e x by grouped products, as the layer itself takes them on a GPU; ends (E,): end of each expert's rows.

        No number is read from the device.
        """
        dtype, more = compute_dtype(x.device, x.dtype), -len(self.lora_A[0]) % 8
        # The kernel takes widths of 16 bytes or multiples: zeros fill the rank up.
        pair = F.pad(self.lora_A, (0, 0, 0, more)), F.pad(self.lora_B, (0, more))
        for matrices in pair:
            x = F.grouped_mm(x.to(dtype), matrices.to(dtype).mT, offs=ends)
            if x.requires_grad:
                x.register_hook(Tensor.contiguous)  # its backward pass takes no broadcast gradient
        return x


def low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """x W^T + bias + scale x A^T B^T with W and bias frozen.  (..., in) -> (..., out)."""
    dtype = compute_dtype(x.device, x.dtype)
    cast = (t if t is None or t.dtype == dtype else t.to(dtype) for t in (x, weight, bias, a, b))
    y: Tensor = _LowRankLinear.apply(*cast, scale)  # type: ignore[no-untyped-call]
    return y


class _LowRankLinear(torch.autograd.Function):
    """Linear layer with a low-rank update, with one pass over a full-width tensor less than autograd in each direction.

    The low-rank products are accumulated into the full-width ones (addmm_).  They are written with the thin matrix on
    the left, which is up to ten times as fast on a CPU: for 1024 x 256 rows and r = 8, projected @ grad takes 76 us and
    grad.T @ projected.T 361 us.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        projected = a @ rows.T  # (r, N)
        y = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)  # (N, out)
        y.addmm_(projected.T, b.T, alpha=scale)
        ctx.save_for_backward(rows, weight, a, b, projected)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, projected = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        d_projected = (b.T.contiguous() @ grad.T).mul_(ctx.scale)  # (r, N)
        # The largest product of the backward pass is left out where nothing before this layer is trained.
        d_x = (grad @ weight).addmm_(d_projected.T, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        d_b = (projected @ grad).mul_(ctx.scale).T
        return d_x, None, None, d_projected @ rows, d_b, None
