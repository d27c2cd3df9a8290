"""The catalogue is scanned again if and only if something it was made from has changed."""

import os
import time
from pathlib import Path

import pytest

from ablatio.errors import EnvironmentFault
from ablatio.registry import catalogue
from ablatio.registry.catalogue import Catalogue, PluginSource

FAILURE = {"plugin": "slow", "dist": "slow", "version": "1", "reason": "did not finish loading within 30 s"}


class Scans:
    """Replaces the scan: counts its calls and returns the given failures."""

    def __init__(self) -> None:
        self.count, self.failures = 0, list[dict[str, str]]()

    def __call__(self, sources: list[PluginSource]) -> Catalogue:
        self.count += 1
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


def test_an_installation_is_seen(scans: Scans, tmp_path: Path) -> None:
    """A plugin that failed for lack of a library is scanned again once it is installed."""
    scans.failures = [FAILURE]
    catalogue.read([])
    os.utime(tmp_path / "packages", ns=(1, 1))
    catalogue.read([])
    assert scans.count == 2


def test_a_failure_expires(scans: Scans, tmp_path: Path) -> None:
    scans.failures = [FAILURE]
    assert catalogue.read([]).failures == catalogue.read([]).failures == [FAILURE]
    assert scans.count == 1, "a plugin that hangs would cost its time at every command"
    (path,) = (tmp_path / "cache" / "catalogue").glob("*.json")
    past = time.time() - catalogue.RETRY_SECONDS - 1
    os.utime(path, (past, past))
    scans.failures = []
    assert catalogue.read([]).failures == [] and scans.count == 2
    catalogue.read([])
    os.utime(path, (past, past))
    catalogue.read([])
    assert scans.count == 2, "a catalogue without failures does not age"


def test_a_scan_that_dies_outside_any_plugin_is_an_environment_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_scan_in_child", lambda count, lost: (None, "", "ended the process with code -9"))
    with pytest.raises(EnvironmentFault, match=r"(?s)the plugins cannot be read.*code -9.*-c .import torch."):
        catalogue._scan([])
