from typing import Annotated

from ablatio import Range, schedules


@schedules.register("triangle", paper="arXiv:1708.07120")
def triangle(
    step: int, total: int, *, peak: Annotated[float, Range(0.01, 0.99), "share of the run that rises"] = 0.3
) -> float:
    """Rises from near 0 to 1 over the first `peak` of the run, then falls to 0, both linearly."""
    done = (step + 1) / total
    return min(1.0, done / peak) if done <= peak else max(0.0, (1 - done) / (1 - peak))
