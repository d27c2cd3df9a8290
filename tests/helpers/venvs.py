"""New virtual environments into which wheels are built and installed, as a user would do it."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


class Venv:
    """A new environment that also sees the packages of the current one."""

    def __init__(self, folder: Path) -> None:
        self.home, self.cache = folder / "venv", folder / "cache"
        venv.create(self.home, symlinks=True)
        self.python = self.home / "bin" / "python"
        site = next((self.home / "lib").glob("python*")) / "site-packages"
        # Installing torch again would take minutes; addsitedir also follows the .pth file of an editable install.
        ours = sysconfig.get_path("purelib")
        (site / "outer.pth").write_text(f"import site; site.addsitedir({ours!r})\n")

    def install(self, source: Path) -> None:
        """Build the wheel and install it, without the network."""
        wheels = self.home.parent / f"wheels-{source.name}"
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(source)]
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--no-deps", "--no-index", "-q"]
        _run(build)
        _run([*pip, *map(str, wheels.glob("*.whl"))])

    def __call__(self, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
        mine = {"ABLATIO_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [str(self.python), *arguments],
            env=os.environ | mine | environment,
            cwd=cwd or self.home,
            capture_output=True,
            text=True,
            check=False,
        )

    def ablatio(self, *arguments: str) -> str:
        run = self("-m", "ablatio.cli", *arguments)
        assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
        return run.stdout


def _run(command: list[str]) -> None:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
