"""Curricula: pure functions of the progress, with legal values over all of it."""

import pytest

from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_mixtures, sample_parts, sample_texts

KINDS = ("curriculum",)
PLACES = [i / 40 for i in range(41)]
BASE = dict(zip(sample_mixtures.NAMES, (0.2, 0.3, 0.5), strict=True))


def test_shares(part: PartSpec) -> None:
    if "shares" not in part.facts["uses"]:
        pytest.skip("it changes no shares")
    made = sample_parts.curriculum(part)
    for place in PLACES:
        found = made.shares(place, dict(BASE))
        assert set(found) <= set(BASE), (
            f"{checks.label(part)}: names {sorted(set(found) - set(BASE))}, which is no source"
        )
        legal = all(share >= 0 for share in found.values()) and abs(sum(found.values()) - 1) < 1e-6
        assert legal, f"{checks.label(part)}: at {place} the shares are {found}; expected 0 or more with the sum 1"


def test_difficulty(part: PartSpec) -> None:
    if "easiest" not in part.facts["uses"]:
        pytest.skip("it orders no documents")
    made = sample_parts.curriculum(part)
    for place in PLACES:
        share = made.easiest(place)
        assert 0 < share <= 1, f"{checks.label(part)}: at {place} it draws from the share {share}; expected (0, 1]"
    found = [made.difficulty(text) for text in sample_texts.training()]
    assert len(set(found)) > 5, f"{checks.label(part)}: most sample texts have the same difficulty"


def test_a_function_of_the_progress(part: PartSpec) -> None:
    """A resumed run asks for its later places only, and in any order."""
    forth, back = sample_parts.curriculum(part), sample_parts.curriculum(part)
    for method, arguments in (("shares", (dict(BASE),)), ("easiest", ())):
        if method in part.facts["uses"]:
            there = [getattr(forth, method)(place, *arguments) for place in PLACES]
            again = [getattr(back, method)(place, *arguments) for place in reversed(PLACES)][::-1]
            assert there == again, f"{checks.label(part)}: {method} depends on the order of calls"
