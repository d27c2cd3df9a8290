"""Every pair of options of two kinds trains one step or is rejected with a reason and a fix that works."""

import itertools
import math
from pathlib import Path

import pytest

from ablatio.registry.registry import REGISTRIES
from ablatio.testing import compatibility_table, tiny_models

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
DOCS = "docs/compatibility.md does not match the rules: run `make docs`"


@pytest.mark.matrix(share=60)
@pytest.mark.parametrize("first, second", list(compatibility_table.pairs()), ids=lambda kind: kind)
def test_each_pair_trains_or_is_rejected_with_a_working_fix(first: str, second: str) -> None:
    failed, refused = [], []
    for a, b in itertools.product(REGISTRIES[first], REGISTRIES[second]):
        config = compatibility_table.config_of(a, b)
        problems = tiny_models.broken_rules(config)
        if problems:
            refused.append(compatibility_table.Refusal(a, b, problems[0]))
            key, _, value = problems[0].fix.partition("=")
            if not (problems[0].what and key and value):
                failed.append(f"{a.kind}={a.name} {b.kind}={b.name}: rejected without a reason and a fix")
            # Apply the fix: the rest of the pair must then satisfy the rules.
            keep = {a.kind, b.kind} - {key.split(".")[0]}
            if tiny_models.broken_rules(tiny_models.fitted(config, keep)):
                failed.append(f"{a.kind}={a.name} {b.kind}={b.name}: `{problems[0].fix}` does not help")
            continue
        try:
            loss = compatibility_table.one_step(config)
        except Exception as error:
            failed.append(f"{a.kind}={a.name} {b.kind}={b.name}: {type(error).__name__}: {error}")
            continue
        if not math.isfinite(loss):
            failed.append(f"{a.kind}={a.name} {b.kind}={b.name}: not finite after a step")
    assert not failed, f"{len(failed)} pairs: " + "\n".join(failed[:30])

    cell_table, sections = page()
    row, column = compatibility_table.paired_kinds().index(first), compatibility_table.paired_kinds().index(second)
    assert cell_table[row][column] == cell_table[column][row] == compatibility_table.cell(first, second, refused), DOCS
    assert sections.get(f"{first} and {second}", []) == compatibility_table.section(first, second, refused)[1:], DOCS


def test_compatibility_page_has_no_other_content() -> None:
    """The test above checks the entry of each pair; this one, that the page has no outdated entries."""
    assert "\n".join(compatibility_table.heading()) in PAGE.read_text(encoding="utf-8"), DOCS
    cell_table, sections = page()
    assert {len(row) for row in cell_table} == {len(cell_table)} == {len(compatibility_table.paired_kinds())}
    assert sections.keys() <= {f"{first} and {second}" for first, second in compatibility_table.pairs()}, DOCS


def page() -> tuple[list[list[str]], dict[str, list[str]]]:
    """docs/compatibility.md: (cells of the table, lines of each section by its title)."""
    top, *sections = PAGE.read_text(encoding="utf-8").split("\n## ")
    rows = [line for line in top.splitlines() if line.startswith("| **")]
    return (
        [[cell.strip() for cell in row.split("|")[2:-1]] for row in rows],
        {lines[0]: [*lines[1:], ""] for lines in (section.rstrip("\n").split("\n") for section in sections)},
    )
