"""Schedules against closed forms at every step, and what holds for any setting."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablatio.kinds import schedules

TOTALS = [1, 2, 3, 7, 20, 100, 1920]


def factors(name, total, **knobs):
    schedule = schedules.build(name, knobs)
    return [schedule(step, total) for step in range(total)]


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_in_closed_form(total, warmup, final):
    rise = round(warmup * total)
    up = [(s + 1) / rise for s in range(rise)]
    fall = total - rise
    span = max(1, fall - 1)
    down = [final + (1 - final) * math.cos(math.pi / 2 * i / span) ** 2 for i in range(fall)]  # half-angle form
    assert factors("cosine", total, warmup=warmup, final=final) == pytest.approx(up + down, abs=1e-12)


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
def test_constant_in_closed_form(total, warmup):
    rise = round(warmup * total)
    expected = [(s + 1) / rise for s in range(rise)] + [1.0] * (total - rise)
    assert factors("constant", total, warmup=warmup) == pytest.approx(expected, abs=1e-12)


@given(total=st.integers(2, 500), warmup=st.floats(0, 0.9), final=st.floats(0, 1))
def test_cosine_rises_strictly_peaks_at_one_and_ends_at_final(total, warmup, final):
    values, rise = factors("cosine", total, warmup=warmup, final=final), round(warmup * total)
    assert all(a < b for a, b in itertools.pairwise(values[:rise]))
    assert all(0 <= v <= 1 + 1e-12 for v in values) and max(values) == pytest.approx(1)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(values[rise:]))
    if total - rise > 1:
        assert values[-1] == pytest.approx(final, abs=1e-12)


@given(name=st.sampled_from(["cosine", "constant"]), total=st.integers(3, 200), beyond=st.integers(0, 50))
def test_steps_past_the_end_keep_the_last_factor(name, total, beyond):
    schedule = schedules.build(name, {})
    assert schedule(total + beyond, total) == pytest.approx(schedule(total - 1, total))
