"""Many feed-forward parts in one: the weights of all experts, and the way of tokens to them and back."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio.model.cost.meta_tensors import is_meta_tensor

from .dense import MlpWiring

BLOCK = 8  # rows; a matrix product of a multiple of these gives each row the same bits, however many stand beside it


class ExpertLinear(nn.Module):
    """y = W_e x + b_e for the rows x of expert e.  (N, in), the rows of expert 0 first, `sizes` of each -> (N, out)."""

    roles: ClassVar = {"bias": "vector"}

    def __init__(self, experts: int, width: int, out: int, bias: bool) -> None:
        super().__init__()
        self.fans = (out, width)
        self.weight = nn.Parameter(torch.empty(experts, out, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.zeros(experts, out)) if bias else None

    def forward(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        # As fast as F.grouped_mm on the CPU, and for any dtype; half the time of picking each expert's rows by index.
        biases = [None] * len(sizes) if self.bias is None else self.bias.unbind()
        parts = zip(rows.split(sizes), self.weight.unbind(), biases, strict=True)
        return torch.cat([F.linear(*part) for part in parts])


class Experts(nn.Module):
    """`experts` feed-forward parts of the dense one's shape: sum_k gates_k * expert_{chosen_k}(x) for each token.

    x (N, D), chosen (N, k) numbers of experts, gates (N, k) -> (N, D).  Tokens are laid out by expert, so each expert
    does one matrix product, and k experts' work is done, whatever the load.  The norm before the last projection and
    what an activation learns are shared by the experts.
    """

    uncompiled = ("each",)  # its shapes follow the loads: a compiled graph would be made anew at each step

    def __init__(
        self,
        experts: int,
        d_model: int,
        d_ff: int,
        activation: Callable[..., Tensor],
        gated: bool,
        bias: bool,
        inner_norm: Callable[[int], nn.Module] | None,
    ) -> None:
        super().__init__()
        self.gate_proj = ExpertLinear(experts, d_model, d_ff, bias) if gated else None
        self.up_proj = ExpertLinear(experts, d_model, d_ff, bias)
        self.down_proj = ExpertLinear(experts, d_ff, d_model, bias)
        self.inner_norm = inner_norm(d_ff) if inner_norm else None
        self.activation, self.experts = activation, experts

    @property
    def expert_parameters(self) -> int:
        """The weights of one expert."""
        parts = (self.gate_proj, self.up_proj, self.down_proj)
        return sum(p.numel() for m in parts if m is not None for p in m.parameters()) // self.experts

    def forward(self, x: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
        k = chosen.shape[1]
        rows = x.repeat_interleave(k, 0) if k > 1 else x  # (N * k, D)
        y = self.each(rows, chosen.flatten()).unflatten(0, (-1, k))  # (N, k, D)
        return (y * gates.to(y.dtype)[..., None]).sum(1)

    def each(self, rows: Tensor, chosen: Tensor) -> Tensor:
        """Every row through its expert: (M, D), (M,) -> (M, D)."""
        place, sizes = _layout(chosen, self.experts)
        y = self._mlp(rows.new_zeros(sum(sizes), rows.shape[1]).index_copy(0, place, rows), sizes)
        return y.index_select(0, place)

    def _mlp(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        up = self.up_proj(rows, sizes)
        inner = self.activation(up) if self.gate_proj is None else self.activation(self.gate_proj(rows, sizes), up)
        y: Tensor = self.down_proj(inner if self.inner_norm is None else self.inner_norm(inner), sizes)
        return y


def _layout(chosen: Tensor, experts: int) -> tuple[Tensor, list[int]]:
    """Where each assignment stands when they are laid out by expert, and the rows of each, filled up to blocks."""
    if is_meta_tensor(chosen):  # there are no loads where nothing is computed
        n = len(chosen)
        return chosen, [n // experts + (i < n % experts) for i in range(experts)]
    hot = F.one_hot(chosen, experts)  # (N, E)
    sizes = (hot.sum(0) + BLOCK - 1) // BLOCK * BLOCK
    earlier = hot.cumsum(0).gather(1, chosen[:, None])[:, 0] - 1
    return (sizes.cumsum(0) - sizes)[chosen] + earlier, sizes.tolist()


def experts_of(wiring: MlpWiring, count: int, width: int) -> Experts:
    """`count` experts of `width` inner units."""
    w = wiring
    return Experts(count, w["d_model"], width, w["activation"], w["gated"], w["bias"], w["inner_norm"])
