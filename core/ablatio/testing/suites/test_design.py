"""Designs: axes -> arms, or a search that asks for them."""

from ablatio.registry import Entry
from ablatio.testing import probe, samples

KINDS = ("design",)


def test_gives_arms(part: Entry) -> None:
    """Each arm has one value of each axis; there are as many as were counted, at most."""
    design = samples.design(part)
    kind = "more" if hasattr(design, "more") else "arms"
    arms = [ask.arm for ask in samples.searched(design)] if kind == "more" else [dict(arm) for arm in design.arms()]
    assert arms, f"{probe.label(part)}: {kind} gives no arm"
    for arm in arms:
        good = all(arm.get(axis.key) in axis.values for axis in samples.AXES) and len(arm) == len(samples.AXES)
        assert good, f"{probe.label(part)}: {kind} gives {arm}; one value of each axis was expected"
    different = {tuple(sorted(arm.items())) for arm in arms}
    count = design.count()
    assert len(different) <= count, f"{probe.label(part)}: {len(different)} arms came, count() said {count}"


def test_a_search_is_a_function_of_what_it_was_told(part: Entry) -> None:
    """So that a resumed sweep asks for the same; it ends, and only its survivors are final."""
    design = samples.design(part)
    if not hasattr(design, "more"):
        return
    asks = samples.searched(design)
    again = samples.searched(samples.design(part))
    assert asks == again, f"{probe.label(part)}: asks for other arms when it is told the same"
    finals = [ask for ask in asks if ask.final]
    assert finals, f"{probe.label(part)}: ends without a survivor"
    assert asks[-len(finals) :] == finals, f"{probe.label(part)}: goes on searching after its survivors"
    known = {tuple(ask.arm.items()) for ask in asks if not ask.final}
    fresh = [ask.arm for ask in finals if tuple(ask.arm.items()) not in known]
    assert not fresh, f"{probe.label(part)}: {fresh[:1]} survives without a trial"
