"""A run of several devices takes as many places of the pool."""

from typing import Any

import pytest

from ablatio.registry.kinds.launch_types import LaunchRequest
from ablatio_std.launchers._gpus import least_used
from ablatio_std.launchers._server import Child, Server


def test_a_run_waits_for_a_place_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe: Any = None
    server = Server(pipe, pipe, 1, None, places=3)
    started: list[str] = []

    def fork(order: LaunchRequest) -> None:
        started.append(order.job)
        server.children[len(started)] = Child(order, 0.0, "")

    monkeypatch.setattr(server, "_fork", fork)
    server.waiting = [
        LaunchRequest("", job, 1, 0, devices) for job, devices in (("a", 2), ("b", 2), ("c", 1), ("d", 8))
    ]
    server._start_waiting()
    assert started == ["a"]  # b needs two places, and one is free; c does not overtake it
    del server.children[1]
    server._start_waiting()
    assert started == ["a", "b", "c"]
    server.children.clear()
    server._start_waiting()
    assert started == ["a", "b", "c", "d"]  # more than there are: alone


def test_gpus_of_a_run_are_different_and_the_least_used() -> None:
    assert least_used(["0", "1", "2"], ["0", "2"], 2) == ["1", "0"]
    assert least_used(["0"], [], 2) == ["0"] and least_used([], ["0"]) == []
