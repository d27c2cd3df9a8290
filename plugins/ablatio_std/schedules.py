"""Learning-rate schedules, as a factor on the peak learning rate.

A run of n steps uses the factors of steps 0 to n - 1: a warm-up reaches 1 at its last step, and a decay reaches `final`
at the last step of the run.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from ablatio import Fraction, NonNegative, Positive, rule, schedules
from ablatio.registry.knobs import Range

WarmUp = Annotated[float, Fraction, "share of all steps, the first ones, in which the rate rises"]
Final = Annotated[float, Fraction, "factor at the last step"]
Decay = Annotated[float, Fraction, "share of all steps, the last ones, in which the rate falls"]
Cycles = Annotated[int, Positive, "number of cycles in the run"]


def rising(step: int, total: int, warmup: float) -> float:
    """Warm-up factor: from 1/n to 1 over the n warm-up steps, then 1."""
    steps = round(warmup * total)
    # step + 1: a factor of 0 at the first step would waste it.
    return min(1.0, (step + 1) / steps) if steps else 1.0


def falling(step: int, total: int, decay: float) -> float:
    """Decay factor: 1, then from 1 - 1/n to 0 over the n last steps."""
    steps = round(decay * total)
    return max(0.0, min(1.0, (total - 1 - step) / steps)) if steps else 1.0


def progress(step: int, total: int, warmup: float) -> float:
    """Progress after the warm-up: 0 at its first step, 1 at the last step of the run."""
    start = round(warmup * total)
    # total - 1 is the last step, so that it has the final factor.
    return min(1.0, max(0, step - start) / max(1, total - 1 - start))


@schedules.register("cosine", paper="arXiv:1608.03983")
def cosine(step: int, total: int, *, warmup: WarmUp = 0.05, final: Final = 0.1) -> float:
    """Linear warm-up to 1, then half a cosine down to `final` at the last step."""
    done = progress(step, total, warmup)
    return rising(step, total, warmup) * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))


@schedules.register("constant", paper="arXiv:1706.03762")
def constant(step: int, total: int, *, warmup: WarmUp = 0.05) -> float:
    """Linear warm-up to 1, then 1."""
    return rising(step, total, warmup)


@schedules.register("linear", paper="arXiv:1810.04805")
def linear(step: int, total: int, *, warmup: WarmUp = 0.05, final: Final = 0.0) -> float:
    """Linear warm-up to 1, then a line down to `final` at the last step."""
    return rising(step, total, warmup) * (1 - (1 - final) * progress(step, total, warmup))


@schedules.register("polynomial", paper="arXiv:1606.00915")
def polynomial(
    step: int,
    total: int,
    *,
    warmup: WarmUp = 0.05,
    power: Annotated[float, Positive] = 2.0,
    final: Final = 0.0,
) -> float:
    """Linear warm-up to 1, then final + (1 - final) (1 - p)^power, p from 0 to 1 at the last step."""
    left = 1 - progress(step, total, warmup)
    return rising(step, total, warmup) * (final + (1 - final) * left**power)


@schedules.register("inverse_sqrt", paper="arXiv:1910.10683")
def inverse_sqrt(
    step: int,
    total: int,
    *,
    warmup: WarmUp = 0.05,
    timescale: Annotated[
        float, Range(0, 1, open_low=True), "tau as a share of all steps; the factor is 1/2 after 3 tau"
    ] = 0.05,
) -> float:
    """Linear warm-up to 1, then 1 / sqrt(1 + s / tau): s steps after the warm-up, tau = timescale total."""
    after = max(0, step + 1 - round(warmup * total))
    return rising(step, total, warmup) / math.sqrt(1 + after / max(1.0, timescale * total))


@schedules.register("noam", paper="arXiv:1706.03762")
def noam(step: int, total: int, *, warmup: WarmUp = 0.04) -> float:
    """min(s / n, sqrt(n / s)), s counting steps from 1, n the warm-up steps: the original Transformer's schedule.

    It is relative to the paper's peak d_model^-1/2 n^-1/2, which is optimizer.lr here; the paper's n is 4000 of 100,000
    steps.
    """
    # At least 1: without a warm-up the rate falls from the first step.
    s, n = step + 1, max(1, round(warmup * total))
    return min(s / n, math.sqrt(n / s))


@schedules.register("wsd", paper="arXiv:2404.06395")
def wsd(
    step: int,
    total: int,
    *,
    warmup: WarmUp = 0.05,
    decay: Decay = 0.1,
    shape: Annotated[Literal["linear", "cosine", "sqrt"], "shape of the decay; sqrt is 1 - sqrt(p)"] = "linear",
    final: Final = 0.0,
) -> float:
    """Warmup-stable-decay: linear warm-up to 1, then 1, then a decay to `final` at the last step.

    With p from 0 to 1 in the decay: linear 1 - p;  cosine (1 + cos(pi p)) / 2;  sqrt 1 - sqrt(p) (arXiv:2405.18392).
    """
    left = falling(step, total, decay)
    if shape == "cosine":
        left = 0.5 * (1 - math.cos(math.pi * left))
    elif shape == "sqrt":
        left = 1 - math.sqrt(1 - left)
    return rising(step, total, warmup) * (final + (1 - final) * left)


@schedules.register("power", paper="arXiv:2408.13359")
def power(
    step: int,
    total: int,
    *,
    warmup: WarmUp = 0.05,
    flat: Annotated[float, Range(0, 1, open_low=True), "share of all steps at which the power law begins"] = 0.1,
    exponent: Annotated[float, NonNegative] = 0.51,
    decay: Decay = 0.1,
    final: Final = 0.0,
) -> float:
    """Warm-up, then min(1, (s / n)^-exponent), s counting steps from 1, n = flat total; times a decay to `final`.

    The paper's law is in tokens, which are proportional to steps at a fixed batch size.
    """
    law = min(1.0, ((step + 1) / (flat * total)) ** -exponent)
    return rising(step, total, warmup) * law * (final + (1 - final) * falling(step, total, decay))


@schedules.register("cyclic", paper="arXiv:1506.01186")
def cyclic(
    step: int,
    total: int,
    *,
    cycles: Cycles = 4,
    low: Annotated[float, Fraction, "factor between two peaks"] = 0.1,
    gain: Annotated[float, Fraction, "ratio of each peak's height to the previous one; 0.5: triangular2"] = 1.0,
) -> float:
    """Triangular cycles: low + (1 - low) gain^k (1 - |2 u - 1|), u from 0 to 1 in cycle k = 0, 1, ..."""
    k, u = divmod(step * cycles / total, 1)
    return low + (1 - low) * gain**k * (1 - abs(2 * u - 1))


@schedules.register("restarts", paper="arXiv:1608.03983")
def restarts(
    step: int,
    total: int,
    *,
    warmup: WarmUp = 0.05,
    cycles: Cycles = 4,
    growth: Annotated[float, Range(1, 10), "ratio of each cycle's length to the previous one"] = 1.0,
    low: Annotated[float, Fraction, "factor at the end of each cycle"] = 0.0,
) -> float:
    """Linear warm-up to 1, then cycles of half a cosine from 1 down to `low`, each starting at 1 again (SGDR)."""
    start = round(warmup * total)
    if step < start:
        return rising(step, total, warmup)
    lengths = [growth**k for k in range(cycles)]
    u = (step - start) / max(1, total - start) * sum(lengths)
    for length in lengths:
        # Rounding at the border of two cycles would else give the end of the one instead of the start of the next.
        if u < length * (1 - 1e-12):
            return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * u / length))
        u = max(0.0, u - length)
    return low


@schedules.register("plateau", paper="https://docs.pytorch.org/docs/stable/optim.html")
def plateau(
    step: int,
    total: int,
    scores: Sequence[float],
    *,
    warmup: WarmUp = 0.05,
    patience: Annotated[int, Range(0, 1000), "scores in a row without improvement that are tolerated"] = 1,
    gain: Annotated[float, Fraction, "least relative improvement on the best score"] = 1e-3,
    cooldown: Annotated[int, Range(0, 1000), "scores ignored after a reduction"] = 0,
    factor: Annotated[float, Range(0, 1, open_low=True, open_high=True), "factor of each reduction"] = 0.5,
    final: Final = 0.01,
) -> float:
    """Linear warm-up to 1, then factor^n, n the number of plateaus of the held-out loss so far (ReduceLROnPlateau).

    A reduction follows more than `patience` scores in a row that are not lower than the best one by a share `gain`.
    Scores come every train.val_every steps; if a task's score is better when higher, its negative is used.
    """
    # Replayed from all scores: the factor is a function of the step and the scores, and a resumed run needs no state.
    left, best, waited, resting = 1.0, math.inf, 0, 0
    for score in scores:
        # abs: for a negative score a relative improvement must still be lower, not closer to 0.
        if math.isinf(best) or score < best - gain * abs(best):
            best, waited = score, 0
        else:
            waited += 1
        # As in ReduceLROnPlateau: the score in a cooldown counts neither as bad nor towards the patience.
        if resting:
            resting, waited = resting - 1, 0
        if waited > patience:
            left, waited, resting = left * factor, 0, cooldown
    return rising(step, total, warmup) * max(final, left)


rule(
    when="train.val_every is None and 'plateau' in (roles.matrix_schedule, roles.vector_schedule, "
    "roles.embedding_schedule, roles.head_schedule)",
    why="schedule=plateau needs validations during the run, and train.val_every=null has them only before and after",
    fix="train.val_every=100",
    where="train.val_every",
)


rule(
    when="schedule.name == 'wsd' or schedule.name == 'power'",
    unless="schedule.warmup + schedule.decay <= 1",
    why="warm-up and decay together take {schedule.warmup + schedule.decay} of the steps, which is more than 1",
    fix="schedule.decay={1 - schedule.warmup}",
)
