"""The report page in a real browser: it renders completely without network requests, in both themes and languages."""

import importlib.util
import json
from pathlib import Path

import pytest
from helpers.browser import CHROMIUM, Page, browser
from helpers.report_attacks import attacked
from helpers.studies import ACTIVATIONS, MIXED, POLICIES, RATES, Fake, plackett_burman, write_study

from ablatio.cli.main import main

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("websockets") is None,
    reason="these tests render the page in Chromium: apt-get install chromium, and pip install websockets",
)
STUDIES = {"activations": ACTIVATIONS, "mixed": MIXED, "rates": RATES, "screening": plackett_burman(),
           "policies": POLICIES}  # fmt: skip
SECTIONS = {
    "activations": "differences arms curves ranks costs positions noise signal bill provenance",
    "mixed": "effects interactions differences arms curves ranks costs positions noise signal lost bill provenance",
    "rates":
        "effects interactions differences arms curves ranks costs rates positions samples noise signal bill provenance",
    "policies":
        "effects interactions differences arms frontier curves ranks costs positions noise signal bill provenance",
    "screening": "effects arms curves half-normal aliases ranks costs positions noise signal bill provenance",
}  # fmt: skip
INJECTED_CODE = """
    document.body.insertAdjacentHTML("beforeend", '<img src="http://evil.example/x" onerror="window.owned = 1">');
    const hole = document.createElement("script");
    hole.textContent = "window.owned = 1";
    document.body.append(hole);
    fetch("http://evil.example/y").catch(() => 0)
"""
UNTRANSLATED_KEYS = """
    (([a, b]) => [...a.filter((k) => !b.includes(k)), ...b.filter((k) => !a.includes(k))])(
        [Object.keys(words.en), Object.keys(words.zh)])
"""
CUT_TABLES = """
    [...document.querySelectorAll(".box")].filter(b => b.scrollWidth > b.clientWidth).map(b => b.closest("section").id)
"""
EMPTY_CHARTS = "[...document.querySelectorAll('.figure')].filter(f => !f.querySelector('svg .mark')).length"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reports")
    for name, fake in STUDIES.items():
        assert main(["report", str(write_study(root / name, fake)), "--quiet"]) == 0
    attacked(root / "attacked")
    assert main(["report", str(root / "attacked"), "--quiet"]) == 0
    return {name: root / name / "report" / "report.html" for name in (*STUDIES, "attacked")}


def assert_page_is_clean(page: Page, file: Path) -> None:
    """Assert: no errors, no request except the file itself, no empty chart, no horizontal overflow, no NaN in SVG."""
    assert page.errors == []
    assert {a for a in page.asked if not a.startswith("data:,")} == {file.resolve().as_uri()}
    assert page.value("document.querySelectorAll('.figure').length") > 4
    assert page.value(EMPTY_CHARTS) == 0
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    assert not page.value("[...document.querySelectorAll('svg')].some(e => /NaN|undefined|Infinity/.test(e.outerHTML))")


@pytest.mark.parametrize("dark", [False, True])
def test_every_section_and_chart_is_rendered(reports: dict[str, Path], dark: bool):
    with browser(dark=dark) as page:
        for name in STUDIES:
            page.asked.clear()
            page.open(reports[name])
            assert_page_is_clean(page, reports[name])
            found = page.value("[...document.querySelectorAll('section')].map(s => s.id).join(' ')")
            assert found == SECTIONS[name], name
            paper = page.value("getComputedStyle(document.documentElement).backgroundColor")
            assert (sum(json.loads(paper.replace("rgb(", "[").replace(")", "]"))) < 200) == dark


def test_language_and_theme_switches(reports: dict[str, Path]):
    """The sentences are generated in Chinese too, and every text of the page has a translation."""
    with browser() as page:
        page.open(reports["mixed"])
        assert "settings have an effect" in page.value("document.querySelector('.headline').textContent")
        assert "No arm beats rmsnorm rope" in page.value("document.querySelector('.verdict').textContent")
        page.click("#language")
        assert "没有方案优于 rmsnorm rope" in page.value("document.querySelector('.verdict').textContent")
        assert page.value("document.documentElement.lang") == "zh"
        assert page.value("document.querySelector('#curves h2').textContent") == "学习曲线"
        page.click("#theme")
        assert page.value("document.documentElement.dataset.theme") == "dark"
        page.click("#curves .tabs button:nth-child(2)")
        page.click("#arms th button")
        assert_page_is_clean(page, reports["mixed"])
        assert page.value(UNTRANSLATED_KEYS) == []


