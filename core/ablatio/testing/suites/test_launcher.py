"""Launchers: each request runs in a process of its own, and its outcome is returned once."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablatio.errors import UserError
from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts

KINDS = ("launcher",)
PATIENCE = 120.0  # seconds: a cluster starts slowly on a busy machine


def start(launcher: Any) -> None:
    """Start the launcher; skip the test if a library of an extra is not installed."""
    try:
        launcher.start()
    except UserError as error:
        if "pip install" in str(error):
            pytest.skip(str(error))
        raise


def ends(launcher: Any, orders: list[LaunchRequest], act: Callable[[], None] = lambda: None) -> list[LaunchOutcome]:
    """Outcomes of the requests."""
    start(launcher)
    try:
        for order in orders:
            launcher.submit(order)
        act()
        found: list[LaunchOutcome] = []
        deadline = time.monotonic() + PATIENCE
        while len(found) < len(orders) and time.monotonic() < deadline:
            found += launcher.poll(0.1)
        return found + list(launcher.poll(0.1))
    finally:
        launcher.stop()


def order(folder: Path, name: str, code: int = 0) -> LaunchRequest:
    """A request whose process exits with `code` (samples.obey exits with the number of the attempt)."""
    return LaunchRequest(str(folder), name, code, 0)


def test_each_end_comes_back_once(part: PartSpec, tmp_path: Path) -> None:
    wanted = [order(tmp_path, name, code) for name, code in {"a": 0, "b": 3, "c": 0, "signal": 9}.items()]
    found = {e.order.job: (e.how, e.code) for e in ends(sample_parts.launcher(part), wanted)}
    expected = {"a": ("exit", 0), "b": ("exit", 3), "c": ("exit", 0), "signal": ("signal", 9)}
    assert found == expected, f"{checks.label(part)}: the outcomes are {found}; expected {expected}"


def test_cancel_asks_one_run_to_stop(part: PartSpec, tmp_path: Path) -> None:
    launcher = sample_parts.launcher(part)
    found = ends(launcher, [order(tmp_path, "sleep")], lambda: launcher.cancel("sleep"))
    assert [e.order.job for e in found] == ["sleep"], (
        f"{checks.label(part)}: a canceled run gave {found}; expected one outcome"
    )


def test_stop_ends_what_runs(part: PartSpec, tmp_path: Path) -> None:
    launcher = sample_parts.launcher(part)
    start(launcher)
    launcher.submit(order(tmp_path, "sleep"))
    launcher.poll(0.2)
    started = time.monotonic()
    launcher.stop()
    took = time.monotonic() - started
    assert took < PATIENCE, f"{checks.label(part)}: stop took {took:.0f} s"


@pytest.mark.parametrize("count", [1, 3])
def test_has_slots(part: PartSpec, count: int) -> None:
    launcher = sample_parts.launcher(part, {"workers": count} if part.knob("workers") else {})
    good = launcher.slots == count if part.knob("workers") else launcher.slots >= 1
    assert good, f"{checks.label(part)}: slots is {launcher.slots!r}"
