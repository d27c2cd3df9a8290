"""Biases on the attention logits that depend on the distance of query and key: (H, T, S), or (B, H, T, S) when packed.

A new bias is a function of `distances(q_pos, k_pos)`, (1, T, S) or (B, 1, T, S), with the heads in place of the 1.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ablatio import Positive, Range, positions, rule
from ablatio_std.positions._common import distances, sinusoids


@positions.register("alibi", paper="arXiv:2108.12409")
class Alibi(nn.Module):
    """logits[h, t, s] += -m_h |t - s| with m_h = 2^(-8 h / H), h = 1 ... H; no trained parameters.

    If H is not a power of two: the slopes of the next lower power, then every second slope of twice that power.
    """

    slopes: Tensor

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        # Not persistent: the slopes follow from the number of heads, and checkpoints of other libraries do not have
        # them.
        self.register_buffer("slopes", torch.tensor(alibi_slopes(n_heads))[:, None, None], persistent=False)

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return -self.slopes * distances(q_pos, k_pos).abs()

    def pair_bias(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        slopes = self.slopes[:, 0, 0]
        return lambda head, query, key: -slopes[head] * (query - key).abs()


def alibi_slopes(n_heads: int) -> list[float]:
    """Slope m_h of each head as in the published code, also for numbers of heads that are no powers of two."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    # Every second slope of 2 x power heads: 2^(-8 (i + 1) / (2 power)) for i = 0, 2, 4 ... lies between those above.
    return slopes + [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (n_heads - power), 2)]


@positions.register("t5", paper="arXiv:1910.10683")
class T5Bias(nn.Module):
    """logits[h, t, s] += table[bucket(s - t), h]: one bucket for each short distance, logarithmic ones for longer.

    All distances beyond `max_distance` share the last bucket.  All layers share one table, as in T5.
    """

    def __init__(
        self,
        n_heads: int,
        causal: bool,
        *,
        buckets: Annotated[int, Range(4, 4096)] = 32,
        max_distance: Annotated[int, Positive] = 128,
    ) -> None:
        super().__init__()
        self.causal, self.buckets, self.max_distance = causal, buckets, max_distance
        self.relative_attention_bias = nn.Embedding(buckets, n_heads)

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        bucket = self.bucket(distances(q_pos, k_pos).squeeze(-3))
        table: Tensor = self.relative_attention_bias(bucket)  # (..., T, S, H)
        return table.movedim(-1, -3)

    def bucket(self, distance: Tensor) -> Tensor:
        """Bucket index of each distance (query - key).  Any shape -> the same."""
        count, offset = self.buckets, torch.zeros_like(distance)
        if not self.causal:  # half of the buckets are for keys after the query
            count //= 2
            offset = (distance < 0).long() * count
        # Keys after the query are masked in a causal model; clamped, their index is valid.
        distance = distance.abs() if not self.causal else distance.clamp(min=0)
        exact = count // 2
        # clamp: the logarithm of 0 would be an invalid index, even in the branch that is not taken.
        far = (distance.clamp(min=1).float() / exact).log() / math.log(self.max_distance / exact) * (count - exact)
        logarithmic = (exact + far.long()).clamp(max=count - 1)
        return offset + torch.where(distance < exact, distance, logarithmic)


rule(
    when="position.name == 't5' and position.max_distance * 2 <= position.buckets",
    why="t5 uses one bucket for each of the first {position.buckets // 2} distances, so "
    "position.max_distance={position.max_distance} must be larger than that",
    fix="position.max_distance={position.buckets * 4}",
)


