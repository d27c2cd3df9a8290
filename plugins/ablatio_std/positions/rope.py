"""Rotary positions, and their extension to longer contexts (the formulas are in scaling.py)."""

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, Range, Schedulable, positions, rule
from ablatio.model.number_format import precise
from ablatio_std.positions._common import Layout, frequencies, rotate_pairs
from ablatio_std.positions.scaling import LENGTH_DEPENDENT, METHODS, Extension, Scaling, attention_scale


@positions.register("rope", paper="arXiv:2104.09864")
class Rope(nn.Module):
    """Rotate pair i of q_t and k_t by the angle t * base^(-2i/d): logits then depend on distances only.

    q and k, (B, H, T, d_head) each -> same.  d = fraction * d_head features of each head are rotated.  Pair i is
    features (2i, 2i+1) as in the paper (layout=interleaved), or (i, i + d/2) as in transformers' Llama (layout=half):
    the same model with permuted rows of q_proj and k_proj.

    `scaling` lowers the frequencies, so that a model trained at `original_max_len` reads `factor` times as many tokens:
    linear 2306.15595; ntk, dynamic and yarn 2309.00071; llama3 2407.21783; longrope 2402.13753.  With skip_every=n the
    layers n, 2n, ... (counted from 1) have no positions (2501.18795; n = 4 in SmolLM3 and Llama 4).
    """

    rotates_cached_keys = False
    splits_heads = True

    def __init__(
        self,
        d_head: int,
        max_len: int,
        *,
        base: Annotated[float, Range(1, open_low=True), Schedulable()] = 10000.0,
        fraction: Annotated[float, Range(0, 1, open_low=True), "share of each head's features that is rotated"] = 1.0,
        layout: Layout = "interleaved",
        scaling: Annotated[Scaling, "method of extension beyond the length trained at"] = "none",
        factor: Annotated[float, Range(1), Schedulable(), "extended length / length trained at"] = 4.0,
        original_max_len: Annotated[int | None, Range(2), "length trained at; null: model.max_len"] = None,
        beta_fast: Annotated[float, Positive, "yarn: pairs with more turns are unchanged"] = 32.0,
        beta_slow: Annotated[float, Positive, "yarn: pairs with fewer turns are interpolated"] = 1.0,
        low_freq_factor: Annotated[float, Positive, "llama3: pairs with fewer turns are interpolated"] = 1.0,
        high_freq_factor: Annotated[float, Positive, "llama3: pairs with more turns are unchanged"] = 4.0,
        short_factors: Annotated[list[float] | None, Positive, "longrope: one for all pairs, or one for each"] = None,
        long_factors: Annotated[list[float] | None, Positive, "longrope: the same beyond the original length"] = None,
        attention_factor: Annotated[float | None, Positive, "factor on q and on k; null: that of `scaling`"] = None,
        skip_every: Annotated[int | None, Range(2), "every n-th layer has no positions; null: all have"] = None,
        truncate: Annotated[bool, "yarn: round the ends of the ramp to whole pairs"] = True,
    ) -> None:
        super().__init__()
        self.width, self.base, self.factor, self.layout = int(d_head * fraction), base, factor, layout
        self._extension = Extension(
            base, factor, original_max_len or max_len, beta_fast, beta_slow, low_freq_factor, high_freq_factor,
            short_factors, long_factors, truncate,
        )  # fmt: skip
        self.scaling, self.scaled = scaling, METHODS[scaling]
        self.rotates_cached_keys, self.skip_every = scaling in LENGTH_DEPENDENT, skip_every
        self._attention_factor = attention_factor

    @property
    def extension(self) -> Extension:
        """Settings of the extension, with the base and the factor of this step."""
        return replace(self._extension, base=self.base, factor=self.factor)

    @property
    def attention_factor(self) -> float:
        """Factor on q and on k: the knob's, else that of the method of extension."""
        return self._attention_factor or attention_scale(self.scaling, self.extension)

    def skips(self, layer: int) -> bool:
        return self.skip_every is not None and (layer + 1) % self.skip_every == 0

    def prepare(self, pos: Tensor, dtype: torch.dtype, length: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles, times attention_factor: (T, d/2), or (B, 1, T, d/2) for positions (B, T)."""
        # Angles in float64: position times frequency loses whole digits in float32 for long texts.
        w = self.scaled(frequencies(self.width, self.base, pos.device), self.extension, length[..., None])
        angles, scale = pos[..., None] * w, self.attention_factor
        if pos.dim() == 2:
            angles = angles[:, None]
        return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)

    def rotate(self, q: Tensor, k: Tensor, pos: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        # The model passes prepared tables: computing them in each layer would cost a compiled layer more than anything
        # but its matrix products.
        dtype = precise(q.dtype)
        cos, sin = self.prepare(pos, dtype, pos.amax(-1, keepdim=True) + 1) if isinstance(pos, Tensor) else pos
        return rotate_pairs(q, cos, sin, self.layout), rotate_pairs(k, cos, sin, self.layout)


rule(
    when="position.name == 'rope'",
    unless="int(model.d_head * position.fraction) % 2 == 0 and int(model.d_head * position.fraction) > 0",
    why="rope rotates pairs of features, so d_head * fraction must be even: {model.d_head} * {position.fraction} = "
    "{int(model.d_head * position.fraction)}",
    fix="position.fraction={(int(model.d_head * position.fraction) // 2 * 2 + 2) / model.d_head if "
    "int(model.d_head * position.fraction) + 1 <= model.d_head else (model.d_head // 2 * 2) / model.d_head}",
)
rule(
    when="position.name == 'rope' and position.scaling == 'yarn' and position.beta_fast <= position.beta_slow",
    why="yarn keeps pairs with more than beta_fast turns and interpolates those with fewer than beta_slow, so "
    "position.beta_fast={position.beta_fast} must be larger than position.beta_slow={position.beta_slow}",
    fix="position.beta_fast={position.beta_slow * 32}",
)
rule(
    when="position.name == 'rope' and position.scaling == 'llama3' and "
    "position.high_freq_factor <= position.low_freq_factor",
    why="llama3 keeps pairs with more than high_freq_factor turns and interpolates those with fewer than "
    "low_freq_factor, so position.high_freq_factor={position.high_freq_factor} must be larger than "
    "position.low_freq_factor={position.low_freq_factor}",
    fix="position.high_freq_factor={position.low_freq_factor * 4}",
)
rule(
    when=f"position.name == 'rope' and position.scaling in {list(LENGTH_DEPENDENT)} "
    "and not facts.attention.rotates_cached_keys",
    why="position.scaling={position.scaling} rotates all keys again when the text grows, and "
    "attention={attention.name} rotates each key only once",
    fix="position.scaling=ntk",
    where="position.scaling",
)
rule(
    when=f"position.name == 'rope' and position.scaling in {list(LENGTH_DEPENDENT)} "
    "and facts.strategy.splits == 'tokens' and trainer.devices * trainer.nodes > 1",
    why="position.scaling={position.scaling} rotates all keys by the length of the text, and strategy={strategy.name} "
    "divides its tokens over {trainer.devices * trainer.nodes} devices",
    fix="strategy=fsdp",
    where="position.scaling",
)
for _name in ("short_factors", "long_factors"):
    rule(
        when=f"position.name == 'rope' and position.scaling == 'longrope' and "
        f"len(position.{_name}) not in (1, int(model.d_head * position.fraction) // 2)",
        why=f"longrope takes one factor or one for each pair: position.{_name} has {{len(position.{_name})}} factors "
        f"for {{int(model.d_head * position.fraction) // 2}} pairs",
        fix=f"position.{_name}=[1.0]",
    )
