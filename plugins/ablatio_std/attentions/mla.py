"""Multi-head latent attention: keys and values are projected from one small cached vector for each token."""

from typing import Annotated, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions, rule
from ablatio.model.attention.kernels import attend, merge_heads, split_heads
from ablatio.model.attention.softmax_attention import AttentionWiring, RMSNorm
from ablatio.model.context import Context


@attentions.register("mla", paper="arXiv:2405.04434")
class MultiHeadLatent(nn.Module):
    """softmax(q k^T) v with c = rmsnorm(kv_proj x), k = [k_proj c, r], v = v_proj c; all heads share r = k_rope_proj x.

    Positions rotate only r and the last d_head features of each query, so that the cache holds c and r: kv_rank +
    d_head numbers for each token.  q is projected from x, or through a latent of width `q_rank`.  The scale of the
    logits is that of heads of width d_head + `nope`.
    """

    cross, splits_tokens = True, True
    column_parallel, row_parallel, enters = ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("k_rope_proj",)

    def __init__(
        self,
        *,
        kv_rank: Annotated[int | None, Range(1), "width of c; null: 4 d_head"] = None,
        q_rank: Annotated[int | None, Range(1), "width of the queries' latent; null: no latent"] = None,
        nope: Annotated[int | None, Range(1), "features of a head's keys without positions; null: d_head"] = None,
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__()
        d_model, heads, width, bias = wiring["d_model"], wiring["n_heads"], wiring["d_head"], wiring["bias"]
        rank, self.nope, self.width = kv_rank or 4 * width, nope or width, width
        self.q_down_proj = nn.Linear(d_model, q_rank, bias=bias) if q_rank else None
        self.q_norm = RMSNorm(q_rank) if q_rank else None
        self.q_proj = nn.Linear(q_rank or d_model, heads * (self.nope + width), bias=bias)
        self.kv_proj, self.k_rope_proj = nn.Linear(d_model, rank, bias=bias), nn.Linear(d_model, width, bias=bias)
        self.kv_norm = RMSNorm(rank)
        self.k_proj, self.v_proj = (nn.Linear(rank, heads * w, bias=False) for w in (self.nope, width))
        self.o_proj = nn.Linear(heads * width, d_model, bias=bias)
        self.inner_norm = wiring["inner_norm"](heads * width) if wiring["inner_norm"] else None
        self.dropout, self.layer = wiring["dropout"], wiring["layer"]
        # scale is 1 / sqrt(d_head) in most models: the quotient makes it 1 / sqrt(d_head + nope).
        self.scale = wiring["scale"] * (width / (width + self.nope)) ** 0.5

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        latent = x if self.q_down_proj is None or self.q_norm is None else self.q_norm(self.q_down_proj(x)).to(x.dtype)
        q = split_heads(self.q_proj(latent), self.nope + self.width)  # (B, H, T, nope + d_head)
        content, rotary = q[..., : self.nope], q[..., self.nope :]
        r, c = ctx.keys_values(self.layer, x, self.latents)
        # c takes the place of the values in the cache; r that of the one key head.
        rotary, r, c = ctx.place(self.layer, rotary.contiguous(), r, c)
        k, v = split_heads(self.k_proj(c[:, 0]), self.nope), split_heads(self.v_proj(c[:, 0]), self.width)
        k = torch.cat([k, r.expand(-1, k.shape[1], -1, -1).to(k.dtype)], dim=-1)  # (B, H, S, nope + d_head)
        q = torch.cat([content, rotary.to(content.dtype)], dim=-1)
        y = merge_heads(attend(q, k, v, ctx, scale=self.scale, dropout=self.dropout if self.training else 0.0))
        y = self.o_proj(y if self.inner_norm is None else self.inner_norm(y))
        return F.dropout(y, self.dropout, self.training) if self.dropout else y

    def latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return r (B, 1, S, d_head) and c (B, 1, S, kv_rank) of x (B, S, D)."""
        down = self.kv_proj(x)
        return self.k_rope_proj(x)[:, None], self.kv_norm(down).to(down.dtype)[:, None]


rule(
    when="attention.name == 'mla' and 'score' in facts.position.uses",
    why="position={position.name} scores queries and keys of width d_head={model.d_head}, and those of mla are wider",
    fix="position=rope",
    where="position",
)
