"""Softmax attention whose heads work together: heads that share keys in pairs, heads mixed by input-dependent maps."""

from typing import Annotated, Any, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions, rule
from ablatio.model.attention.kernels import AttentionView, attend_by_steps, merge_heads
from ablatio.model.attention.softmax_attention import AttentionWiring, KVHeads, QKNorm, SoftmaxAttention
from ablatio.model.context import Context
from ablatio_std.attentions._common import rms


@attentions.register("paired_heads")
class PairedHeads(SoftmaxAttention):
    """One softmax over the keys of heads 2p and 2p + 1: a query has two logits for each earlier token.

    The keys of a pair stand in the order k_1^2p, k_1^{2p+1}, k_2^2p, ..., and a query sees those up to its own, so that
    head 2p + 1 sees the token's key of head 2p but not the other way round.  Positions rotate both keys of a token by
    the same angle; in the source they are at 2t and 2t + 1.

    Source: modded-nanogpt, record of 2026-01-07, https://github.com/KellerJordan/modded-nanogpt/pull/191
    """

    cross = False
    bidirectional = False
    takes_values = True

    def __init__(self, *, qk_norm: QKNorm = "none", **wiring: Unpack[AttentionWiring]) -> None:
        super().__init__(wiring["n_heads"], qk_norm=qk_norm, **wiring)

    def place(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor, Context | AttentionView]:
        q, k, v = ctx.place(self.layer, q, k, v)
        view = ctx.shared(("paired heads", q.shape[1]), lambda: _paired_view(ctx, q.shape[1]))
        return q, _with_partner(k), _with_partner(v), view


def _with_partner(x: Tensor) -> Tensor:
    """Append the tokens of the other head of each pair: (B, H, S, d_head) -> (B, H, 2 S, d_head)."""
    # Behind all own keys, not between them: the order does not matter to a softmax, and the mask says what is seen.
    return torch.cat([x, x.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)], dim=2)


def _paired_view(ctx: Context, heads: int) -> AttentionView:
    """Mask and bias over the keys of a head and of its partner; an even head sees the partner's earlier keys only."""
    earlier = ctx.k_pos[..., None, :] < ctx.q_pos[..., :, None]
    earlier = earlier[:, None] if earlier.dim() == 3 else earlier[None, None]  # (B or 1, 1, T, S)
    own = torch.ones_like(earlier) if ctx.visible is None else ctx.visible & torch.ones_like(earlier)
    # Even heads stand first in each pair: their partner's key of the same token comes after their own.
    both = torch.cat([own & earlier, own], dim=1).repeat(1, heads // 2, 1, 1)  # (B or 1, H, T, S)
    visible = torch.cat([own.expand_as(both), both], dim=-1)
    bias = None if ctx.bias is None else torch.cat([ctx.bias, ctx.bias], dim=-1)
    return AttentionView(visible, bias, ctx.position, ctx.q_pos, torch.cat([ctx.k_pos, ctx.k_pos], dim=-1))


rule(
    when="attention.name == 'paired_heads' and model.n_heads % 2 != 0",
    why="heads attend in pairs, and model.n_heads={model.n_heads} is odd",
    fix="attention=mha",
    where="attention",
)
rule(
    when="attention.name == 'paired_heads' and 'score' in facts.position.uses",
    why="position={position.name} scores each token once, and in attention=paired_heads each has two keys",
    fix="position=rope",
    where="position",
)


@attentions.register("dcmha", paper="arXiv:2405.08553")
class DynamicallyComposed(SoftmaxAttention):
    """mix'(softmax(mix(q k^T))) v, the maps across heads depending on the query's and the key's token (DCMHA).

    mix(A)_h = A_h + sum_r (sum_i A_i u_ri) w_rh + A_h g_h, once with u, w, g of the query's token and once with those
    of the key's: u, w = gelu(x W_1) W_2 in `rank` (rank, H) matrices, u normalized to RMS 1 over the heads; g = tanh(x
    W_g).  Logits are mixed before bias and mask.  There is no static map, as by default in the authors' code.
    """

    cross = False
    bidirectional = False
    takes_values = True

    def __init__(
        self,
        *,
        rank: Annotated[int, Range(1), "rank of the maps across heads"] = 2,
        sides: Annotated[Literal["both", "logits", "weights"], "which of the two are mixed across heads"] = "both",
        n_kv_heads: KVHeads = None,
        qk_norm: QKNorm = "none",
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(n_kv_heads or wiring["n_heads"], qk_norm=qk_norm, **wiring)
        width, heads = wiring["d_model"], wiring["n_heads"]
        names = [name for name in ("logits", "weights") if sides in ("both", name)]
        self.maps = nn.ModuleDict({f"{name}_{end}": _HeadMaps(width, heads, rank) for name in names for end in "qk"})

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        q, (k, v) = self.queries(x), self.keys_values(x, ctx)
        q, k, v, view = self.place(q, k, v, ctx)
        made = {name: maps(x) for name, maps in self.maps.items()}  # (B, T, 2 rank + 1, H) each
        if ctx.cache is not None:
            of_keys = [name for name in made if name.endswith("k")]
            cached = ctx.cache.state(self.layer)
            # Maps of earlier keys come from the cache, as keys do.
            for i, name in enumerate(of_keys) if cached is not None else ():
                made[name] = torch.cat([cached[i], made[name]], dim=1)  # type: ignore[index]
            ctx.cache.keep(self.layer, *(made[name] for name in of_keys))

        def mixed(name: str) -> Any:
            if f"{name}_q" not in made:
                return None
            return lambda scores: _composed(scores, made[f"{name}_q"], made[f"{name}_k"])

        dropout = self.dropout if self.training else 0.0
        y = attend_by_steps(
            q, k, v, view, scale=self.scale, dropout=dropout, on_scores=mixed("logits"), on_shares=mixed("weights")
        )
        return merge_heads(y)


class _HeadMaps(nn.Module):
    """u, w and g of each token in one tensor: (B, T, D) -> (B, T, 2 rank + 1, H)."""

    def __init__(self, d_model: int, heads: int, rank: int) -> None:
        super().__init__()
        inner = 2 * rank * heads
        self.heads, self.rank = heads, rank
        self.w_1, self.w_2 = nn.Linear(d_model, inner, bias=False), nn.Linear(inner, inner, bias=False)
        self.w_g = nn.Linear(d_model, heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, w = self.w_2(F.gelu(self.w_1(x))).unflatten(-1, (-1, self.heads)).chunk(2, dim=-2)
        return torch.cat([rms(u).to(w.dtype), w, self.w_g(x).tanh()[..., None, :]], dim=-2)


def _composed(scores: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """scores (B, H, T, S), maps of the queries (B, T, 2 rank + 1, H) and of the keys (B, S, 2 rank + 1, H) -> same."""
    query, key = query.to(scores.dtype), key.to(scores.dtype)
    total = scores
    for maps, letter in ((query, "t"), (key, "s")):
        rank = maps.shape[2] // 2
        u, w, g = maps.split([rank, rank, 1], dim=2)
        inner = torch.einsum(f"bhts,b{letter}rh->brts", scores, u)
        gates = g[:, :, 0].transpose(1, 2)  # (B, H, T or S)
        total = total + torch.einsum(f"brts,b{letter}rh->bhts", inner, w)
        total = total + scores * (gates[..., None] if letter == "t" else gates[..., None, :])
    return total
