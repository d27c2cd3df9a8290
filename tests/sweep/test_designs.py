"""Experimental designs: planted effects are recovered, and aliased effects are listed."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from ablatio.config.grammar import parse
from ablatio.errors import UserError
from ablatio.registry.kinds import designs
from ablatio.registry.kinds.search_space import Axis, Interval

KEYS = "abcdefgh"


def axes(count: int, levels: int = 2) -> tuple[Axis, ...]:
    return tuple(Axis(key, tuple(f"{key}{i}" for i in range(levels))) for key in KEYS[:count])


def made(name: str, over: tuple[Axis, ...], **knobs: object):
    return designs.build(name, knobs, axes=over, baseline={axis.key: axis.values[0] for axis in over})


def signs(arms: list[dict[str, str]], over: tuple[Axis, ...]) -> np.ndarray:
    return np.array([[1.0 if arm[axis.key] == axis.values[1] else -1.0 for axis in over] for arm in arms])


@pytest.mark.parametrize(
    ("name", "knobs", "arms"),
    [
        ("plackett_burman", {}, 8),
        ("plackett_burman", {"runs": 12}, 12),
        ("plackett_burman", {"foldover": True}, 16),
        ("fractional", {"resolution": 3}, 8),
        ("fractional", {"resolution": 4}, 16),
        ("fractional", {"generators": "a b c d abc bcd"}, 16),
        ("orthogonal", {}, 8),
        ("full", {}, 64),
    ],
)
def test_planted_main_effects_are_recovered(name: str, knobs: dict[str, object], arms: int) -> None:
    """Oracle: least squares (numpy) on losses made from known effects."""
    over = axes(6)
    found = list(made(name, over, **knobs).arms())
    assert len(found) == made(name, over, **knobs).count() == arms
    x = signs(found, over)
    planted = np.array([0.3, -0.2, 0.0, 0.05, 0.0, -0.4])
    fitted = np.linalg.lstsq(np.c_[np.ones(arms), x], 2.5 + x @ planted, rcond=None)[0]
    assert np.allclose(fitted, [2.5, *planted], atol=1e-12)
    assert np.allclose(x.T @ x, arms * np.eye(6))  # orthogonal: minimum variance of each effect


def test_foldover_removes_aliases_with_two_way_interactions() -> None:
    over = axes(6)
    loss = lambda x: x[:, 0] * 0.3 + 0.5 * x[:, 1] * x[:, 2] - 0.2 * x[:, 3] * x[:, 4]  # noqa: E731
    errors = {}
    for fold in (False, True):
        x = signs(list(made("plackett_burman", over, runs=12, foldover=fold).arms()), over)
        errors[fold] = abs(x.T @ loss(x) / len(x) - np.array([0.3, 0, 0, 0, 0, 0])).max()
    assert errors[True] < 1e-12 < 0.05 < errors[False]


def test_aliases_follow_the_defining_relation() -> None:
    """By hand: 2^(4-1) with d = abc has I = abcd, so ab = cd, ac = bd, ad = bc."""
    over = axes(4)
    assert made("fractional", over, generators="a b c abc").aliases() == [
        "a x b = c x d",
        "a x c = b x d",
        "a x d = b x c",
    ]
    assert made("fractional", over, generators="a b c -ab").aliases() == [
        "a = -b x d", "b = -a x d", "d = -a x b"
    ]  # fmt: skip
    assert made("fractional", axes(5), resolution=5).aliases() == []
    assert all(" = " in line for line in made("fractional", axes(6), resolution=3).aliases())


def test_foldover_of_a_fractional_design_frees_what_it_says() -> None:
    """2^(7-4) folded over all axes has resolution IV; 2^(4-1) folded over one axis is the full design."""
    names = lambda lines: {name.lstrip("-") for line in lines for name in line.split(" = ")}  # noqa: E731
    three = made("fractional", axes(7), resolution=3)
    assert set("abcdefg") <= names(three.aliases()) and three.follow_up() == {"design.foldover": "all"}
    folded = made("fractional", axes(7), resolution=3, foldover="all")
    assert not set("abcdefg") & names(folded.aliases()) and folded.follow_up() == {}
    half = made("fractional", axes(4), generators="a b c abc")
    assert half.follow_up() == {"design.foldover": "a"}
    whole = [tuple(arm.values()) for arm in made("fractional", axes(4), generators="a b c abc", foldover="a").arms()]
    assert len(set(whole)) == 16
    with pytest.raises(UserError, match="expected `all`, or one of the axes: a, b, c, d"):
        made("fractional", axes(4), foldover="x")


@pytest.mark.parametrize(("levels", "rows"), [((3, 3, 3, 3), 9), ((3, 3, 3), 9), ((2, 2, 2), 4)])
def test_added_arms_separate_main_effects_from_interactions(levels: tuple[int, ...], rows: int) -> None:
    """Oracle: the largest canonical correlation (numpy) of a main effect with two-way interactions of other axes."""
    over = tuple(Axis(key, tuple(f"{key}{i}" for i in range(n))) for key, n in zip(KEYS, levels, strict=False))

    def shared(arms: list[dict[str, str]]) -> float:
        coded = [
            np.array([[arm[axis.key] == v for v in axis.values[1:]] for arm in arms], float) for axis in over
        ]  # fmt: skip
        bases = [np.linalg.qr(c - c.mean(0))[0] for c in coded]
        found = []
        for i, j, k in itertools.permutations(range(len(over)), 3):
            if j < k:
                pair = np.hstack([a[:, None] * b[:, None] for a in coded[j].T for b in coded[k].T])
                rest = np.hstack([np.ones((len(arms), 1)), coded[j], coded[k]])
                left = pair - rest @ np.linalg.lstsq(rest, pair, rcond=None)[0]
                basis, sizes, _ = np.linalg.svd(left, full_matrices=False)
                basis = basis[:, sizes > 1e-9]
                found.append(np.linalg.svd(bases[i].T @ basis, compute_uv=False).max(initial=0.0))
        return float(max(found))

    plain = made("orthogonal", over)
    first = list(plain.arms())
    added = min(rows, math.prod(levels) - rows)
    assert len(first) == rows and plain.follow_up() == {"design.augment": str(added)}
    more = made("orthogonal", over, augment=added)
    arms = list(more.arms())
    assert arms[:rows] == first and len({tuple(a.values()) for a in arms}) == rows + added == more.count()
    assert shared(first) > 0.999 > 0.95 > shared(arms) and more.follow_up() == {}


@pytest.mark.parametrize(
    ("name", "knobs"), [("plackett_burman", {"runs": 12}), ("fractional", {"resolution": 3}), ("orthogonal", {})]
)
def test_follow_up_keeps_the_arms_of_the_design(name: str, knobs: dict[str, object]) -> None:
    over = axes(5)
    first = made(name, over, **knobs)
    parsed = [parse(f"{key}={value}") for key, value in first.follow_up().items()]
    more = {p.key_or_group.removeprefix("design."): p.value() for p in parsed if p is not None}
    arms = list(made(name, over, **knobs, **more).arms())
    assert more and [arm for arm in first.arms() if arm not in arms] == [] and len(arms) > first.count()


@pytest.mark.parametrize("levels", [(2, 2, 2), (3, 3, 3, 3), (2, 3, 3, 3), (4, 4, 4), (5, 5), (2, 4, 4), (6, 3, 3)])
def test_orthogonal_array_is_balanced_in_all_pairs(levels: tuple[int, ...]) -> None:
    over = tuple(Axis(key, tuple(f"{key}{i}" for i in range(n))) for key, n in zip(KEYS, levels, strict=False))
    arms = list(made("orthogonal", over).arms())
    assert len(arms) <= math.prod(levels)
    for a, b in itertools.combinations(over, 2):
        pairs = Counter((arm[a.key], arm[b.key]) for arm in arms)
        assert len(pairs) == len(a.values) * len(b.values) and len(set(pairs.values())) == 1


def test_one_at_a_time_changes_one_factor_per_arm() -> None:
    over = axes(3, levels=3)
    base, *others = made("one_at_a_time", over).arms()
    assert len(others) == 6
    assert all(sum(arm[key] != base[key] for key in base) == 1 for arm in others)


def test_latin_hypercube_and_random_samples() -> None:
    over = (*axes(2, levels=3), Axis("lr", ("tag(log, interval(1e-4, 1e-2))",)))
    arms = list(made("latin_hypercube", over, runs=12).arms())
    rates = sorted(math.log10(float(arm["lr"])) for arm in arms)
    assert all(-4 + i / 6 <= rate <= -4 + (i + 1) / 6 for i, rate in enumerate(rates))  # one sample per stratum
    assert set(Counter(arm["a"] for arm in arms).values()) == {4}
    arms = list(made("random", axes(8), runs=100).arms())
    assert len({tuple(arm.values()) for arm in arms}) == 100  # without duplicates
    assert len(list(made("random", axes(2), runs=100).arms())) == 4


def test_interval_reads_hydra_syntax() -> None:
    assert Interval.read("interval(0.1,1)") == Interval(0.1, 1.0)
    assert Interval.read("tag(log, int(interval(1, 512)))") == Interval(1.0, 512.0, log=True, whole=True)
    assert Interval.read("0.1") is None
    whole = Interval.read("int(interval(1,3))")
    assert whole and Counter(whole.at(i / 300) for i in range(300)) == {"1": 100, "2": 100, "3": 100}


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("plackett_burman", {"runs": 10}, "multiple of 4 from 8"),
        ("fractional", {"generators": "a b"}, "6 letters"),
        ("fractional", {"resolution": 9}, ""),
    ],
)
def test_designs_reject_invalid_knobs_and_levels(name: str, knobs: dict[str, object], message: str) -> None:
    if not message:
        assert made(name, axes(6), **knobs).count() == 64  # resolution 9 of 6 factors requires the full factorial
        return
    with pytest.raises(UserError, match=message):
        made(name, axes(6), **knobs)
    with pytest.raises(UserError, match="a has 3"):
        made(name, axes(6, levels=3))