@positions.register("kerple", paper="arXiv:2205.09921")
class Kerple(nn.Module):
    """logits[h, t, s] += -a_h log(1 + b_h |t - s|) (form=log), or -a_h |t - s|^(2 b_h) (form=power, b_h < 1).

    a_h and b_h are trained and kept positive by their parametrization: a = exp(.), b = exp(.) or sigmoid(.).
    Initial values as in the authors' code: a uniform in (0, 2), b uniform in (0, 1).
    """

    def __init__(
        self, n_heads: int, *, form: Annotated[Literal["log", "power"], "logarithmic or power kernel"] = "log"
    ) -> None:
        super().__init__()
        # Away from 0 and 1, whose logarithm and logit are infinite.
        self.form, initial = form, torch.rand(2, n_heads).clamp(min=0.01, max=0.99)
        self.a = nn.Parameter((2 * initial[0]).log())
        self.b = nn.Parameter(initial[1].log() if form == "log" else initial[1].logit())

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = distances(q_pos, k_pos).abs()
        a, b = self.a.exp()[:, None, None], self.b[:, None, None]
        if self.form == "log":
            # log1p, so that distance 0 has exactly the bias 0.
            return -a * (b.exp() * distance).log1p()
        return -a * distance ** (2 * b.sigmoid())


@positions.register("sandwich", paper="arXiv:2212.10356")
class Sandwich(nn.Module):
    """logits[h, t, s] += (p_t . p_s - w/2) / (8 h / H), p_t sinusoids of width w, h = 1 ... H; no trained parameters.

    p_t . p_s = sum_i cos((t - s) / base^(2i/w)), i = 1 ... w/2, is w/2 at distance 0 and falls about as log |t - s|.
    """

    scales: Tensor

    def __init__(
        self,
        n_heads: int,
        *,
        width: Annotated[int, Range(2), "width w of the sinusoids; even"] = 128,
        base: Annotated[float, Range(1, open_low=True)] = 10000.0,
    ) -> None:
        super().__init__()
        self.width, self.base = width, base
        scales = n_heads / (8 * torch.arange(1, n_heads + 1))
        self.register_buffer("scales", scales[:, None, None], persistent=False)

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        # The paper's i starts at 1, that of sinusoids() at 0: the scaled positions shift every frequency by one step.
        p_q, p_k = (
            sinusoids(pos.double() / self.base ** (2 / self.width), self.width, self.base) for pos in (q_pos, k_pos)
        )
        # In float64: the sum of w/2 cosines near 1 loses the small differences between near distances in float32.
        decrease = p_q @ p_k.mT - self.width / 2  # (..., T, S)
        return self.scales * decrease.to(self.scales.dtype).unsqueeze(-3)


rule(
    when="position.name == 'sandwich' and position.width % 2 == 1",
    why="sandwich uses a sine and a cosine for each frequency, so position.width={position.width} must be even",
    fix="position.width={position.width + 1}",
)


@positions.register("fire", paper="arXiv:2310.04418")
class Fire(nn.Module):
    """logits[h, t, s] += f_h(log(1 + c |t - s|) / log(1 + c max(t, L))), f an MLP with one hidden layer (ReLU).

    The distance is relative to the query's position t, so that the inputs of f stay in the range seen in training when
    texts get longer; below the threshold L it is relative to L.  c and L are trained.
    """

    def __init__(
        self,
        n_heads: int,
        *,
        hidden: Annotated[int, Positive, "width of the hidden layer of f"] = 32,
        c: Annotated[float, Positive, "initial value of c"] = 0.1,
        threshold: Annotated[float, Positive, "initial value of L"] = 512.0,
    ) -> None:
        super().__init__()
        # L is trained as a factor on its start, as in the authors' code: a step of Adam moves it by a share, not by lr
        # tokens.
        self.c, self.threshold = nn.Parameter(torch.tensor([c])), nn.Parameter(torch.ones(1))
        self.start = threshold
        # As vectors they keep the initial values of a layer with one input; an init for wide matrices would make them
        # close to zero.
        self.slope, self.offset = (nn.Parameter(torch.empty(hidden).uniform_(-1, 1)) for _ in range(2))
        self.out = nn.Linear(hidden, n_heads)

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = distances(q_pos, k_pos).squeeze(-3).abs()
        scale = torch.maximum(q_pos, (self.threshold * self.start).abs())[..., None]
        # Absolute values, since the trained c and L may change sign; the clamp is for a trained c or L near 0.
        x = (self.c.abs() * distance).log1p() / (self.c.abs() * scale).log1p().clamp(min=1e-6)  # (..., T, S)
        f: Tensor = self.out((x[..., None] * self.slope + self.offset).relu())
        return f.movedim(-1, -3)
