"""Stabilizers step by step, against Python's `statistics` and loops; whole runs are tested in tests/training."""

import math
import random
import statistics

import pytest
import torch

from ablatio.model.optimizer_step import OptimizerStep, Rewind, SkipStep
from ablatio.registry.kinds import stabilizers


def step_with(gradients, loss=0.0):
    """An optimizer step with these gradients and this loss."""
    parameters = [torch.nn.Parameter(torch.zeros(len(g), dtype=torch.float64)) for g in gradients]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = torch.tensor(g, dtype=torch.float64)
    total = torch.tensor(loss, dtype=torch.float64)
    return OptimizerStep(torch.nn.Identity(), parameters, None, 0, 100, total, lambda: total, 1)  # type: ignore[arg-type]


@pytest.mark.oracle("stabilizer=clip", "float64 loop")
@pytest.mark.parametrize("max_norm", [0.3, 1.0, 1e3])
def test_clip_equals_a_loop(max_norm):
    draw = random.Random(0)
    gradients = [[draw.gauss(0, 2) for _ in range(n)] for n in (1, 7, 30)]
    length = math.sqrt(sum(g * g for row in gradients for g in row))
    step = step_with(gradients)
    metrics = stabilizers.build("clip", {"max_norm": max_norm}).before_step(step)
    assert float(metrics["train/grad_norm"]) == pytest.approx(length)
    for p, row in zip(step.parameters, gradients, strict=True):
        expected = [g * min(1.0, max_norm / length) for g in row]
        assert p.grad.tolist() == pytest.approx(expected, rel=1e-5)  # torch adds 1e-6 to the norm


WINDOW, SIGMA = 16, 2.0


def outlier(value, past):
    """True above SIGMA deviations of the last WINDOW numbers; False if there are fewer than a quarter of them."""
    if not math.isfinite(value):
        return True
    recent = past[-WINDOW:]
    return len(recent) >= WINDOW // 4 and value > statistics.fmean(recent) + SIGMA * statistics.stdev(recent)


def numbers(seed):
    """Noise around 4 with jumps, and values that are not finite."""
    draw = random.Random(seed)
    for index in range(300):
        jump = draw.choice([0.0] * 12 + [1.0, 3.0])
        yield draw.choice([math.nan, math.inf]) if index % 90 == 89 else draw.gauss(4, 0.5) + jump


def raises(part, step):
    """True if the stabilizer skips the step or rewinds."""
    try:
        part.before_step(step)
    except (SkipStep, Rewind):
        return True
    return False


@pytest.mark.oracle("stabilizer=skip_step", "Python's statistics")
def test_skip_step_by_the_statistics_of_losses_and_norms():
    part, losses, norms, seen = stabilizers.build("skip_step", {"window": WINDOW, "sigma": SIGMA}), [], [], []
    for loss, norm in zip(numbers(1), numbers(2), strict=True):
        expected = outlier(loss, losses) or outlier(norm, norms)
        assert raises(part, step_with([[0.6 * norm], [0.0, 0.8 * norm]], loss)) == expected
        seen.append(expected)
        losses += [loss] if math.isfinite(loss) else []  # finite outliers enter the window too
        norms += [norm] if math.isfinite(norm) else []
    assert 10 < sum(seen) < 150 and part.skipped == sum(seen)


@pytest.mark.oracle("stabilizer=spike_rewind", "Python's statistics")
@pytest.mark.parametrize("rise", [0.0, 2.0])
def test_spike_rewind_by_the_statistics_of_losses(rise):
    part, losses, seen = stabilizers.build("spike_rewind", {"window": WINDOW, "sigma": SIGMA, "rise": rise}), [], []
    for loss in numbers(3):
        small = bool(losses) and loss <= statistics.fmean(losses[-WINDOW:]) + rise
        expected = outlier(loss, losses) and not small
        assert raises(part, step_with([[1.0]], loss)) == expected
        seen.append(expected)
        losses += [] if expected else [loss]  # a step that is rewound does not enter the window
    assert 3 < sum(seen) < 150


@pytest.mark.oracle("stabilizer=early_stop", "Lightning's EarlyStopping")
@pytest.mark.parametrize(("patience", "min_delta"), [(1, 0.0), (3, 0.0), (2, 0.3), (4, 0.05)])
def test_early_stop_ends_when_lightnings_callback_does(patience, min_delta):
    from lightning.pytorch.callbacks import EarlyStopping

    ended = 0
    for seed in range(40):
        draw = random.Random(seed)
        scores = [4 - 0.2 * n**0.5 + draw.gauss(0, 0.2) for n in range(30)]
        theirs = EarlyStopping("val/loss", min_delta=min_delta, patience=patience)
        stopped = [theirs._evaluate_stopping_criteria(torch.tensor(score, dtype=torch.float64))[0] for score in scores]
        part = stabilizers.build("early_stop", {"patience": patience, "min_delta": min_delta})
        first = stopped.index(True) if True in stopped else len(scores)  # the callback counts on after it has stopped
        ours = [part.stops(scores[: n + 1]) for n in range(len(scores))]
        assert ours[: first + 1] == stopped[: first + 1]
        ended += first < len(scores)
    assert ended > 20
