"""The page of a scaling law, and the report's section on scales, in a real browser."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import CHROMIUM, browser
from helpers.studies import Fake, change_result, write_study

from ablatio.cli.main import main

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("websockets") is None,
    reason="these tests render the page in Chromium: apt-get install chromium, and pip install websockets",
)
SIZES = {"32": 2e5, "64": 8e5, "128": 3e6}
STEPS = {"100": 1e6, "400": 4e6, "1600": 1.6e7}
EMPTY = "[...document.querySelectorAll('.figure')].filter(f => !f.querySelector('svg .mark')).length"
BROKEN = "[...document.querySelectorAll('svg')].some(e => /NaN|undefined|Infinity/.test(e.outerHTML))"
UNTRANSLATED = """
    (([a, b]) => [...a.filter((k) => !b.includes(k)), ...b.filter((k) => !a.includes(k))])(
        [Object.keys(words.en), Object.keys(words.zh)])
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two norms at nine sizes and lengths with three seeds; the gain of rmsnorm grows with both."""
    axes = {"norm": ["layernorm", "rmsnorm"], "model.d_model": list(SIZES), "train.steps": list(STEPS)}
    folder = write_study(tmp_path_factory.mktemp("law") / "study", Fake(axes=axes, seeds=(1, 2, 3)))
    rng = np.random.default_rng(0)
    for path in sorted((folder / "jobs").glob("*.json")):
        arm = json.loads(path.read_text())["arm"]
        n, d = SIZES[arm["model.d_model"]], STEPS[arm["train.steps"]]
        gain = 0.02 * np.log10(n * d / 2e11) * (arm["norm"] == "rmsnorm")
        loss = 1.5 + 300 / n**0.4 + 200 / d**0.3 - gain + rng.normal(0, 1e-3)
        more = {"parameters": n, "tokens": d, "train_flops": 6 * n * d, "val/loss": float(loss)}
        change_result(folder / "runs" / path.stem, **more)
    return folder


def test_scaling_page_renders_in_both_languages(study: Path, tmp_path: Path) -> None:
    file = tmp_path / "scaling.html"
    assert main(["scaling", str(study), "--at", "5e6,2e7", "--html", str(file)]) == 0
    with browser() as page:
        page.open(file)
        ids = page.value("[...document.querySelectorAll('section')].map(s => s.id).join(' ')")
        assert ids.startswith("trends fit residuals budgets")
        for _ in range(2):
            assert page.errors == [] and page.value(EMPTY) == 0 and not page.value(BROKEN)
            assert page.value("document.documentElement.scrollWidth <= innerWidth")
            page.click("#language")
        assert page.value("document.querySelectorAll('#residuals .figure').length") == 3
        assert "grows with parameters" in page.value("document.querySelector('header').textContent")
        assert page.value(UNTRANSLATED) == []
        assert {a for a in page.asked if not a.startswith("data:,")} == {file.resolve().as_uri()}


def test_report_has_a_section_on_scales(study: Path) -> None:
    assert main(["report", str(study), "--quiet"]) == 0
    with browser() as page:
        page.open(study / "report" / "report.html")
        assert page.errors == [] and page.value(EMPTY) == 0 and not page.value(BROKEN)
        assert "grows with tokens" in page.value("document.querySelector('#scales').textContent")
        page.click("#language")
        assert "随参数量增大而增大" in page.value("document.querySelector('#scales').textContent")
        assert page.value("document.querySelectorAll('#scales svg').length") == 2
