"""Fake installed distributions: importable in a child process, and written within a millisecond."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import warm_python

BROKEN = Path(__file__).parent / "plugins" / "broken"


class Site:
    """A folder that serves as site-packages of child processes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder / "site", folder / "cache"
        self.folder.mkdir(parents=True)

    def add(self, dist: str, *modules: str, origin: Path = BROKEN) -> "Site":
        """Add a distribution with an entry point for each of these modules or packages, named like it."""
        for module in modules:
            place = origin / module
            if place.is_dir():
                shutil.copytree(place, self.folder / module, dirs_exist_ok=True)
            else:
                shutil.copy(origin / f"{module}.py", self.folder)
        info = self.folder / f"{dist.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        points = "\n".join(f"{m.removeprefix('broken_')} = {m}" for m in modules)
        (info / "entry_points.txt").write_text(f"[ablatio.plugins]\n{points}\n")
        return self

    def run(self, *arguments: str, seconds: str = "8") -> subprocess.CompletedProcess[str]:
        """Run Python with these distributions and a cache of its own, which knows the parts of ablatio alone."""
        known = Path(os.environ["ABLATIO_CACHE"], "catalogue")
        if known.is_dir() and not self.cache.exists():
            shutil.copytree(known, self.cache / "catalogue")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "ABLATIO_CACHE": str(self.cache),
            "ABLATIO_PLUGIN_SECONDS": seconds,
            "OMP_NUM_THREADS": "1",
        }
        return warm_python.run(arguments, env=environment, cwd=self.folder.parent)

    def ask(self, code: str) -> object:
        """Run `code` and return the value of its variable `answer`."""
        run = self.run("-c", f"import json\n{code}\nprint(json.dumps(answer))")
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout.splitlines()[-1])

    def check(self, dist: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "ablatio.cli", "check", dist)


@pytest.fixture
def new_site() -> type[Site]:
    return Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("plugins"))
