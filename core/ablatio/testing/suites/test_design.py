"""Designs: axes -> arms, or an adaptive search that proposes trials."""

import pytest

from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts

KINDS = ("design",)


def test_gives_arms(part: PartSpec) -> None:
    """Each arm has one value of each axis, and there are at most as many arms as count() says."""
    design = sample_parts.design(part)
    kind = "more" if hasattr(design, "more") else "arms"
    arms = (
        [ask.arm for ask in sample_parts.searched(design)] if kind == "more" else [dict(arm) for arm in design.arms()]
    )
    assert arms, f"{checks.label(part)}: {kind} gives no arm"
    for arm in arms:
        good = all(arm.get(axis.key) in axis.values for axis in sample_parts.AXES) and len(arm) == len(
            sample_parts.AXES
        )
        assert good, f"{checks.label(part)}: {kind} gives {arm}; expected one value of each axis"
    different = {tuple(sorted(arm.items())) for arm in arms}
    count = design.count()
    assert len(different) <= count, f"{checks.label(part)}: {len(different)} arms came, count() said {count}"


def test_a_search_is_a_function_of_what_it_was_told(part: PartSpec) -> None:
    """A resumed sweep repeats the same proposals; the search ends, and only its survivors are final."""
    design = sample_parts.design(part)
    if not hasattr(design, "more"):
        pytest.skip("its arms are fixed: it does not search (no `more`)")
    asks = sample_parts.searched(design)
    again = sample_parts.searched(sample_parts.design(part))
    assert asks == again, f"{checks.label(part)}: asks for other arms when it is told the same"
    finals = [ask for ask in asks if ask.final]
    assert finals, f"{checks.label(part)}: ends without a survivor"
    assert asks[-len(finals) :] == finals, f"{checks.label(part)}: goes on searching after its survivors"
    known = {tuple(ask.arm.items()) for ask in asks if not ask.final}
    fresh = [ask.arm for ask in finals if tuple(ask.arm.items()) not in known]
    assert not fresh, f"{checks.label(part)}: {fresh[:1]} survives without a trial"
