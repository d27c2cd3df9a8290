"""Schedules: (step, total) -> the factor on the learning rate."""

import math

from ablatio.registry import Entry
from ablatio.testing import probe, samples
from ablatio.testing.observe import TOTALS

KINDS = ("schedule",)


def test_factors_are_shares(part: Entry) -> None:
    schedule = samples.schedule(part)
    for total in TOTALS:
        for step in range(total):
            factor = schedule(step, total)
            where = f"step {step} of {total}"
            number = isinstance(factor, int | float)
            assert number, f"{probe.label(part)}: {where} gives {type(factor).__name__}, a number was expected"
            good = 0 <= factor <= 1 + 1e-9
            assert good, f"{probe.label(part)}: {where} gives {factor}, 0 ... 1 was expected (the peak is optimizer.lr)"


def test_peaks(part: Entry) -> None:
    """optimizer.lr is the peak: some step of a long run comes near it."""
    schedule = samples.schedule(part)
    top = max(schedule(step, 1000) for step in range(1000))
    assert top > 0.9, f"{probe.label(part)}: the largest factor in 1000 steps is {top:.3g}, about 1 was expected"


def test_goes_on_after_the_end(part: Entry) -> None:
    schedule = samples.schedule(part)
    for total in TOTALS:
        for step in (total, total + 1, 2 * total + 7):
            factor = schedule(step, total)
            good = math.isfinite(factor) and factor >= 0
            assert good, f"{probe.label(part)}: step {step} of {total} gives {factor}, a finite share was expected"


def test_has_no_memory(part: Entry) -> None:
    """A resumed run asks for step 500 first."""
    forward, backward = samples.schedule(part), samples.schedule(part)
    there = [forward(step, 50) for step in range(50)]
    back = [backward(step, 50) for step in reversed(range(50))][::-1]
    wrong = [i for i, (a, b) in enumerate(zip(there, back, strict=True)) if a != b]
    assert not wrong, f"{probe.label(part)}: steps {wrong[:5]} of 50 depend on what was asked before"


def test_scores_are_only_read(part: Entry) -> None:
    """Equal scores, equal factors: what a schedule knows of the run is what it is handed."""
    for count in range(12):
        scores = [3.0, 2.0, *[1.9] * count]
        first, again = (samples.schedule(part, scores=scores)(40, 50) for _ in range(2))
        good = first == again and 0 <= first <= 1 + 1e-9
        assert good, f"{probe.label(part)}: after {len(scores)} scores it gives {first} and {again}, one share expected"
        assert scores == [3.0, 2.0, *[1.9] * count], f"{probe.label(part)}: changes the scores that it is handed"
