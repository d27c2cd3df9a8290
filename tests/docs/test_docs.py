"""What the documentation shows is run: every fenced bash, python and yaml block, page by page and in order."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import warm_ranks
from helpers.doc_pages import DOCS, LANGUAGES, Reader, blocks, pages

from ablatio.registry import discovery, rules
from ablatio.registry.registry import REGISTRIES

NOT_RUN = 14  # blocks that cannot run in a test (a cluster, a download): more than these would be a habit
KNOWN = ("", "slow", "exact")


@contextmanager
def taken_back() -> Iterator[None]:
    """Forget what a page registers; parts of plugins that were imported meanwhile stay."""
    discovery.load()
    kinds = dict(REGISTRIES)
    known = {kind: set(registry.entries) for kind, registry in kinds.items()}
    rules_before = list(rules.RULES)
    try:
        yield
    finally:
        REGISTRIES.clear()
        REGISTRIES.update(kinds)
        for kind, names in known.items():
            for name in REGISTRIES[kind].entries.keys() - names:
                del REGISTRIES[kind].entries[name]
                REGISTRIES[kind]._targets.pop(name, None)
        rules.RULES[:] = rules_before


def read(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    warm_ranks.use(monkeypatch)
    reader = Reader(folder)
    with taken_back():
        for block in blocks(page):
            if block.runs:
                reader.do(block)


def has_slow(page: str) -> bool:
    return any(block.slow for block in blocks(page))


@pytest.mark.parametrize("page", [page for page in pages() if not has_slow(page)])
def test_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(page, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in pages() if has_slow(page)])
def test_a_page_with_slow_blocks_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(page, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", pages())
def test_marks_are_known_and_say_why(page: str) -> None:
    for block in blocks(page):
        good = block.mark in KNOWN or block.mark.startswith(("file: ", "exit: ", "not run: "))
        assert good, f"{block.where}: the mark {block.mark!r} is none of those in helpers/doc_pages.py"
        assert block.runs or len(block.mark.split()) > 4, f"{block.where}: why it does not run stands nowhere"
        assert block.language, f"{block.where}: a fenced block without a language (bash, python, yaml, text, json, py)"


def test_few_blocks_are_not_run() -> None:
    found = [block for page in pages() for block in blocks(page) if block.language in LANGUAGES]
    left_out = [block.where for block in found if not block.runs]
    assert len(left_out) <= NOT_RUN, f"{len(left_out)} of {len(found)} blocks do not run: {left_out}"
    assert len(found) > 40


def test_the_own_part_is_in_a_sweep_before_the_tenth_command() -> None:
    """From the installation of the wheel on; docs/howto/first-part.md says how many commands there are."""
    page = "howto/first-part.md"
    shell = [block for block in blocks(page) if block.language == "bash"]
    typed = [line for block in shell for line in block.body.splitlines() if line.strip()]
    study = [number for number, line in enumerate(typed, 1) if line.startswith(("ablatio train -m", "ablatio resume"))]
    assert typed[0].startswith("pip install") and study == [6, 8] and "eight commands" in (DOCS / page).read_text()
    assert [block.where for block in shell if not block.runs] == [shell[0].where], "only the installation is not run"
