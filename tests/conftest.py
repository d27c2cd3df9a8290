"""Options and fixtures for all tests: one thread per process, and a cache that the next test run reuses."""

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import selection, warm_python
from helpers.plugin_sites import new_site, site  # noqa: F401  (fixtures)
from helpers.small_text import small_text
from helpers.threads import one_thread, one_thread_in_fork

from ablatio.data.workers import available_cores
from ablatio.registry import catalogue
from ablatio.storage.collector import collect_in_training, collect_seldom

collect_ignore = ["helpers"]  # plugins in there have suites of their own, which register their kinds when imported

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads of processes that tests start wait without using a core
catalogue.subprocess = SimpleNamespace(run=warm_python.scan, TimeoutExpired=subprocess.TimeoutExpired)
collect_seldom()  # while all test modules are imported


os.register_at_fork(after_in_child=one_thread_in_fork)  # runs are forked from test processes (helpers/runs.py)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("selection")
    group.addoption("--select", choices=("fast", "usual", "all"), default="all", help="see tests/helpers/selection.py")
    group.addoption("--results", metavar="FILE", help="write counts, date, commit and times as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if (results := config.getoption("--results")) and not hasattr(config, "workerinput"):
        from helpers.results import ResultsFile

        config.pluginmanager.register(ResultsFile(Path(results), config.rootpath))
    cache = getattr(config, "cache", None)  # None with -p no:cacheprovider
    os.environ["ABLATIO_CACHE"] = str(cache.mkdir("ablatio")) if cache else tempfile.mkdtemp()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: one more than there are cores, as tests wait for processes for a sixth of their time.

    The fast ones start none, and each worker has to import all their modules.
    """
    return available_cores() + (config.getoption("--select") != "fast")


def pytest_collection_finish() -> None:
    collect_in_training()
    one_thread()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return selection.is_left_out(collection_path, config.getoption("--select")) or None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = selection.selected(items, config.getoption("--select"))
    if len(kept) < len(items):
        left = set(kept)
        config.hook.pytest_deselected(items=[item for item in items if item not in left])
        items[:] = kept


@pytest.fixture(autouse=True)
def reset_global_state() -> Iterator[None]:
    """Restore what a training changes here: threads, matmul precision, and CC and CXX, which peft may set."""
    compilers = {key: os.environ[key] for key in ("CC", "CXX") if key in os.environ}
    yield
    if torch := sys.modules.get("torch"):
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
        one_thread()
    for key in ("CC", "CXX"):
        os.environ.pop(key, None)
    os.environ.update(compilers)


@pytest.fixture(autouse=True, scope="module")
def give_memory_back() -> Iterator[None]:
    """Return freed memory to the system, which a training keeps: each fork of this process copies the tables of it."""
    yield
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc
        trim(0)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A small learnable text: sentences over a few words, documents separated by blank lines."""
    return small_text(tmp_path / "text.txt")
