"""A run of several devices takes as many places and GPUs of the pool, and as many of a sweep's places."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.fakes import fake_work, job
from hypothesis import given
from hypothesis import strategies as st

from ablatio.registry.kinds.launch_types import LaunchOutcome, LaunchRequest
from ablatio.sweep.engine import Engine
from ablatio_std.launchers._gpus import least_used, sharing
from ablatio_std.launchers._server import Child, Server


def test_a_run_waits_for_a_place_for_each_device() -> None:
    server, started = _server([], places=3)
    server.waiting = [
        LaunchRequest("", name, 1, 0, devices) for name, devices in (("a", 2), ("b", 2), ("c", 1), ("d", 8))
    ]
    server._start_waiting()
    assert started == ["a"]  # b needs two places, and one is free; c does not overtake it
    del server.children[1]
    server._start_waiting()
    assert started == ["a", "b", "c"]
    server.children.clear()
    server._start_waiting()
    assert started == ["a", "b", "c", "d"]  # more than there are: alone


def test_gpus_of_one_device_are_the_least_used() -> None:
    assert least_used(["0", "1", "2"], [["0"], ["2"]], most=2) == ["1"]
    assert least_used(["0", "1"], [["0"], ["1"], ["1"]], most=2) == ["0"]
    assert least_used(["0"], [["0"]], most=1) == [] and least_used([], [["0"]]) == []


def test_gpus_of_several_devices_are_not_shared() -> None:
    names = ["0", "1", "2", "3"]
    assert least_used(names, [["1"]], 2) == ["0", "2"]
    assert least_used(names, [["1"], ["0", "2"]], 2) == ["3"]  # one is missing: it waits
    assert least_used(names, [["0", "1"]], most=8) == ["2"]  # no run joins theirs
    assert least_used(["0"], [], 2) == ["0"]


def test_runs_wait_for_gpus() -> None:
    """Two GPUs and many places: a run of two devices waits for both; a run on CPUs needs none of them."""
    server, started = _server(["0", "1"], places=9)
    one = LaunchRequest("", "one", 1, 0, together=4)
    server.waiting = [one, replace(one, job="both", devices=2), replace(one, job="cpu", devices=2, on_cpu=True)]
    server._start_waiting()
    assert started == ["one"]
    server.children.clear()
    server._start_waiting()
    assert started == ["one", "both", "cpu"]
    assert [child.gpus for child in server.children.values()] == [["0", "1"], []]


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=30), st.randoms())
def test_no_gpu_has_more_runs_than_they_were_told(runs: list[tuple[int, bool]], order: Any) -> None:
    """Any order of starts and ends: a GPU of a run of several devices is its own, the others have their share."""
    server, started = _server(["0", "1", "2"], places=9)
    together = 6
    server.waiting = [
        LaunchRequest("", str(i), 1, 0, devices, together, on_cpu) for i, (devices, on_cpu) in enumerate(runs)
    ]
    while server.waiting or server.children:
        server._start_waiting()
        used = [name for child in server.children.values() for name in child.gpus]
        assert max(Counter(used).values(), default=0) <= sharing(together, server.gpus) == 2
        for child in server.children.values():
            assert len(child.gpus) == (0 if child.order.on_cpu else child.order.devices)
            assert len(child.gpus) < 2 or all(used.count(name) == 1 for name in child.gpus)
        del server.children[order.choice(list(server.children))]
    assert started == [str(i) for i in range(len(runs))]


def _server(gpus: list[str], places: int) -> tuple[Server, list[str]]:
    """A server whose runs do nothing, and the names of those that it has started."""
    pipe: Any = None
    server, started = Server(pipe, pipe, 1, None, places, 20.0), list[str]()
    server.gpus = gpus

    def fork(order: LaunchRequest) -> None:
        started.append(order.job)
        server.children[len(started)] = Child(order, 0.0, server._gpus_for(order))

    server._fork = fork  # type: ignore[method-assign]
    return server, started


@pytest.mark.parametrize(("devices", "threads", "slots", "expected"), [(2, 1, 4, 2), (3, 1, 4, 1), (8, 1, 4, 1)])
def test_sweep_counts_devices(devices: int, threads: int, slots: int, expected: int, tmp_path: Path) -> None:
    """As many runs are claimed as have a place for each device; one that needs more than there are runs alone."""

    class Placed:
        """Remembers the requests, and ends each at once."""

        def __init__(self) -> None:
            self.slots, self.most, self.waiting = slots, 0, list[LaunchRequest]()

        def start(self) -> None: ...

        def stop(self) -> None: ...

        def cancel(self, job: str) -> None: ...

        def submit(self, order: LaunchRequest) -> None:
            self.waiting.append(order)
            self.most = max(self.most, len(self.waiting))
            assert order.devices == devices and order.together == expected and order.on_cpu

        def poll(self, seconds: float) -> list[LaunchOutcome]:
            order = self.waiting.pop()
            fake_work(order, 1)
            return [LaunchOutcome(order, "exit")]

    launcher: Any = Placed()
    jobs = [job(f"j{i}") for i in range(5)]
    jobs = [replace(one, config={**one.config, "trainer": {"devices": devices, "device": "cpu"}}) for one in jobs]
    assert len(Engine(tmp_path, jobs, launcher).run()) == 5
    assert launcher.most == expected
