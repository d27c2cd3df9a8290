"""The learning rate over the run, as a factor on its peak."""

import math
from typing import Annotated

from ablatio import Fraction, schedules

WarmUp = Annotated[float, Fraction, "share of all steps during which the rate rises"]


def rising(step: int, total: int, warmup: float) -> float:
    """From 1/n to 1 over the n warm-up steps, then 1."""
    steps = round(warmup * total)
    return min(1.0, (step + 1) / steps) if steps else 1.0


@schedules.register("cosine", paper="arXiv:1608.03983")
def cosine(
    step: int, total: int, *, warmup: WarmUp = 0.05, final: Annotated[float, Fraction, "the last factor"] = 0.1
) -> float:
    """Linear warm-up to 1, then half a cosine down to `final` at the last step."""
    start = round(warmup * total)
    if step < start:
        return rising(step, total, warmup)
    progress = min(1.0, (step - start) / max(1, total - 1 - start))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


@schedules.register("constant", paper="arXiv:1706.03762")
def constant(step: int, total: int, *, warmup: WarmUp = 0.05) -> float:
    """Linear warm-up to 1, then 1."""
    return rising(step, total, warmup)
