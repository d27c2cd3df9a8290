"""How the model knows where a token stands: nothing, added vectors, turned queries and keys, biases."""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ablatio import Positive, Range, positions, rule


@positions.register("none", paper="arXiv:2305.19466")
class NoPosition:
    """No signal at all: a causal model can still count (NoPE)."""


@positions.register("learned", paper="arXiv:1706.03762")
class Learned(nn.Module):
    """x_t + table[t], one trained vector for each of `model.max_len` positions.  (B, T, D) -> same."""

    extends = False

    def __init__(self, max_len: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_len, d_model)

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        return x + self.table(pos)


@positions.register("sinusoidal", paper="arXiv:1706.03762")
class Sinusoidal(nn.Module):
    """sqrt(D) x_t + p_t with p_t[2i] = sin(t / base^(2i/D)), p_t[2i+1] = cos of the same.  (B, T, D) -> same.

    The factor on the embeddings is the paper's (section 3.4): without it the signal drowns them at the start.
    """

    def __init__(self, d_model: int, *, base: Annotated[float, Range(1, open_low=True)] = 10000.0) -> None:
        super().__init__()
        self.width, self.base = d_model, base

    def embed(self, x: Tensor, pos: Tensor) -> Tensor:
        angles = _angles(pos, self.width, self.base)  # (..., T, D/2)
        signal = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return math.sqrt(self.width) * x + signal.to(x.dtype)


rule(
    when="position.name == 'sinusoidal' and model.d_model % 2 == 1",
    why="sinusoidal gives each frequency a sine and a cosine, so model.d_model must be even: {model.d_model}",
    fix="model.d_model={model.d_model + 1}",
)


@positions.register("rope", paper="arXiv:2104.09864")
class Rope(nn.Module):
    """Turn pair i of q_t, k_t by the angle t * base^(-2i/d); scores then depend on distances only.

    (B, H, T, d_head) each -> same.  `fraction` of each head is turned.  `interleaved` pairs (2i, 2i+1) as the paper;
    `half` pairs (i, i + d/2) as transformers' Llama does: the same model with the rows of q_proj and k_proj permuted.
    """

    def __init__(
        self,
        d_head: int,
        *,
        base: Annotated[float, Range(1, open_low=True)] = 10000.0,
        fraction: Annotated[float, Range(0, 1, open_low=True), "share of each head that is turned"] = 1.0,
        layout: Literal["interleaved", "half"] = "interleaved",
    ) -> None:
        super().__init__()
        self.width, self.base, self.layout = int(d_head * fraction), base, layout

    def prepare(self, pos: Tensor, dtype: torch.dtype, length: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each angle: (T, d/2), or (B, 1, T, d/2) for all heads of a row."""
        angles = _angles(pos, self.width, self.base)
        if pos.dim() == 2:
            angles = angles[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def rotate(self, q: Tensor, k: Tensor, pos: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        # Made here, the tables would cost a compiled layer more than all else but its matrix products.
        cos, sin = self.prepare(pos, q.dtype, pos) if isinstance(pos, Tensor) else (t.to(q.dtype) for t in pos)
        return self._turn(q, cos, sin), self._turn(k, cos, sin)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turn = _turn_pairs if self.layout == "interleaved" else _turn_halves
        if self.width == x.shape[-1]:
            return turn(x, cos, sin)
        return torch.cat([turn(x[..., : self.width], cos, sin), x[..., self.width :]], dim=-1)


def _turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = x.unflatten(-1, (-1, 2))
    if x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling():
        # One complex product: 0.3x the time of rotate-half.
        wide = torch.view_as_complex(pairs if pairs.stride(-1) == 1 else pairs.contiguous())
        return torch.view_as_real(wide * torch.complex(cos, sin)).flatten(-2)
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def _turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _angles(pos: Tensor, width: int, base: float) -> Tensor:
    """t * base^(-2i / width): (..., T) -> (..., T, width / 2).

    The frequencies are no buffer: `model.to(torch.bfloat16)` would round them, and position 1000 be off by whole turns.
    """
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64, device=pos.device) / width)
    return pos[..., None].double() * frequencies


rule(
    when="position.name == 'rope'",
    unless="int(model.d_head * position.fraction) % 2 == 0 and int(model.d_head * position.fraction) > 0",
    why="rope turns pairs, so d_head * fraction must be even: {model.d_head} * {position.fraction} = "
    "{int(model.d_head * position.fraction)}",
    fix="position.fraction={(int(model.d_head * position.fraction) // 2 * 2 + 2) / model.d_head if "
    "int(model.d_head * position.fraction) + 1 <= model.d_head else (model.d_head // 2 * 2) / model.d_head}",
)


@positions.register("alibi", paper="arXiv:2108.12409")
class Alibi(nn.Module):
    """logits[h, t, s] += -m_h |t - s| with m_h = 2^(-8 h / H), h = 1 ... H; nothing is trained.

    For H that is no power of two: the slopes of the next lower power, then every other slope of twice that power.
    """

    slopes: Tensor

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor(alibi_slopes(n_heads)), persistent=False)

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = (q_pos[..., :, None] - k_pos[..., None, :]).abs()  # (T, S) or (B, T, S)
        return -self.slopes[:, None, None] * distance.unsqueeze(-3)  # (..., H, T, S)


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
        distance = q_pos[..., :, None] - k_pos[..., None, :]  # (..., T, S)
        table: Tensor = self.relative_attention_bias(self.bucket(distance))  # (..., T, S, H)
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
