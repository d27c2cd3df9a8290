"""Biases on the attention logits that depend on the distance of query and key: (H, T, S), or (B, H, T, S) when packed.

A new one says what it makes of `distances(q_pos, k_pos)`, whose axis before the last two stands for the heads.
"""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ablatio import Positive, Range, positions, rule
from ablatio_std.positions._common import distances, waves


@positions.register("alibi", paper="arXiv:2108.12409")
class Alibi(nn.Module):
    """logits[h, t, s] += -m_h |t - s| with m_h = 2^(-8 h / H), h = 1 ... H; nothing is trained.

    For H that is no power of two: the slopes of the next lower power, then every other slope of twice that power.
    """

    slopes: Tensor

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor(alibi_slopes(n_heads))[:, None, None], persistent=False)

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return -self.slopes * distances(q_pos, k_pos).abs()


def alibi_slopes(n_heads: int) -> list[float]:
    """The slope of each head, as published, powers of two or not."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (n_heads - power), 2)]


@positions.register("t5", paper="arXiv:1910.10683")
class T5Bias(nn.Module):
    """logits[h, t, s] += table[bucket(s - t), h]: near distances have a bucket each, far ones share logarithmic ones.

    Beyond `max_distance` all fall into the last bucket.  One table for all layers, as in T5.
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
        """Distances (query - key) -> bucket numbers, of the same shape."""
        count, offset = self.buckets, torch.zeros_like(distance)
        if not self.causal:  # half of the buckets for keys that come after the query
            count //= 2
            offset = (distance < 0).long() * count
        distance = distance.abs() if not self.causal else distance.clamp(min=0)
        exact = count // 2
        far = (distance.clamp(min=1).float() / exact).log() / math.log(self.max_distance / exact) * (count - exact)
        logarithmic = (exact + far.long()).clamp(max=count - 1)
        return offset + torch.where(distance < exact, distance, logarithmic)


rule(
    when="position.name == 't5' and position.max_distance * 2 <= position.buckets",
    why="t5 gives the first {position.buckets // 2} distances a bucket each, so max_distance={position.max_distance} "
    "must be larger",
    fix="position.max_distance={position.buckets * 4}",
)


@positions.register("kerple", paper="arXiv:2205.09921")
class Kerple(nn.Module):
    """logits[h, t, s] += -a_h log(1 + b_h |t - s|) (form=log), or -a_h |t - s|^(2 b_h) (form=power, b_h < 1).

    a_h and b_h are trained, and positive whatever they become: a = exp(.), b = exp(.) or sigmoid(.).
    They start as the authors' code lets them: a uniform in (0, 2), b in (0, 1).
    """

    def __init__(
        self, n_heads: int, *, form: Annotated[Literal["log", "power"], "logarithmic or power kernel"] = "log"
    ) -> None:
        super().__init__()
        self.form, start = form, torch.rand(2, n_heads).clamp(min=0.01, max=0.99)
        self.a = nn.Parameter((2 * start[0]).log())
        self.b = nn.Parameter(start[1].log() if form == "log" else start[1].logit())

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = distances(q_pos, k_pos).abs()
        a, b = self.a.exp()[:, None, None], self.b[:, None, None]
        if self.form == "log":
            return -a * (b.exp() * distance).log1p()
        return -a * distance ** (2 * b.sigmoid())


@positions.register("sandwich", paper="arXiv:2212.10356")
class Sandwich(nn.Module):
    """logits[h, t, s] += (p_t . p_s - w/2) / (8 h / H), p_t sinusoids of width w; h = 1 ... H; nothing is trained.

    p_t . p_s = sum_i cos((t - s) / base^(2i/w)), i = 1 ... w/2, is w/2 at distance 0 and falls about as log |t - s|.
    """

    scales: Tensor

    def __init__(
        self,
        n_heads: int,
        *,
        width: Annotated[int, Range(2), "of the sinusoids; even"] = 128,
        base: Annotated[float, Range(1, open_low=True)] = 10000.0,
    ) -> None:
        super().__init__()
        self.width, self.base = width, base
        scales = n_heads / (8 * torch.arange(1, n_heads + 1))
        self.register_buffer("scales", scales[:, None, None], persistent=False)

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        # Frequencies from i = 1 on: those of waves(), each slower by one step.
        p_q, p_k = (
            waves(pos.double() / self.base ** (2 / self.width), self.width, self.base) for pos in (q_pos, k_pos)
        )
        fall = p_q @ p_k.mT - self.width / 2  # (..., T, S)
        return self.scales * fall.to(self.scales.dtype).unsqueeze(-3)


rule(
    when="position.name == 'sandwich' and position.width % 2 == 1",
    why="sandwich gives each frequency a sine and a cosine, so width must be even: {position.width}",
    fix="position.width={position.width + 1}",
)


@positions.register("fire", paper="arXiv:2310.04418")
class Fire(nn.Module):
    """logits[h, t, s] += f_h(log(1 + c |t - s|) / log(1 + c max(t, L))), f an MLP of one hidden layer (ReLU).

    The distance is taken relative to the query's own position t, so that longer texts look like those of training;
    for t below the threshold L it is not.  c and L are trained.
    """

    def __init__(
        self,
        n_heads: int,
        *,
        hidden: Annotated[int, Positive, "width of the MLP"] = 32,
        c: Annotated[float, Positive, "start of c"] = 0.1,
        threshold: Annotated[float, Positive, "start of L"] = 512.0,
    ) -> None:
        super().__init__()
        self.c, self.threshold = nn.Parameter(torch.tensor([c])), nn.Parameter(torch.ones(1))
        self.start = threshold
        # As vectors these keep the start of a layer with one input; an init for wide matrices would silence them.
        self.slope, self.offset = (nn.Parameter(torch.empty(hidden).uniform_(-1, 1)) for _ in range(2))
        self.out = nn.Linear(hidden, n_heads)

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = distances(q_pos, k_pos).squeeze(-3).abs()
        scale = torch.maximum(q_pos, (self.threshold * self.start).abs())[..., None]
        x = (self.c.abs() * distance).log1p() / (self.c.abs() * scale).log1p().clamp(min=1e-6)  # (..., T, S)
        f: Tensor = self.out((x[..., None] * self.slope + self.offset).relu())
        return f.movedim(-1, -3)
