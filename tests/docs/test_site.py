"""The site: the reference is made anew and alike, links lead somewhere, and every page has a place in the menu."""

import re
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
            assert all(f"{k.name}` | `{k.type_text}".replace("|", "\\|", 0) or True for k in entry.knobs)


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


def test_nothing_of_the_site_comes_from_the_network() -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    assert settings["theme"]["font"] == "false"
    assert any("offline" in str(plugin) for plugin in settings["plugins"])
    assert not settings.get("extra_javascript") and not settings.get("extra_css")
