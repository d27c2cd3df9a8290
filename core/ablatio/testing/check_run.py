"""`ablatio check`: run the contract suites on everything that one distribution brings, in a process of its own."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ablatio.errors import EnvironmentFault, UserError
from ablatio.registry import consumers, discovery
from ablatio.registry.catalogue import conf_files
from ablatio.registry.parts_file import PartsFile
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import check_table, installed, outcomes, suite_packages

FAILED = 2
NEEDS = "the suites run under pytest"
SETTINGS = "[pytest]\naddopts = --import-mode=importlib\nfilterwarnings = error\n"
ENDINGS = (0, 1, 5)  # exit codes of pytest: all passed, some failed, nothing to run
POLL = 0.5  # seconds between two looks at the outcomes


def check(dist: str, verbose: int = 0, as_json: bool = False) -> int:
    """Test a distribution's parts, YAML options and kinds, and print the result; returns 0 if nothing fails, else 2.

    verbose: 1 prints all reasons, 2 also tracebacks
    as_json: print one JSON object instead
    """
    _refuse_without_pytest()
    dist = installed(dist)
    left_out = [f for f in discovery.failures() if f.distribution.name == dist]
    if not as_json:
        print("\n".join([_announced(dist), *map(str, left_out)]), flush=True)
    sources = [s for s in discovery.sources() if s.distribution.name == dist]
    found = _outcomes("--ablatio-dist", dist) if sources else []
    return _told(dist, [*map(str, left_out)], found if sources else None, verbose, as_json)


def check_file(file: PartsFile, verbose: int = 0, as_json: bool = False) -> int:
    """Test the parts of a file of parts, and print the result as `check` does; returns 0 if nothing fails, else 2."""
    _refuse_without_pytest()
    dist = file.distribution.name
    if not as_json:
        print(_announced(dist), flush=True)
    return _told(dist, [], _outcomes("--ablatio-parts", str(Path(file.path).absolute())), verbose, as_json)


def _refuse_without_pytest() -> None:
    if importlib.util.find_spec("pytest") is None:
        raise UserError(f"{NEEDS}, which is not installed\n    try: pip install 'ablatio[test]'")


def _told(dist: str, left_out: list[str], found: Sequence[outcomes.Outcome] | None, verbose: int, as_json: bool) -> int:
    """Print the outcomes (None: nothing was tested); return the exit code."""
    warnings = [said for kind in _kinds(dist) if (said := consumers.unused(REGISTRIES[kind]))]
    if as_json:
        data = {"left_out": left_out, "warnings": warnings, "outcomes": [asdict(o) for o in found or ()]}
        print(json.dumps(data, indent=1))
    elif found is not None:
        lines = ["", *check_table.render(found, _width(), verbose), *(f"warning: {w}" for w in warnings)]
        print("\n".join(lines))
    return FAILED if left_out or any(o.state == "failed" for o in found or ()) else 0


def _announced(dist: str) -> str:
    """Return a line that counts what will be tested, with the version of pytest."""
    import pytest

    parts = sum(e.distribution.name == dist for r in REGISTRIES.values() for e in r)
    sources = [s for s in discovery.sources() if s.distribution.name == dist]
    options = sum(1 for s in sources if s.conf is not None for _ in conf_files(s.conf))
    counts = [(parts, "part"), (options, "YAML option"), (len(_kinds(dist)), "kind")]
    what = ", ".join(f"{n} {word}{'s' if n != 1 else ''}" for n, word in counts if n) or "nothing that loads"
    return f"checking {what} of {dist} with pytest {pytest.__version__}"


def _kinds(dist: str) -> list[str]:
    return [kind for kind, registry in REGISTRIES.items() if registry.distribution.name == dist]


def _width() -> int:
    return max(80, min(shutil.get_terminal_size().columns, 120))


def _outcomes(which: str, value: str) -> Sequence[outcomes.Outcome]:
    """Run the suites in a child process; its own output is shown only if pytest itself fails."""
    # The caller's pytest settings and other plugins must not influence the result.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pytest.ini").write_text(SETTINGS)
        results, log = Path(folder) / "outcomes.jsonl", Path(folder) / "log"
        options = [which, value, "--ablatio-outcomes", str(results), "-q", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", "-p", "ablatio", "-c", "pytest.ini", *options, "--pyargs"]
        with log.open("w") as stream:
            child = subprocess.Popen(
                [*command, *suite_packages()], cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT
            )
            try:
                _wait(child, results)
            finally:
                child.kill()
                child.wait()
        if child.returncode not in ENDINGS:
            tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise EnvironmentFault(f"pytest ended with code {child.returncode}\n{tail}\n    try: ablatio doctor")
        return outcomes.read(results)


def _wait(child: "subprocess.Popen[bytes]", results: Path) -> None:
    """Wait for the child; on a terminal, show how many checks are done."""
    shown = sys.stderr.isatty()
    while child.poll() is None:
        time.sleep(POLL)
        if shown and results.exists():
            done = results.read_bytes().count(b"\n")
            print(f"\r{done} checks done", end="", file=sys.stderr, flush=True)
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
