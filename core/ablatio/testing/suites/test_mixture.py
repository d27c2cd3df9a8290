"""Mixtures: shares of the sources with the sum 1, the same each time."""

import math

from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_mixtures, sample_parts

KINDS = ("mixture",)


def test_shares_are_of_the_sources(part: PartSpec) -> None:
    found = sample_parts.mixture(part).shares()
    assert sorted(found) == sorted(sample_mixtures.NAMES), (
        f"{checks.label(part)}: shares of {sorted(found)}; expected {sorted(sample_mixtures.NAMES)}"
    )
    wrong = {name: share for name, share in found.items() if not (math.isfinite(share) and share >= 0)}
    assert not wrong, f"{checks.label(part)}: the shares {wrong}; expected 0 or more"
    total = sum(found.values())
    assert abs(total - 1) < 1e-6, f"{checks.label(part)}: the shares sum to {total}; expected 1"


def test_same_each_time(part: PartSpec) -> None:
    with checks.draws_nothing(part, "although its shares must be the same each time"):
        first = dict(sample_parts.mixture(part).shares())
    assert first == dict(sample_parts.mixture(part).shares()), f"{checks.label(part)}: built again, other shares"


def test_says_whether_it_trains(part: PartSpec) -> None:
    """Shares that are found by training are kept in the cache, by the fact `trains`."""
    asks = "proxies" in part.wiring
    assert asks == part.facts["trains"], (
        f"{checks.label(part)}: trains={part.facts['trains']}, and it takes {'proxies' if asks else 'no proxies'}"
    )
