"""Scores that depend on the distance of query and key and on their contents: (B, H, T, S), computed in each layer.

They are added to q.k / sqrt(d_head), so every score here is divided by sqrt(d_head) as well where its paper does.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Positive, Range, positions, rule
from ablatio_std.positions._common import distances, sinusoids


@positions.register("shaw", paper="arXiv:1803.02155")
class Shaw(nn.Module):
    """score[t, s] = q_t . a[clip(t - s, -K, K)] / sqrt(d_head), K = `max_distance`; one table for heads and layers.

    The paper's table for the keys.  Its second table, which is added to the values, brought no gain in the paper.
    """

    splits_heads = True

    def __init__(
        self,
        d_head: int,
        causal: bool,
        *,
        max_distance: Annotated[int, Positive, "longer distances use the vector of this one"] = 16,
    ) -> None:
        super().__init__()
        self.least, self.most = 0 if causal else -max_distance, max_distance
        self.table = nn.Embedding(self.most - self.least + 1, d_head)

    def score(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        # Products with the table first, then a gather: (T, distances) numbers instead of (T, S, d_head).
        by_distance = q / math.sqrt(q.shape[-1]) @ self.table.weight.T  # (B, H, T, 2K + 1)
        return _gather(by_distance, distances(q_pos, k_pos).clamp(self.least, self.most) - self.least, k).to(q.dtype)


@positions.register("transformer_xl", paper="arXiv:1901.02860")
class TransformerXL(nn.Module):
    """score[t, s] = (u . k_s + (q_t + v) . W r_{t-s}) / sqrt(d_head), r_n the sinusoids of n: (D,).

    u, v (H, d_head) and W (D -> H d_head) are trained and shared by all layers.  Distances beyond `clamp` count as
    `clamp`, as in the authors' evaluation.
    """

    splits_heads = True
    column_parallel = ("u", "v", "r_proj")

    def __init__(
        self,
        d_model: int,
        d_head: int,
        n_heads: int,
        max_len: int,
        causal: bool,
        *,
        clamp: Annotated[int | None, Positive, "longest distance of its own; null: model.max_len"] = None,
    ) -> None:
        super().__init__()
        self.d_model, self.d_head, self.most = d_model, d_head, clamp or max_len
        self.least = 0 if causal else -self.most
        self.u, self.v = (nn.Parameter(0.02 * torch.randn(n_heads * d_head)) for _ in range(2))
        self.r_proj = nn.Linear(d_model, n_heads * d_head, bias=False)

    def score(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        # The small tensors are scaled: a pass over (B, H, T, S) costs as much as a matrix product.
        scale = 1 / math.sqrt(self.d_head)
        u, v = (w.view(-1, 1, self.d_head) * scale for w in (self.u, self.v))  # (H, 1, d_head)
        steps = torch.arange(self.least, self.most + 1, device=q.device)
        # Projected once for each distance, not for each pair of positions.
        r = self.r_proj(sinusoids(steps, self.d_model, 10000.0).to(self.r_proj.weight.dtype))
        r = r.view(len(steps), -1, self.d_head).transpose(0, 1)  # (H, distances, d_head)
        by_distance = (q * scale + v) @ r.mT  # (B, H, T, distances)
        index = distances(q_pos, k_pos).clamp(self.least, self.most) - self.least
        return _gather(by_distance, index, k).add_(u @ k.mT).to(q.dtype)


rule(
    when="position.name == 'transformer_xl' and model.d_model % 2 == 1",
    why="transformer_xl uses a sine and a cosine for each frequency, so model.d_model={model.d_model} must be even",
    fix="model.d_model={model.d_model + 1}",
)


@positions.register("cope", paper="arXiv:2405.18719")
class Cope(nn.Module):
    """score[t, s] = q_t . e[p_ts], p_ts = sum of sigmoid(q_t . k_j / sqrt(d_head)) over j = s ... t.

    The position p_ts is the number of keys between s and t that query t counts, each weighted by its gate.  e is
    interpolated between integers, and positions are clamped at `max_positions` - 1.  All heads and layers share one
    table (max_positions, d_head).
    """

    splits_heads = True

    def __init__(
        self, d_head: int, *, max_positions: Annotated[int, Range(2), "number of vectors in the table"] = 64
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(max_positions, d_head)

    def score(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        # Keys are flipped, last first, so that counts from t back to s are cumulative sums.
        gates = (q / math.sqrt(q.shape[-1]) @ k.flip(2).mT).sigmoid() * self._counted(
            q_pos, k_pos, q.shape[2], k.shape[2]
        )
        # At least float32: a sum of many gates in bfloat16 stops growing at 256.
        count = gates.cumsum(-1, dtype=torch.promote_types(q.dtype, torch.float32))
        count = count.clamp(max=len(self.table.weight) - 1)  # (B, H, T, S)
        # Linear interpolation of the logits is that of the vectors, as q . e is linear in e: (T, max_positions)
        # products serve all keys. The index has no gradient; the share between two integers has.
        at_integers, index = q @ self.table.weight.T, count.detach().long()  # (B, H, T, max_positions), (B, H, T, S)
        step = F.pad(at_integers.diff(dim=-1), (0, 1))
        score = torch.addcmul(at_integers.gather(-1, index), count.frac().to(step.dtype), step.gather(-1, index))
        return score.flip(-1).to(q.dtype)

    def _counted(self, q_pos: Tensor, k_pos: Tensor, queries: int, keys: int) -> Tensor:
        """True for keys of the query's document up to the query: (1, T, S) or (B, 1, T, S), the last key first.

        Several queries are the last of the keys.  After a single one there may be keys of tokens to come, which
        continue its document.  q_pos is the number of earlier tokens in a query's document.
        """
        index = torch.arange(keys - queries, keys, device=q_pos.device)
        index = index if queries > 1 else index - (k_pos[..., -1:] - q_pos)
        place = torch.arange(keys, device=q_pos.device).flip(0)
        distance = (index[..., :, None] - place).unsqueeze(-3)  # (1, T, S) or (B, 1, T, S)
        return (distance >= 0) & (distance <= q_pos[..., :, None].unsqueeze(-3))


rule(
    when="position.name == 'cope' and facts.architecture.mask != 'causal'",
    why="cope counts keys from the query back, and with architecture={architecture.name} queries also attend to keys "
    "after them",
    fix="position=shaw",
)


def _gather(by_distance: Tensor, index: Tensor, k: Tensor) -> Tensor:
    """Take by_distance (B, H, T, N) at index (1, T, S) or (B, 1, T, S): (B, H, T, S)."""
    shape = (*by_distance.shape[:-1], k.shape[2])
    return by_distance.gather(-1, index.expand(shape) if index.dim() == 4 else index[None].expand(shape))
