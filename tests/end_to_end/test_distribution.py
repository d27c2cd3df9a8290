"""The wheel and the sdist, built as for an upload: what is in them, once, and what their metadata say."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> dict[str, bytes]:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        assert len(file.namelist()) == len({*file.namelist()})
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def sdist(built: Path) -> set[str]:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as file:
        return {name.partition("/")[2] for name in file.getnames()}


def tracked(*folders: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, check=True, capture_output=True, text=True)
    return {*done.stdout.split()}


def test_wheel_has_the_packages_and_nothing_else(wheel: dict[str, bytes]) -> None:
    expected = {name.partition("/")[2] for name in tracked("core/ablatio", "plugins/ablatio_std")}
    expected |= {f"ablatio/{name}" for name in tracked("conf", "sweeps")}
    found = {name for name in wheel if ".dist-info/" not in name}
    here = {n for n in found if (ROOT / "core" / n).exists() or (ROOT / "plugins" / n).exists()}
    assert expected <= found and found - expected <= here, "only new files of a working tree are not tracked yet"
    assert not [n for n in found if "__pycache__" in n or Path(n).suffix in (".pyc", ".orig", ".log")]


def test_corpora_are_there_once(wheel: dict[str, bytes]) -> None:
    large = sorted(name for name, data in wheel.items() if len(data) > 1_000_000)
    assert large == ["ablatio_std/corpora/sotu.jsonl.xz", "ablatio_std/corpora/zh_classics.jsonl.xz"]


def test_metadata_say_whose_what_and_for_what(wheel: dict[str, bytes]) -> None:
    told = message_from_string(wheel[next(n for n in wheel if n.endswith("/METADATA"))].decode())
    assert told["License-Expression"] == "Apache-2.0" and told["Author"] and told.get_all("Project-URL")
    assert {*told.get_all("License-File")} == {"LICENSE", "plugins/ablatio_std/corpora/NOTICE.md"}
    assert all(any(n.endswith(f"licenses/{file}") for n in wheel) for file in told.get_all("License-File"))
    classifiers = told.get_all("Classifier")
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= {*classifiers}
    assert not [c for c in classifiers if c.startswith("License ::")], "an SPDX expression replaces them"
    points = wheel[next(n for n in wheel if n.endswith("entry_points.txt"))].decode()
    for group in ("console_scripts", "ablatio.plugins", "pytest11", "torch.backends"):
        assert f"[{group}]" in points


def test_sdist_has_no_stray_files_and_the_pictures_of_its_readme(sdist: set[str]) -> None:
    tops = {name.partition("/")[0] for name in sdist if name}
    assert tops <= {"core", "plugins", "conf", "sweeps", "docs", "README.md", "CHANGELOG.md", "LICENSE", "PKG-INFO",
                    "pyproject.toml", ".gitignore"}  # fmt: skip
    assert {n.split("/")[1] for n in sdist if n.startswith("plugins/")} == {"ablatio_std"}
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert pictures and all(p in sdist or p.startswith("https://") for p in pictures)
    assert {n for n in sdist if n.startswith("docs/")} <= {*pictures}
    assert "LICENSE" in sdist and "plugins/ablatio_std/corpora/NOTICE.md" in sdist
