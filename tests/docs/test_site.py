"""The site: the reference is made anew and alike, links lead somewhere, and every page has a place in the menu."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.doc_pages import DOCS, ROOT, pages

from ablatio.registry.registry import REGISTRIES
from ablatio.testing import reference

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return dict(reference.pages())


def test_the_reference_has_a_page_for_each_kind_and_a_section_for_each_option(made: dict[str, str]) -> None:
    for kind, registry in REGISTRIES.items():
        sections = re.findall(r"^## (\w+)$", made[f"kinds/{kind}.md"], re.M)
        assert [s for s in sections if s != "Options"] == registry.names()
        for entry in registry:
            page, missing = made[f"kinds/{kind}.md"], []
            missing += [k.name for k in entry.knobs if f".{k.name}`" not in page]
            missing += [said for said in [entry.summary] if said not in page]
            assert not missing, f"{kind}={entry.name}: {missing} is not on its page"


def test_the_reference_is_the_same_twice(made: dict[str, str]) -> None:
    again = dict(reference.pages())
    assert {name for name in made if made[name] != again.get(name)} == set()


def test_contracts_in_the_guide_are_those_of_the_registry() -> None:
    marked = []
    for path in sorted((DOCS / "plugins").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        assert reference.with_contracts(text) == text, f"{path} is stale; run `make docs`"
        marked += re.findall(r"<!-- contract: (\w+) -->", text)
    ours = [kind for kind, registry in REGISTRIES.items() if registry.distribution.name == "ablatio"]
    assert sorted(marked) == sorted(ours or REGISTRIES)


@pytest.mark.parametrize("page", pages())
def test_links_lead_to_files(page: str, made: dict[str, str]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in [a or b for a, b in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.S))]:
        if target.startswith(("http://", "https://", "#")):
            continue
        path = (DOCS / page).parent / target.split("#")[0]
        generated = path.resolve().is_relative_to((DOCS / "reference").resolve())
        known = (
            path.resolve().relative_to((DOCS / "reference").resolve()).as_posix() in made
            if generated
            else path.exists()
        )
        assert known, f"docs/{page} links to {target}, which does not exist"


def test_every_page_is_in_the_menu() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    menu = set(re.findall(r"[\w/.-]+\.md", text))
    assert set(pages()) <= menu, sorted(set(pages()) - menu)
    missing = [m for m in menu if not m.startswith("reference/") and not (DOCS / m).exists()]
    assert not missing


@pytest.mark.slow
def test_the_site_builds_without_a_warning(made: dict[str, str], tmp_path: Path) -> None:
    """And opens from the disk: no page asks for anything outside of it."""
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("reference"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for name, text in made.items():
        path = tmp_path / "docs" / "reference" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")
    built = sorted((tmp_path / "site").rglob("*.html"))
    assert len(built) > len(pages())
    for page in built:
        asked = re.findall(r'<(?:script|img|link)[^>]*?(?:src|href)="(https?:[^"]*)"', page.read_text(encoding="utf-8"))
        assert not asked, f"{page.name} asks for {asked[0]}"


def test_nothing_of_the_site_comes_from_the_network() -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    assert settings["theme"]["font"] == "false"
    assert any("offline" in str(plugin) for plugin in settings["plugins"])
    assert not settings.get("extra_javascript") and not settings.get("extra_css")
