"""The experts of a mixture: their stacked weights, and the dispatch of tokens to them."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio.model.cost.meta_tensors import is_meta_tensor
from ablatio.model.number_format import compute_dtype

from .dense import MlpWiring

# Each expert's rows are padded to a multiple of this: a row of a matrix product then has the same bits whatever the
# number of the other rows.
BLOCK = 8
READS_LOADS = (
    "the loads of the experts are read to size their products; bfloat16 experts need no reading"  # fact `waits`
)


class ExpertLinear(nn.Module):
    """y = W_e x + b_e for the rows x of expert e.  (N, in) -> (N, out).

    Rows are sorted by expert; `sizes` holds the number of rows of each expert, or, as a tensor on the device, the end
    of each expert's rows for one grouped product.
    """

    roles: ClassVar = {"bias": "vector"}

    def __init__(self, experts: int, width: int, out: int, bias: bool) -> None:
        super().__init__()
        self.fans = (out, width)
        # torch's initial values of a linear layer of this width, for each expert.
        self.weight = nn.Parameter(torch.empty(experts, out, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.zeros(experts, out)) if bias else None

    def forward(self, rows: Tensor, sizes: Sequence[int] | Tensor) -> Tensor:
        if is_meta_tensor(rows):  # no values: one product has the shapes and the FLOPs of all
            return F.linear(rows, self.weight[0], None if self.bias is None else self.bias[0])
        if isinstance(sizes, Tensor):
            return self._grouped(rows, sizes)
        # As fast as F.grouped_mm on the CPU, and for any dtype; half the time of gathering each expert's rows by index.
        biases = [None] * len(sizes) if self.bias is None else self.bias.unbind()
        per_expert = zip(rows.split(sizes), self.weight.unbind(), biases, strict=True)
        return torch.cat([F.linear(*inputs) for inputs in per_expert])

    def _grouped(self, rows: Tensor, ends: Tensor) -> Tensor:
        """The same with ends (E,) of the experts' rows; no number is read from the device."""
        dtype = compute_dtype(rows.device, rows.dtype)
        y = F.grouped_mm(rows.to(dtype), self.weight.to(dtype).mT, offs=ends)
        if y.requires_grad:
            y.register_hook(Tensor.contiguous)  # the kernel of the backward pass takes no broadcast gradient
        if self.bias is None:
            return y
        expert = torch.bucketize(torch.arange(len(rows), device=rows.device), ends, right=True)
        return y + F.embedding(expert, self.bias).to(dtype)  # its gradient is summed in a fixed order


class Experts(nn.Module):
    """sum_k gates_k * expert_{chosen_k}(x) for each token, over `experts` experts of the dense layer's form.

    x (N, D), chosen (N, k) expert indices, gates (N, k) -> (N, D).  Rows are sorted by expert, so that each expert
    needs one matrix product for each projection, and the total work is that of k experts for each token whatever the
    load.  The experts share the norm before down_proj and the parameters of the activation.
    """

    uncompiled = ("each",)  # its shapes depend on the loads: torch.compile would compile it again at every step

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
        """Number of parameters of one expert."""
        projections = (self.gate_proj, self.up_proj, self.down_proj)
        return sum(p.numel() for m in projections if m is not None for p in m.parameters()) // self.experts

    def forward(self, x: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
        k = chosen.shape[1]
        rows = x.repeat_interleave(k, 0) if k > 1 else x  # (N * k, D)
        y = self.each(rows, chosen.flatten()).unflatten(0, (-1, k))  # (N, k, D)
        return (y * gates.to(y.dtype)[..., None]).sum(1)

    def each(self, rows: Tensor, chosen: Tensor) -> Tensor:
        """Apply to each row the expert chosen for it: rows (M, D), chosen (M,) -> (M, D)."""
        slot, sizes, count = _sort_by_expert(chosen, self.experts, read=not self._takes_groups(rows))
        y = self._mlp(rows.new_zeros(count, rows.shape[1]).index_copy(0, slot, rows), sizes)
        return y.index_select(0, slot)

    def _takes_groups(self, rows: Tensor) -> bool:
        """True if F.grouped_mm has a kernel for these rows: bfloat16 on a GPU, in widths of 16 bytes or multiples."""
        widths = {n for m in (self.up_proj, self.down_proj) for n in m.weight.shape[1:]}
        bfloat16 = compute_dtype(rows.device, rows.dtype) == torch.bfloat16
        return rows.device.type != "cpu" and bfloat16 and all(n % 8 == 0 for n in widths)

    def _mlp(self, rows: Tensor, sizes: Sequence[int] | Tensor) -> Tensor:
        up = self.up_proj(rows, sizes)
        inner = self.activation(up) if self.gate_proj is None else self.activation(self.gate_proj(rows, sizes), up)
        y: Tensor = self.down_proj(inner if self.inner_norm is None else self.inner_norm(inner), sizes)
        return y


def _sort_by_expert(chosen: Tensor, experts: int, *, read: bool = True) -> tuple[Tensor, list[int] | Tensor, int]:
    """Sort assignments (M,) by expert.

    Returns each one's row, (M,); each expert's rows, a multiple of BLOCK; and the number of rows.  With read=False the
    loads stay on the device: the end of each expert's rows, (E,), and as many rows as any loads may need, of which the
    last expert has the rest.
    """
    n = len(chosen)
    if is_meta_tensor(chosen):  # a meta tensor has no loads: count even ones
        return chosen, [n // experts + (i < n % experts) for i in range(experts)], n
    # A cumulative sum of one-hot rows numbers the rows of each expert: a stable sort without a sort.
    hot = F.one_hot(chosen, experts)  # (M, E)
    sizes = (hot.sum(0) + BLOCK - 1) // BLOCK * BLOCK  # (E,)
    earlier = hot.cumsum(0).gather(1, chosen[:, None])[:, 0] - 1  # (M,), rows of the same expert before this one
    ends = sizes.cumsum(0)
    slot = (ends - sizes)[chosen] + earlier
    if read:
        loads = sizes.tolist()
        return slot, loads, sum(loads)
    # Each expert pads fewer than BLOCK rows.
    most = -(-(n + experts * (BLOCK - 1)) // BLOCK) * BLOCK
    return slot, torch.cat([ends[:-1], ends.new_full((1,), most)]).int(), most


def build_experts(wiring: MlpWiring, count: int, width: int) -> Experts:
    """Build `count` experts with `width` inner units each."""
    w = wiring
    return Experts(count, w["d_model"], width, w["activation"], w["gated"], w["bias"], w["inner_norm"])
