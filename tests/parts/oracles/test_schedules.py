"""Schedules at every step against closed forms, torch and transformers, and properties for random settings."""

import functools
import itertools
import math
import warnings

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR, ReduceLROnPlateau

from ablatio.registry import rules
from ablatio.registry.kinds import schedules

TOTALS = [1, 2, 3, 7, 20, 100, 1920]


def factors(name, total, **knobs):
    schedule = schedules.build(name, knobs)
    return [schedule(step, total) for step in range(total)]


@pytest.mark.oracle("schedule=cosine", "closed form by half angles")
@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_equals_its_closed_form(total, warmup, final):
    rise = round(warmup * total)
    up = [(s + 1) / rise for s in range(rise)]
    fall = total - rise
    span = max(1, fall - 1)
    down = [final + (1 - final) * math.cos(math.pi / 2 * i / span) ** 2 for i in range(fall)]  # half-angle form
    assert factors("cosine", total, warmup=warmup, final=final) == pytest.approx(up + down, abs=1e-12)


@pytest.mark.oracle("schedule=constant", "closed form")
@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
def test_constant_equals_its_closed_form(total, warmup):
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


def theirs(make, total, peak=1.0):
    """Factors of a torch or transformers scheduler at steps 0 to total - 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the scheduler warns if optimizer.step() was not called first
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
        scheduler, seen = make(optimizer), []
        for _ in range(total):
            seen.append(optimizer.param_groups[0]["lr"] / peak)
            scheduler.step()
    return seen


def assert_falls_like(make, ours, rise, total):
    """Compare despite an offset of one step: transformers' warm-up starts at 0 and its decay ends after the last step.

    Ours starts at 1 / n and ends at the last step.
    """
    up = theirs(lambda o: make(o, rise, total), rise + 1)[1:]
    down = theirs(lambda o: make(o, rise, total - 1), total)[rise:]
    assert ours == pytest.approx(up + down, abs=1e-9)


RISES = [(20, 0), (100, 5), (100, 30), (1920, 96)]


@pytest.mark.oracle("schedule=linear", "transformers linear schedule")
@pytest.mark.parametrize("total, rise", RISES)
def test_linear_equals_transformers(total, rise):
    ours = factors("linear", total, warmup=rise / total)
    assert_falls_like(transformers.get_linear_schedule_with_warmup, ours, rise, total)


@pytest.mark.oracle("schedule=polynomial", "transformers polynomial schedule")
@pytest.mark.parametrize("total, rise", RISES)
@pytest.mark.parametrize("power, final", [(1.0, 0.2), (2.0, 0.0), (3.0, 0.1)])
def test_polynomial_equals_transformers(total, rise, power, final):
    make = functools.partial(transformers.get_polynomial_decay_schedule_with_warmup, power=power, lr_end=final)
    ours = factors("polynomial", total, warmup=rise / total, power=power, final=final)
    assert_falls_like(lambda o, n, m: make(o, num_warmup_steps=n, num_training_steps=m), ours, rise, total)


@pytest.mark.oracle("schedule=inverse_sqrt", "transformers inverse_sqrt schedule")
@pytest.mark.parametrize("total, rise", RISES)
@pytest.mark.parametrize("timescale", [4, 50])
def test_inverse_sqrt_equals_transformers_one_step_later(total, rise, timescale):
    timescale = min(timescale, total)
    make = functools.partial(transformers.get_inverse_sqrt_schedule, num_warmup_steps=rise, timescale=timescale)
    ours = factors("inverse_sqrt", total, warmup=rise / total, timescale=timescale / total)
    assert ours == pytest.approx(theirs(make, total + 1)[1:], abs=1e-12)


@pytest.mark.oracle("schedule=noam", "the paper's formula")
@pytest.mark.parametrize("total, rise", [(100, 4), (1000, 40), (50, 50)])
@pytest.mark.parametrize("d_model", [64, 512])
def test_noam_is_the_formula_of_the_paper_over_its_peak(total, rise, d_model):
    rates = [d_model**-0.5 * min(s**-0.5, s * rise**-1.5) for s in range(1, total + 1)]  # arXiv:1706.03762, (3)
    expected = [r / (d_model * rise) ** -0.5 for r in rates]
    assert factors("noam", total, warmup=rise / total) == pytest.approx(expected, abs=1e-12)


@pytest.mark.oracle("schedule=wsd", "transformers WSD schedule")
@pytest.mark.parametrize("total, rise, fall", [(100, 5, 10), (200, 0, 40), (50, 25, 25)])
@pytest.mark.parametrize("shape, name", [("linear", "linear"), ("cosine", "cosine"), ("sqrt", "1-sqrt")])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_wsd_equals_transformers_one_step_later(total, rise, fall, shape, name, final):
    """Transformers' warm-up starts at min_lr_ratio and ours at 1 / n, so the warm-up is compared with the ratio 0."""

    def make(optimizer, ratio):
        steps = {"num_warmup_steps": rise, "num_decay_steps": fall, "num_training_steps": total}
        return transformers.get_wsd_schedule(optimizer, **steps, decay_type=name, min_lr_ratio=ratio)

    expected = theirs(lambda o: make(o, 0.0), rise + 1)[1:] + theirs(lambda o: make(o, final), total + 1)[rise + 1 :]
    ours = factors("wsd", total, warmup=rise / total, decay=fall / total, shape=shape, final=final)
    assert ours == pytest.approx(expected, abs=1e-9)


