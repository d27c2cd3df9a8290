"""One version: that of the package, of its metadata and of the newest entry of the changelog."""

import re
import tomllib
from pathlib import Path

import ablatio

ROOT = Path(__file__).parents[2]


def test_the_changelog_and_the_package_have_one_version() -> None:
    newest = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[0]
    assert newest == ablatio.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert (ROOT / project["tool"]["hatch"]["version"]["path"]).samefile(ROOT / "core/ablatio/__init__.py")
