"""Tests that `pytest --select` runs: all, the usual ones (matrices are sampled), or the fast ones.

A matrix is a test marked `matrix`: its parameters are the cross product of options, or a training of each option.  The
sample depends only on the tests' ids, so it is the same on every machine and in every process.

The contract suites are such a matrix, of promises and parts: of a promise to many parts, `usual` tests one part in
24.  Each promise has other parts in its sample: each part is tested for about one in 24 of its promises.
"""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CONTRACTS, MANY, CONTRACT_SHARE = TESTS / "parts/test_contracts.py", 20, 24
SHARE = 24  # `usual` runs one in 24 parameters of a matrix, or one in N of one marked `matrix(share=N)`
FEW = 2  # maximum number of parameters of one test in `fast`
NOT_FAST = {"slow", "faults", "matrix", "long"}
# Not even imported by `fast`: browser, wheels, clusters, killed processes, other libraries, trainings, studies.
NOT_FAST_PATHS = (
    "api/test_session_parts.py",
    "api/test_studies.py",
    "data/test_filters.py",
    "data/test_mixtures.py",
    "docs/test_docs.py",
    "end_to_end",
    "faults",
    "fuzz",
    "interop",
    "model/test_freezing.py",
    "model/test_on_meta.py",
    "parts/oracles",
    "registry/test_broken_plugins.py",
    "registry/test_renamed.py",
    "report/test_page.py",
    "report/test_rerun_command.py",
    "report/test_validity.py",
    "scale",
    "sweep/recipes",
    "sweep/test_adaptive.py",
    "sweep/test_clusters.py",
    "sweep/test_gpus.py",
    "sweep/test_plan_runs.py",
    "sweep/test_sequential_study.py",
    "sweep/test_size_matching.py",
    "sweep/test_slurm.py",
    "sweep/test_stale_jobs.py",
    "sweep/test_time_probe.py",
    "testing/test_check.py",
    "testing/test_selection.py",
    "training",
)
SMOKE = "training/test_smoke.py"  # one short run of each task: the only trainings of `fast`


def is_left_out(path: Path, select: str) -> bool:
    """True for a file that the selection does not collect."""
    if select != "fast" or not path.is_file() or not path.is_relative_to(TESTS):
        return False
    name = path.relative_to(TESTS).as_posix()
    return name != SMOKE and any(name == p or name.startswith(f"{p}/") for p in NOT_FAST_PATHS)


def selected(items: Sequence[pytest.Item], select: str) -> list[pytest.Item]:
    """The tests to run, in their original order."""
    if select == "all":
        return list(items)
    families: dict[Hashable, list[pytest.Item]] = defaultdict(list)
    for item in items:
        families[item.path, getattr(item, "originalname", item.name)].append(item)
    keep = {item for family in families.values() for item in (_fast if select == "fast" else _usual)(family)}
    return [item for item in items if item in keep]


def _usual(family: list[pytest.Item]) -> list[pytest.Item]:
    """All tests of a family but the long ones, and 1/SHARE of its matrix parameters (rounded up)."""
    family = [item for item in family if not item.get_closest_marker("long")]
    rest = [item for item in family if not item.get_closest_marker("matrix")]
    if rest and rest[0].path == CONTRACTS and len(rest) >= MANY:
        rest = _sample(rest, CONTRACT_SHARE)
    matrix = [item for item in family if item.get_closest_marker("matrix")]
    share = matrix[0].get_closest_marker("matrix").kwargs.get("share", SHARE) if matrix else SHARE  # type: ignore[union-attr]
    return rest + _sample(matrix, share)


def _fast(family: list[pytest.Item]) -> list[pytest.Item]:
    quick = [item for item in family if not NOT_FAST & {mark.name for mark in item.iter_markers()}]
    return sorted(quick, key=_rank)[:FEW]


def _sample(items: list[pytest.Item], share: int) -> list[pytest.Item]:
    return sorted(items, key=_rank)[: -(-len(items) // share)]


def _rank(item: pytest.Item) -> str:
    return hashlib.sha256(item.nodeid.encode()).hexdigest()
