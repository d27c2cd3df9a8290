import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import attentions
from ablatio.model.attention.kernels import merge_heads, split_heads
from ablatio.model.context import Context


@attentions.register("elu_kernel", paper="arXiv:2006.16236")
class EluKernel(nn.Module):
    """sum_s<=t phi(q_t) . phi(k_s) v_s / sum_s<=t phi(q_t) . phi(k_s), phi = elu + 1.  (B, T, D) -> same."""

    caches, takes_bias, takes_segments, bidirectional = False, False, False, False

    def __init__(self, d_model: int, d_head: int, n_heads: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d_model, n_heads * d_head, bias=False) for _ in "qkv")
        self.o_proj, self.d_head = nn.Linear(n_heads * d_head, d_model, bias=False), d_head

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        q, k, v = (split_heads(p(x), self.d_head) for p in (self.q_proj, self.k_proj, self.v_proj))  # (B, H, T, d_head)
        weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-1, -2)).tril()  # (B, H, T, T)
        return self.o_proj(merge_heads(weights / weights.sum(-1, keepdim=True) @ v))
