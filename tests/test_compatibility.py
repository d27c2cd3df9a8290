"""Every pair of options of two kinds trains one step, or is refused with a reason and a remedy that works."""

import itertools
import math
from pathlib import Path

import pytest

from ablatio.registry import REGISTRIES
from ablatio.testing import compatibility, tiny

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"


@pytest.mark.parametrize("first, second", list(compatibility.pairs()), ids=lambda kind: kind)
def test_a_pair_trains_or_is_refused(first: str, second: str) -> None:
    failed = []
    for a, b in itertools.product(REGISTRIES[first], REGISTRIES[second]):
        config = compatibility.config_of(a, b)
        problems = tiny.broken_rules(config)
        if problems:
            key, _, value = problems[0].fix.partition("=")
            if not (problems[0].what and key and value):
                failed.append(f"{a.kind}={a.name} {b.kind}={b.name}: refused without a reason and a way out")
            # The way out is taken: with it, what is left of the pair stands.
            keep = {a.kind, b.kind} - {key.split(".")[0]}
            if tiny.broken_rules(tiny.fitted(config, keep)):
                failed.append(f"{a.kind}={a.name} {b.kind}={b.name}: `{problems[0].fix}` does not help")
            continue
        try:
            loss = compatibility.one_step(config)
        except Exception as error:
            failed.append(f"{a.kind}={a.name} {b.kind}={b.name}: {type(error).__name__}: {error}")
            continue
        if not math.isfinite(loss):
            failed.append(f"{a.kind}={a.name} {b.kind}={b.name}: not finite after a step")
    assert not failed, f"{len(failed)} pairs: " + "\n".join(failed[:30])


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == compatibility.page() + "\n", "run `make docs`"