@pytest.mark.oracle("schedule=power", "the paper's formula")
@pytest.mark.parametrize("total, rise, fall, flat, exponent", [(100, 5, 10, 10, 0.51), (400, 0, 0, 100, 0.3)])
def test_power_is_the_minimum_of_cap_and_law(total, rise, fall, flat, exponent):
    """arXiv:2408.13359, eq. 4: min(eta_max, beta a n^b) over eta_max; the law reaches the cap at step `flat`."""
    cap, a = 0.02, 4.6
    beta = cap / (a * flat**-exponent)
    law = [min(cap, beta * a * n**-exponent) / cap for n in range(1, total + 1)]
    ends = [min(n / rise if rise else 1, (total - n) / fall if fall else 1, 1) for n in range(1, total + 1)]
    shares = {"warmup": rise / total, "decay": fall / total, "flat": flat / total}
    expected = [x * y for x, y in zip(law, ends, strict=True)]
    assert factors("power", total, **shares, exponent=exponent) == pytest.approx(expected, abs=1e-12)


@pytest.mark.oracle("schedule=cyclic", "torch CyclicLR")
@pytest.mark.parametrize("cycles, period", [(4, 10), (3, 8), (1, 40)])
@pytest.mark.parametrize("mode, gain", [("triangular", 1.0), ("triangular2", 0.5)])
def test_cyclic_equals_torch_cyclic_lr(cycles, period, mode, gain):
    make = functools.partial(
        CyclicLR, base_lr=0.1, max_lr=1.0, step_size_up=period // 2, mode=mode, cycle_momentum=False
    )
    expected = theirs(make, cycles * period)
    assert factors("cyclic", cycles * period, cycles=cycles, low=0.1, gain=gain) == pytest.approx(expected, abs=1e-9)


@pytest.mark.oracle("schedule=restarts", "torch CosineAnnealingWarmRestarts")
@pytest.mark.parametrize("first, growth, cycles", [(10, 1, 4), (5, 2, 3), (7, 3, 2)])
@pytest.mark.parametrize("low", [0.0, 0.2])
def test_restarts_equal_torch_warm_restarts(first, growth, cycles, low):
    total = sum(first * growth**k for k in range(cycles))
    make = functools.partial(CosineAnnealingWarmRestarts, T_0=first, T_mult=growth, eta_min=low)
    ours = factors("restarts", total, warmup=0.0, cycles=cycles, growth=growth, low=low)
    assert ours == pytest.approx(theirs(make, total), abs=1e-9)


def test_restarts_return_to_one():
    ours = factors("restarts", 100, warmup=0.2, cycles=4)
    assert [i for i, f in enumerate(ours) if f == pytest.approx(1)] == [19, 20, 40, 60, 80]


@given(
    name=st.sampled_from(["linear", "polynomial", "wsd", "power"]), total=st.integers(10, 400), warmup=st.floats(0, 0.8)
)
def test_decays_end_at_final(name, total, warmup):
    knobs = {"decay": 0.2} if name in ("wsd", "power") else {}
    values = factors(name, total, warmup=warmup, final=0.0, **knobs)
    assert values[-1] == pytest.approx(0, abs=1e-12) and all(0 <= v <= 1 for v in values)


def test_warm_up_and_decay_must_fit():
    assert "wsd" in schedules.names()  # loads the plugins, and so their rules
    wrong = {"schedule": {"name": "wsd", "warmup": 0.5, "decay": 0.6}}
    (problem,) = rules.violated_rules(wrong)
    assert "1.1" in problem.what and problem.fix == "schedule.decay=0.5"
    wrong["schedule"]["decay"] = 0.5
    assert not rules.violated_rules(wrong)


@pytest.mark.oracle("schedule=plateau", "torch ReduceLROnPlateau")
@settings(deadline=None)
@given(
    scores=st.lists(st.floats(0.1, 5.0), max_size=60),
    patience=st.integers(0, 4),
    gain=st.sampled_from([0.0, 1e-3, 0.2]),
    cooldown=st.integers(0, 3),
    factor=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_plateau_equals_torch_reduce_on_plateau(scores, patience, gain, cooldown, factor):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience, threshold=gain, cooldown=cooldown, min_lr=0.05, eps=0.0
    )
    knobs = {"patience": patience, "gain": gain, "cooldown": cooldown, "factor": factor, "final": 0.05, "warmup": 0.1}
    ours = schedules.build("plateau", knobs)
    for count in range(len(scores) + 1):
        assert ours(50, 100, scores[:count]) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        assert ours(4, 100, scores[:count]) == pytest.approx(0.5 * optimizer.param_groups[0]["lr"], rel=1e-12)
        if count < len(scores):
            theirs.step(scores[count])
