"""Attention over blocks of keys that each query chooses: mixture of block attention, native sparse attention."""

from typing import Annotated, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Range, attentions
from ablatio.model.attention.kernels import AttentionView, merge_heads, repeated, split_heads
from ablatio.model.attention.softmax_attention import BY_HEADS, AttentionWiring, KVHeads, QKNorm, SoftmaxAttention
from ablatio.model.context import Context
from ablatio_std.attentions._blocks import Blocks, best
from ablatio_std.attentions._patterns import near, near_pairs

Block = Annotated[int | None, Range(1), "tokens in a block of a document; null: model.max_len / 16"]


@attentions.register("moba", paper="arXiv:2502.13189")
class MixtureOfBlocks(SoftmaxAttention):
    """softmax(q k^T) v over the query's own block and the `top_k` - 1 earlier ones with the largest q . mean(k).

    The mean is that of the block's keys, after positions rotate them; each query head chooses for itself.  With as
    many blocks as the text has, it is attention=mha.
    """

    cross = False
    bidirectional = False
    takes_values = True
    waits = "how many blocks a row has depends on the lengths of its documents"
    column_parallel, row_parallel, replicated = BY_HEADS

    def __init__(
        self,
        *,
        block: Block = None,
        top_k: Annotated[int, Range(1), "blocks that a query sees, its own included"] = 3,
        n_kv_heads: KVHeads = None,
        qk_norm: QKNorm = "none",
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(n_kv_heads or wiring["n_heads"], qk_norm=qk_norm, **wiring)
        self.block, self.top_k = block or max(1, wiring["max_len"] // 16), top_k

    def place(
        self, q: Tensor, k: Tensor, v: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor, Context | AttentionView]:
        q, k, v = ctx.place(self.layer, q, k, v)
        blocks = Blocks.of(ctx, self.block)
        # The choice is discrete: keys learn through the attention, as in the paper.
        with torch.no_grad():
            means = repeated(blocks.sums(k) / self.block, q.shape[1])  # of full blocks, which alone are compared
            # Complete blocks before the query's own: the mean of a block with later keys would show the future.
            earlier = blocks.until(ctx, blocks.start, strictly=True)
            scores = (q @ means.mT).masked_fill(~earlier, float("-inf"))  # (B, H, T, N)
            seen = blocks.shown(best(scores, self.top_k - 1) | blocks.own(ctx))
        return q, k, v, AttentionView.of(ctx, seen)

    def hidden_flops(self, ctx: Context) -> int:
        """FLOPs of the pairs of T x S that no query chooses: 4 d_head for each pair and head."""
        length = ctx.length
        heads = self.o_proj.in_features // self.d_head
        return 4 * self.d_head * heads * (length * length - _chosen_pairs(length, self.block, self.top_k))


def _chosen_pairs(length: int, block: int, count: int) -> int:
    """Pairs of a query and a key of its own block, or of up to `count` - 1 earlier ones, before the causal mask."""
    sizes = [min(block, length - start) for start in range(0, length, block)]
    return sum(size * (size + block * min(count - 1, i)) for i, size in enumerate(sizes))


class _Compression(nn.Module):
    """W_2 gelu(W_1 [x_1; ...; x_size]) of each block: (B, H, N, size, F) -> (B, H, N, F)."""

    def __init__(self, size: int, width: int, bias: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(size * width, width, bias=bias), nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.down(F.gelu(self.up(x.flatten(-2))))
        return made


@attentions.register("nsa", paper="arXiv:2502.11089")
class NativeSparse(SoftmaxAttention):
    """g_c o_c + g_s o_s + g_w o_w: attention to compressed blocks, to the keys of chosen blocks and to a window (NSA).

    g = sigmoid(g_proj x), a gate for each branch and head; each branch has its own keys and values.

    o_c  a block's keys become one, k_c = W_2 gelu(W_1 [k_1; ...; k_block]), and likewise its values; a query sees the
         blocks that are complete at its token
    o_s  the keys of `top_k` blocks: the document's first, the query's own, and those with the largest probabilities in
         o_c, summed over the query heads that share a key-value head
    o_w  the last `window` keys

    The blocks of o_c are those of o_s and do not overlap, a case of the paper's.  Decoding caches the keys and values
    of all branches and compresses them in each pass.
    """

    takes_bias = False
    cross = False
    bidirectional = False
    takes_values = True
    waits = "how many blocks a row has depends on the lengths of its documents"

    def __init__(
        self,
        *,
        block: Block = None,
        top_k: Annotated[int, Range(2), "blocks that a query sees in full, its own and the first included"] = 4,
        window: Annotated[int | None, Range(1), "tokens in the window; null: model.max_len / 8"] = None,
        n_kv_heads: KVHeads = None,
        qk_norm: QKNorm = "none",
        **wiring: Unpack[AttentionWiring],
    ) -> None:
        super().__init__(3 * (n_kv_heads or wiring["n_heads"]), qk_norm=qk_norm, **wiring)
        width, longest = wiring["d_head"], wiring["max_len"]
        self.block, self.top_k, self.window = block or max(1, longest // 16), top_k, window or max(1, longest // 8)
        self.g_proj = nn.Linear(wiring["d_model"], 3 * wiring["n_heads"], bias=wiring["bias"])
        self.k_compression, self.v_compression = (_Compression(self.block, width, wiring["bias"]) for _ in "kv")

    def heads(self, x: Tensor, ctx: Context) -> Tensor:
        q, (k, v) = self.queries(x), self.keys_values(x, ctx)
        q, k, v = ctx.place(self.layer, q, k, v)
        (k_c, k_s, k_w), (v_c, v_s, v_w) = k.chunk(3, dim=1), v.chunk(3, dim=1)  # (B, H_kv, S, d_head) each
        blocks, groups = Blocks.of(ctx, self.block), k_c.shape[1]
        compressed, shares = self.compressed(q, k_c, v_c, blocks, ctx)
        # The compressed branch has the gradient of its own output; the choice made of its probabilities has none.
        with torch.no_grad():
            scores = shares.unflatten(1, (groups, -1)).sum(2)  # (B, H_kv, T, N)
            known = blocks.until(ctx, blocks.start)
            needed = known & (blocks.own(ctx) | (blocks.start == 0)[:, None, None])
            # The own and the first block are in the top_k always: infinite scores win any comparison.
            scores = scores.masked_fill(needed, float("inf")).masked_fill(~known, float("-inf"))
            seen = repeated(blocks.shown(best(scores, self.top_k)), q.shape[1])
        window = AttentionView.of(ctx, near(ctx.q_pos[..., :, None], ctx.k_pos[..., None, :], self.window), self.window)
        chosen = self.mix(q, k_s, v_s, AttentionView.of(ctx, seen))
        branches = torch.stack([compressed, chosen, self.mix(q, k_w, v_w, window)], dim=-1)  # (B, H, T, d_head, 3)
        gates = split_heads(self.g_proj(x).sigmoid(), 3)  # (B, H, T, 3)
        return merge_heads((branches * gates[..., None, :].to(branches.dtype)).sum(-1))

    def compressed(self, q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, ctx: Context) -> tuple[Tensor, Tensor]:
        """Attention to the compressed blocks, (B, H, T, d_head), and its probabilities, (B, H, T, N)."""
        k, v = self.k_compression(blocks.gathered(k)), self.v_compression(blocks.gathered(v))
        k, v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
        seen = blocks.until(ctx, blocks.start + self.block - 1) & blocks.full[:, None, None]
        scores = (q * self.scale) @ k.to(q.dtype).mT
        # A query before the end of the first block sees none: its probabilities are 0, not those of a softmax.
        shares = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1) * seen
        return shares.to(v.dtype) @ v, shares

    def hidden_flops(self, ctx: Context) -> int:
        """FLOPs of the pairs that no query chooses and of those outside the window: 4 d_head for each pair and head."""
        length = ctx.length
        shown = _chosen_pairs(length, self.block, self.top_k) + near_pairs(length, self.window)
        return 4 * self.d_head * (self.o_proj.in_features // self.d_head) * (2 * length * length - shown)