def test_samples_show_answers_before_and_after_side_by_side(reports: dict[str, Path]):
    """Each prompt with both answers and their line breaks; the tabs select the arm."""
    with browser() as page:
        page.open(reports["rates"])
        assert page.value("document.querySelectorAll('#samples .sample').length") == 2
        texts = "[...document.querySelectorAll('#samples .sample:first-child .said')].map(e => e.textContent)"
        assert page.value(texts) == ["How many?", "Many.", "2 + 2 = 4\n#### 4", "2 + 2 = 4\n#### 4"]
        tops = "[...document.querySelectorAll('#samples .sample:first-child .panels > div')].map(e => e.offsetTop)"
        before, after = page.value(tops)
        assert before == after and "reward" in page.value("document.querySelector('#samples').textContent")
        page.click("#samples .tabs button:nth-child(2)")
        assert page.value("document.querySelectorAll('#samples [aria-pressed=true]').length") == 1
        page.open(reports["activations"])
        assert page.value("document.querySelector('#samples')") is None


def test_page_starts_in_the_language_of_the_browser(reports: dict[str, Path]):
    with browser("zh-CN") as page:
        page.open(reports["activations"])
        assert page.value("document.documentElement.lang") == "zh"


def test_page_fits_narrow_screens_and_prints(reports: dict[str, Path], tmp_path: Path):
    with browser(dark=True) as page:
        for width in (360, 800, 1600):
            page.asked.clear()
            page.open(reports["mixed"], width)
            assert_page_is_clean(page, reports["mixed"])
        for name in STUDIES:
            page.open(reports[name], 1200)
            assert page.value(CUT_TABLES) == [], name
        page.pdf(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
        assert page.value("document.documentElement.dataset.theme") == "dark", (
            "printing must restore the theme of the screen"
        )


def test_malicious_names_are_rendered_as_text(reports: dict[str, Path]):
    with browser() as page:
        page.open(reports["attacked"])
        assert_page_is_clean(page, reports["attacked"])
        assert page.value("document.scripts.length") == 3
        assert page.value("document.querySelectorAll('img, iframe, object, embed, form').length") == 0
        assert "<script>alert('q')</script>" in page.value("document.querySelector('h1').textContent")


def test_content_security_policy_blocks_injected_code(reports: dict[str, Path]):
    """Second line of defense: should escaping fail, injected scripts do not run and images are not requested."""
    with browser() as page:
        page.open(reports["activations"])
        page.asked.clear()
        page.value(INJECTED_CODE)
        page.settle()
        assert page.value("window.owned") is None
        assert any("Content Security Policy" in e for e in page.errors)


def test_tooltip_shows_the_numbers_of_a_point(reports: dict[str, Path]):
    with browser() as page:
        page.open(reports["activations"])
        place = page.value(
            "(() => { const e = document.querySelector('#differences .hit'); e.scrollIntoView({block: 'center'});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
        page.wait_for(".tip.on")
        shown = page.value("document.querySelector('.tip.on').textContent")
        assert shown.startswith("swiglu") and "−0.0257 [−0.0357, −0.0156]" in shown and "0.008" in shown


def test_table_of_a_large_study_is_shortened(tmp_path: Path):
    axes = {"norm": [f"n{i}" for i in range(8)], "position": [f"p{i}" for i in range(8)]}
    fake = Fake(axes=axes, seeds=(1, 2), steps=200, baseline={"norm": "n0", "position": "p0"})
    main(["report", str(write_study(tmp_path / "s", fake)), "--quiet"])
    with browser() as page:
        page.open(tmp_path / "s" / "report" / "report.html")
        assert page.errors == [] and page.value(EMPTY_CHARTS) == 0
        assert page.value("document.querySelectorAll('#arms tbody tr').length") == 60
        page.click("#arms .more")
        assert page.value("document.querySelectorAll('#arms tbody tr').length") == 64
