"""Rotary positions, and their extension to longer texts (the formulas stand in scaling.py)."""

from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, Range, positions, rule
from ablatio_std.positions._common import Layout, frequencies, turn
from ablatio_std.positions.scaling import BY_LENGTH, METHODS, Extension, Scaling, sharpness

FromOne = Range(1)


@positions.register("rope", paper="arXiv:2104.09864")
class Rope(nn.Module):
    """Turn pair i of q_t, k_t by the angle t * base^(-2i/d); scores then depend on distances only.

    (B, H, T, d_head) each -> same.  `fraction` of each head is turned.  `interleaved` pairs (2i, 2i+1) as the paper;
    `half` pairs (i, i + d/2) as transformers' Llama does: the same model with the rows of q_proj and k_proj permuted.

    `scaling` slows the angles, so that a model trained at `original_max_len` reads `factor` times as much: linear
    2306.15595, ntk, dynamic and yarn 2309.00071, llama3 2407.21783, longrope 2402.13753.  With `skip_every` = n layers
    n, 2n ... have no positions at all (2501.18795; n = 4 in SmolLM3 and Llama 4).
    """

    rotates_cached_keys = False

    def __init__(
        self,
        d_head: int,
        max_len: int,
        *,
        base: Annotated[float, Range(1, open_low=True)] = 10000.0,
        fraction: Annotated[float, Range(0, 1, open_low=True), "share of each head that is turned"] = 1.0,
        layout: Layout = "interleaved",
        scaling: Annotated[Scaling, "how it reads beyond the length it was trained at"] = "none",
        factor: Annotated[float, FromOne, "length to be read / length trained at"] = 4.0,
        original_max_len: Annotated[int | None, Range(2), "length trained at; by default model.max_len"] = None,
        beta_fast: Annotated[float, Positive, "yarn: pairs of more turns stay as they are"] = 32.0,
        beta_slow: Annotated[float, Positive, "yarn: pairs of fewer turns are interpolated"] = 1.0,
        low_freq_factor: Annotated[float, Positive, "llama3: pairs of fewer turns are interpolated"] = 1.0,
        high_freq_factor: Annotated[float, Positive, "llama3: pairs of more turns stay as they are"] = 4.0,
        short_factors: Annotated[list[float] | None, Positive, "longrope: one for all pairs, or one for each"] = None,
        long_factors: Annotated[list[float] | None, Positive, "longrope: the same beyond the original length"] = None,
        attention_factor: Annotated[float | None, Positive, "on q and on k; by default the scaling's own"] = None,
        skip_every: Annotated[int | None, Range(2), "every n-th layer is not turned; null: all are"] = None,
    ) -> None:
        super().__init__()
        self.width, self.base, self.layout = int(d_head * fraction), base, layout
        self.extension = Extension(
            base, factor, original_max_len or max_len, beta_fast, beta_slow, low_freq_factor, high_freq_factor,
            short_factors, long_factors,
        )  # fmt: skip
        self.slow, self.rotates_cached_keys, self.skip_every = METHODS[scaling], scaling in BY_LENGTH, skip_every
        self.attention_factor = attention_factor or sharpness(scaling, self.extension)

    def skips(self, layer: int) -> bool:
        return self.skip_every is not None and (layer + 1) % self.skip_every == 0

    def prepare(self, pos: Tensor, dtype: torch.dtype, length: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each angle: (T, d/2), or (B, 1, T, d/2) for all heads of a row."""
        slowed = self.slow(frequencies(self.width, self.base, pos.device), self.extension, length[..., None])
        angles = pos[..., None] * slowed
        if pos.dim() == 2:
            angles = angles[:, None]
        return (angles.cos() * self.attention_factor).to(dtype), (angles.sin() * self.attention_factor).to(dtype)

    def rotate(self, q: Tensor, k: Tensor, pos: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        # Made here, the tables would cost a compiled layer more than all else but its matrix products.
        prepared = self.prepare(pos, q.dtype, pos.amax(-1, keepdim=True) + 1) if isinstance(pos, Tensor) else pos
        cos, sin = (t.to(q.dtype) for t in prepared)
        return turn(q, cos, sin, self.layout), turn(k, cos, sin, self.layout)


rule(
    when="position.name == 'rope'",
    unless="int(model.d_head * position.fraction) % 2 == 0 and int(model.d_head * position.fraction) > 0",
    why="rope turns pairs, so d_head * fraction must be even: {model.d_head} * {position.fraction} = "
    "{int(model.d_head * position.fraction)}",
    fix="position.fraction={(int(model.d_head * position.fraction) // 2 * 2 + 2) / model.d_head if "
    "int(model.d_head * position.fraction) + 1 <= model.d_head else (model.d_head // 2 * 2) / model.d_head}",
)
rule(
    when="position.name == 'rope' and position.scaling == 'yarn' and position.beta_fast <= position.beta_slow",
    why="yarn keeps pairs of more than beta_fast turns and interpolates those of fewer than beta_slow, so "
    "beta_fast={position.beta_fast} must be larger than beta_slow={position.beta_slow}",
    fix="position.beta_fast={position.beta_slow * 32}",
)
rule(
    when="position.name == 'rope' and position.scaling == 'llama3' and "
    "position.high_freq_factor <= position.low_freq_factor",
    why="llama3 keeps pairs of more than high_freq_factor turns and interpolates those of fewer than low_freq_factor, "
    "so high_freq_factor={position.high_freq_factor} must be larger than {position.low_freq_factor}",
    fix="position.high_freq_factor={position.low_freq_factor * 4}",
)
rule(
    when=f"position.name == 'rope' and position.scaling in {list(BY_LENGTH)} "
    "and not facts.attention.rotates_cached_keys",
    why="scaling={position.scaling} turns all keys anew when a text grows, and attention={attention.name} turns each "
    "once",
    fix="position.scaling=ntk",
    where="position.scaling",
)
for _name in ("short_factors", "long_factors"):
    rule(
        when=f"position.name == 'rope' and position.scaling == 'longrope' and "
        f"len(position.{_name}) not in (1, int(model.d_head * position.fraction) // 2)",
        why=f"longrope takes one factor, or one for each pair: {{len(position.{_name})}} came for "
        f"{{int(model.d_head * position.fraction) // 2}} pairs",
        fix=f"position.{_name}=[1.0]",
    )
