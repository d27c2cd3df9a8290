"""The simulated scaling of docs/howto/scaling.md: its limits, what is sent, and its tables."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablatio.model.stages import layer_ranges

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
WORLDS = (2, 3, 8, 16, 1024)


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("scaling")
    for name in ("scaling", "_traffic"):
        sys.modules.pop(name, None)


@pytest.fixture
def found() -> dict[str, Any]:
    return json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8"))


def jobs_of(scaling: Any, found: dict[str, Any]) -> dict[str, Any]:
    return {name: scaling.Job(**{**job, "model": scaling.Model(**job["model"])}) for name, job in found["jobs"].items()}


def cases(scaling: Any, found: dict[str, Any]) -> list[tuple[str, Any]]:
    jobs = jobs_of(scaling, found)
    by_rows = [(strategy, jobs[job]) for strategy in scaling.BY_ROWS for job in ("rows", "batch", "cores")]
    return [*by_rows, ("tensor", jobs["tensor"]), ("context", jobs["context"])]


def test_one_device_has_the_speed_of_one(scaling: Any, found: dict[str, Any]) -> None:
    for strategy, job in cases(scaling, found):
        assert scaling.efficiency(strategy, job, scaling.H100, 1) == 1


def test_a_network_without_limits(scaling: Any, found: dict[str, Any]) -> None:
    """Rows divide evenly; every device computes the head, and the last part of a row sees all keys."""
    free = scaling.Machine(8, float("inf"), float("inf"), 0.0, 0.0, 0.0)
    for strategy, job in cases(scaling, found):
        for world in WORLDS:
            at = scaling.efficiency(strategy, job, free, world)
            if strategy == "tensor":
                assert at == pytest.approx(1 / (1 + job.head * (world - 1)))
            elif strategy == "context":
                keys = sum(range(world)) + world  # of the first part of a row, the second, ...; half of its own
                last = (world - 0.5) / (keys - world / 2)
                assert at == pytest.approx(1 / (world * (job.attention * last + (1 - job.attention) / world)))
            else:
                assert at == pytest.approx(1, abs=1e-12)


def test_worse_networks_are_slower(scaling: Any, found: dict[str, Any]) -> None:
    for strategy, job in cases(scaling, found):
        for world in WORLDS:
            at = scaling.efficiency(strategy, job, scaling.H100, world)
            assert 0 < at <= 1
            for worse in ({"inside": 1e9, "between": 1e9}, {"near": 1e-3, "far": 1e-3}, {"overlap": 0.0}):
                assert scaling.efficiency(strategy, job, replace(scaling.H100, **worse), world) <= at


@pytest.mark.parametrize("world", [2, 3, 8])
def test_bytes_are_those_of_a_ring(scaling: Any, world: int) -> None:
    """Walk a ring: the array is cut in `world` pieces, each rank hands one on in each turn, until all have the sum."""
    size, sent = 840.0, 0.0
    held = [[{rank} for _ in range(world)] for rank in range(world)]  # whose numbers are in each piece of each rank
    for turn in range(2 * (world - 1)):
        moving = [(rank, (rank - turn) % world) for rank in range(world)]
        arriving = [((rank + 1) % world, piece, set(held[rank][piece])) for rank, piece in moving]
        for rank, piece, numbers in arriving:
            held[rank][piece] |= numbers
        sent += size / world
    assert all(len(numbers) == world for pieces in held for numbers in pieces)
    assert scaling.Collective("sum", size).sent(world) == pytest.approx(sent)
    assert scaling.Collective("gather", size).sent(world) == pytest.approx(sent / 2)


def test_bytes_are_those_that_were_counted(scaling: Any) -> None:
    """results/strategies.json: two ranks on TCP."""
    measured = json.loads((RESULTS / "strategies.json").read_text(encoding="utf-8"))
    width, rows = measured["d_model"], 257
    outside = 4 * (width * rows + width)  # the tied embedding, the last norm
    model = scaling.Model(measured["strategies"]["ddp"]["sent_formula"], outside, measured["n_layers"])
    traffic = sys.modules["_traffic"]
    for strategy in ("ddp", "fsdp", "zero1", "zero2"):
        wanted = sum(each.sent(2) for each in traffic.with_whole_sums(traffic.collectives(strategy, model)))
        assert measured["strategies"][strategy]["sent_bytes"] == pytest.approx(wanted, rel=1e-3), strategy


@pytest.mark.parametrize(("stages", "microbatches"), [(2, 2), (4, 16), (8, 3)])
def test_turns_of_a_pipeline_are_those_of_a_walk(
    scaling: Any, found: dict[str, Any], stages: int, microbatches: int
) -> None:
    """Every stage takes a microbatch when it is free and the stage before has it done, forward and then backward."""
    job = jobs_of(scaling, found)["pipeline"]
    turn = scaling.stage_share(job, stages) * job.seconds / microbatches  # of both passes, equally long here
    free = [0.0] * stages
    for order in (range(stages), reversed(range(stages))):
        line = [*order]
        for _ in range(microbatches):
            done = 0.0
            for stage in line:
                free[stage] = done = max(free[stage], done) + turn / 2
        free = [max(free)] * stages if line[0] == 0 else free
    network = scaling.Machine(8, float("inf"), float("inf"), 0.0, 0.0, 0.0)
    at = scaling.pipeline_efficiency(job, network, stages, microbatches)
    assert at == pytest.approx(job.seconds / (stages * max(free)))


def test_stages_of_a_pipeline_are_those_of_the_strategy(scaling: Any, found: dict[str, Any]) -> None:
    job = replace(jobs_of(scaling, found)["pipeline"], head=0.1)
    layers = job.model.n_layers
    for stages in range(1, layers + 1):
        parts = [0.9 * len(part) / layers for part in layer_ranges(layers, stages)]
        parts[-1] += 0.1
        assert scaling.stage_share(job, stages) == pytest.approx(max(parts))
    for worse in ({"inside": 1e6}, {"near": 1e-3}):
        slow = replace(scaling.H100, **worse)
        assert scaling.pipeline_efficiency(job, slow, 4, 16) < scaling.pipeline_efficiency(job, scaling.H100, 4, 16)
    assert scaling.pipeline_efficiency(job, scaling.H100, 1, 4) == 1


def test_ddp_by_hand(scaling: Any) -> None:
    """Two devices: the sum of 8 GB takes 1 s, of which 0.6 s are hidden; or one of ten buckets is not."""
    machine = scaling.Machine(8, 8e9, 1.0, 0.0, 0.0, 0.9)
    model = scaling.Model(8e9, 0.0, 1)
    job = scaling.Job(model, 1.0, False)
    assert scaling.efficiency("ddp", job, machine, 2) == pytest.approx(1 / 1.4)
    many = replace(job, seconds=10.0)
    buckets = round(8e9 / (25 * 2**20))
    assert scaling.efficiency("ddp", many, machine, 2) == pytest.approx(10 / (10 + 1 / buckets))


def test_the_page_has_the_figures_of_the_file(scaling: Any, found: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "howto" / "scaling.md").read_text(encoding="utf-8")
    assert scaling.BEGIN in page and scaling.written(page, found) == page, (
        "try: python benchmarks/scaling.py --page docs/howto/scaling.md"
    )
    assert scaling.simulate(jobs_of(scaling, found)) == found["efficiency"]


@pytest.mark.long
def test_the_file_is_current(scaling: Any, found: dict[str, Any]) -> None:
    """Sizes and FLOPs are those of `ablatio size`."""
    assert json.loads(json.dumps(scaling.results())) == found
