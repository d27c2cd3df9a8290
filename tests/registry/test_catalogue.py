"""The catalogue is scanned again if and only if something it was made from has changed."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ablatio.errors import EnvironmentFault
from ablatio.registry import catalogue
from ablatio.registry.catalogue import Catalogue, PluginSource
from ablatio.registry.part_spec import Distribution

FAILURE = {"plugin": "slow", "dist": "slow", "version": "1", "reason": "did not finish loading within 30 s"}
LASTING = {"plugin": "bad", "dist": "bad", "version": "1", "reason": "the knob `eps` has no type", "lasting": "yes"}


class Scans:
    """Replaces the scan: counts its calls and returns the given failures."""

    def __init__(self) -> None:
        self.count, self.failures = 0, list[dict[str, str]]()
        self.asked = list[tuple[list[str], Catalogue | None]]()

    def __call__(self, sources: list[PluginSource], ours: Catalogue | None) -> Catalogue:
        self.count += 1
        self.asked.append(([s.key for s in sources], ours))
        return Catalogue(failures=self.failures)


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scans:
    """Empty cache, and a core with one module in a nested package."""
    made = Scans()
    (tmp_path / "core" / "registry" / "kinds").mkdir(parents=True)
    (tmp_path / "core" / "registry" / "kinds" / "model.py").write_text("norms = 1\n")
    (tmp_path / "packages").mkdir()
    monkeypatch.setattr(catalogue, "HERE", tmp_path / "core")
    monkeypatch.setattr(catalogue, "_scan", made)
    monkeypatch.setattr(catalogue.sysconfig, "get_path", lambda name: str(tmp_path / "packages"))
    monkeypatch.setenv("ABLATIO_CACHE", str(tmp_path / "cache"))
    return made


def test_a_change_deep_in_the_core_is_seen(scans: Scans, tmp_path: Path) -> None:
    catalogue.read([])
    catalogue.read([])
    assert scans.count == 1
    (tmp_path / "core" / "registry" / "kinds" / "model.py").write_text("norms = 2, 3\n")
    catalogue.read([])
    assert scans.count == 2


def test_our_own_parts_are_not_read_again_for_a_plugin(scans: Scans, tmp_path: Path) -> None:
    """The second half, that a part of ours which such a plugin imports stays ours, is in test_cache_belief."""
    (tmp_path / "theirs.py").write_text("")
    ours = PluginSource("std", "ours", Distribution("ablatio", "1"))
    theirs = PluginSource("more", "theirs", Distribution("theirs", "1"))
    for version in "ab":
        catalogue.read([ours, replace(theirs, distribution=Distribution("theirs", version))])
    both = ["ablatio:std", "theirs:more"]
    assert [keys for keys, _ in scans.asked] == [["ablatio:std"], both, both]
    assert [known is None for _, known in scans.asked] == [True, False, False]


def test_an_installation_is_seen(scans: Scans, tmp_path: Path) -> None:
    """A plugin that failed for lack of a library is scanned again once it is installed."""
    scans.failures = [LASTING]
    catalogue.read([])
    os.utime(tmp_path / "packages", ns=(1, 1))
    catalogue.read([])
    assert scans.count == 2


def test_a_failure_expires(scans: Scans, tmp_path: Path) -> None:
    scans.failures = [LASTING]
    assert catalogue.read([]).failures == catalogue.read([]).failures == [LASTING]
    assert scans.count == 1
    (path,) = (tmp_path / "cache" / "catalogue").glob("*.json")
    past = time.time() - catalogue.RETRY_SECONDS - 1
    os.utime(path, (past, past))
    scans.failures = []
    assert catalogue.read([]).failures == [] and scans.count == 2
    catalogue.read([])
    os.utime(path, (past, past))
    catalogue.read([])
    assert scans.count == 2, "a catalogue without failures does not age"


def test_a_plugin_that_was_slow_once_is_tried_again_at_once(scans: Scans) -> None:
    scans.failures = [LASTING, FAILURE]
    assert catalogue.read([]).failures == scans.failures
    scans.failures = [LASTING]
    assert catalogue.read([]).failures == [LASTING] and scans.count == 2
    assert catalogue.read([]).failures == [LASTING] and scans.count == 2


def test_without_our_own_parts_no_command_runs_and_nothing_is_remembered(scans: Scans) -> None:
    scans.failures = [FAILURE | {"dist": "ablatio", "lasting": "yes"}]
    with pytest.raises(EnvironmentFault, match="the parts of ablatio cannot be read: plugin slow did not finish"):
        catalogue.read([])
    scans.failures = []
    assert catalogue.read([]).failures == [] and scans.count == 2


def test_a_plugin_that_is_killed_once_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[tuple[Catalogue | None, str, str]] = [
        (None, "one:a", "was killed by SIGKILL"), (None, "two:b", "was killed by SIGKILL"), (Catalogue(), "", ""),
    ]  # fmt: skip
    asked = list[dict[str, str]]()

    def scan(sources: object, lost: dict[str, str], ours: object) -> tuple[Catalogue | None, str, str]:
        asked.append(dict(lost))
        return ends.pop(0)

    monkeypatch.setattr(catalogue, "_scan_in_child", scan)
    assert catalogue._scan([], None) == Catalogue() and asked == [{}, {}, {}]
    ends += [(None, "one:a", "was killed by SIGKILL")] * 2 + [(Catalogue(), "", "")]
    assert catalogue._scan([], None) == Catalogue() and asked[-1] == {"one:a": "was killed by SIGKILL"}


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"digest": 1}', '{"digest": "x", "catalogue": []}'])
def test_a_damaged_catalogue_is_made_anew(scans: Scans, tmp_path: Path, content: str) -> None:
    catalogue.read([])
    (path,) = (tmp_path / "cache" / "catalogue").glob("*.json")
    path.write_text(content)
    assert catalogue.read([]) == Catalogue() and scans.count == 2


def test_a_scan_that_dies_outside_any_plugin_is_an_environment_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_scan_in_child", lambda *asked: (None, "", "ended the process with code -9"))
    with pytest.raises(EnvironmentFault, match=r"(?s)the plugins cannot be read.*code -9.*-c .import torch."):
        catalogue._scan([], None)
