"""Schedules: (step, total) -> the factor on the learning rate."""

import math

from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts
from ablatio.testing.observe import TOTALS

KINDS = ("schedule",)


def test_factors_are_shares(part: PartSpec) -> None:
    schedule = sample_parts.schedule(part)
    for total in TOTALS:
        for step in range(total):
            factor = schedule(step, total)
            where = f"step {step} of {total}"
            number = isinstance(factor, int | float)
            assert number, f"{checks.label(part)}: {where} gives {type(factor).__name__}; expected a number"
            good = 0 <= factor <= 1 + 1e-9
            assert good, f"{checks.label(part)}: {where} gives {factor}; expected 0 ... 1 (the peak is optimizer.lr)"


def test_peaks(part: PartSpec) -> None:
    """optimizer.lr is the peak: some step of a long run comes near it."""
    schedule = sample_parts.schedule(part)
    top = max(schedule(step, 1000) for step in range(1000))
    assert top > 0.9, f"{checks.label(part)}: the largest factor in 1000 steps is {top:.3g}; expected about 1"


def test_goes_on_after_the_end(part: PartSpec) -> None:
    schedule = sample_parts.schedule(part)
    for total in TOTALS:
        for step in (total, total + 1, 2 * total + 7):
            factor = schedule(step, total)
            good = math.isfinite(factor) and factor >= 0
            assert good, f"{checks.label(part)}: step {step} of {total} gives {factor}; expected 0 or more"


def test_has_no_memory(part: PartSpec) -> None:
    """Factors do not depend on earlier calls: a resumed run starts at step 500."""
    forward, backward = sample_parts.schedule(part), sample_parts.schedule(part)
    there = [forward(step, 50) for step in range(50)]
    back = [backward(step, 50) for step in reversed(range(50))][::-1]
    wrong = [i for i, (a, b) in enumerate(zip(there, back, strict=True)) if a != b]
    assert not wrong, f"{checks.label(part)}: steps {wrong[:5]} of 50 depend on what was asked before"


def test_scores_are_only_read(part: PartSpec) -> None:
    """Equal scores give equal factors, and the scores are not modified."""
    for count in range(12):
        scores = [3.0, 2.0, *[1.9] * count]
        first, again = (sample_parts.schedule(part, scores=scores)(40, 50) for _ in range(2))
        good = first == again and 0 <= first <= 1 + 1e-9
        assert good, (
            f"{checks.label(part)}: after {len(scores)} scores it gives {first} and {again}, one share expected"
        )
        assert scores == [3.0, 2.0, *[1.9] * count], f"{checks.label(part)}: changes the scores that it is handed"
