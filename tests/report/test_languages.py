"""English and Chinese: every sentence and every word of the page is there in both, with the same fields."""

import importlib
import json
import pkgutil
import re
import shutil
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

import pytest
from helpers.studies import ACTIVATIONS, MIXED, RATES, Fake, plackett_burman, write_study

import ablatio.report
from ablatio.report.analysis.findings import find
from ablatio.report.html.page_data import content
from ablatio.report.read import notes
from ablatio.report.read.table import read_table

CHINESE = re.compile(r"[\u4e00-\u9fff]")
ASSETS = files("ablatio.report.html") / "assets"


def texts() -> Iterator[tuple[str, Mapping[str, str], Mapping[str, str]]]:
    """(where, English, Chinese) of each table of texts in the package, however it is called, and of each page."""
    for module in pkgutil.walk_packages(ablatio.report.__path__, "ablatio.report."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, Mapping) and set(value) == {"en", "zh"}:
                yield f"{module.name}.{name}", value["en"], value["zh"]
    for page in ("words", "scaling"):
        both = [json.loads(ASSETS.joinpath(f"{page}.{language}.json").read_text()) for language in ("en", "zh")]
        yield page, *both


def test_every_text_is_there_in_both_languages_with_the_same_fields() -> None:
    found = list(texts())
    assert len(found) > 8
    for where, english, chinese in found:
        assert english.keys() == chinese.keys(), where
        for key, text in english.items():
            fields = [sorted(set(re.findall(r"{(\w+)", t))) for t in (text, chinese[key])]
            assert fields[0] == fields[1], (where, key)


def test_every_word_that_the_page_asks_for_is_there() -> None:
    words = json.loads(ASSETS.joinpath("words.zh.json").read_text())
    scripts = [p for p in ASSETS.iterdir() if p.name.endswith(".js") and p.name != "scaling.js"]
    asked = {key for p in scripts for key in re.findall(r"\bt\(\"(\w+)\"", p.read_text())}
    assert len(asked) > 80 and asked <= words.keys() | json.loads(ASSETS.joinpath("scaling.zh.json").read_text()).keys()


STUDIES = {
    "arms": ACTIVATIONS, "factors": MIXED, "rates": RATES, "screening": plackett_burman(),
    "pairs": Fake(axes={"norm": ["rmsnorm", "layernorm", "dyt"]}),
    "best": Fake(axes={"norm": [f"n{i}" for i in range(12)]}, effects={"norm=n3": -0.1}),
    "wild": Fake(axes={"norm": ["a", "b", "c"]}, states={("norm=a", 1): "diverged", ("norm=b", None): "failed"}),
}  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("method", ["t", "skewed"])
def test_each_sentence_of_a_report_is_chinese_in_the_chinese_one(tmp_path: Path, name: str, method: str) -> None:
    table = read_table([write_study(tmp_path / name, STUDIES[name])])
    found = find(table, method=method, margin="0.01nats", target="3.2")  # type: ignore[arg-type]
    english, chinese = found.said("en"), found.said("zh")
    assert len(english) == len(chinese) > 0
    assert [s for s in chinese if not CHINESE.search(s)] == [] == [s for s in english if CHINESE.search(s)]


ENGLISH = re.compile(r"(?:[a-z]{2,}[,;:]? ){3,}[a-z]{2,}")  # four words: names of arms and settings have none
GIVEN = {"question", "expected", "overrides", "command", "rows"}  # what somebody typed, or a model answered


def english_of(node: object, where: str = "") -> Iterator[tuple[str, str]]:
    """(place, text) of English sentences in the data of a page, beside those that have their Chinese."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key not in GIVEN and not (key == "en" and "zh" in node):
                yield from english_of(value, f"{where}.{key}")
    elif isinstance(node, list):
        for value in node:
            yield from english_of(value, where)
    elif isinstance(node, str) and ENGLISH.search(node):
        yield where, node


@pytest.mark.parametrize("name", ["factors", "screening", "wild"])
def test_the_chinese_page_has_no_english_sentence(tmp_path: Path, name: str) -> None:
    """With a damaged run, one whose process is gone, a run that is there twice, and several versions of the code."""
    folder = write_study(tmp_path / name, STUDIES[name])
    runs = sorted((folder / "runs").iterdir())
    (runs[0] / "summary.json").write_text(json.dumps({"status": "done", "score": {"name": 3, "better": "up"}}))
    for n, run in enumerate(runs[1:]):
        if (path := run / "manifest.json").exists():
            manifest = json.loads(path.read_text())
            path.write_text(json.dumps(manifest | {"code": {**manifest.get("code", {}), "core": f"{n % 2}" * 64}}))
    shutil.copytree(folder, other := tmp_path / "other" / name)
    found = content(find(read_table([folder, other])))
    lost = [r for r in found["lost"] if r["state"] != "damaged"]
    errors = {r["why"] for r in (*lost, *found["refused"])}  # what the runs wrote, and the rules of parts
    names = {a[key] for a in found["arms"] for key in ("name", "label")} | {r["label"] for r in found["lost"]}
    assert [x for x in english_of(found) if x[1] not in errors | names] == []
    told = found["notes"]
    assert any("versions of ablatio" in n["en"] and "个版本" in n["zh"] for n in told)
    assert any("is there twice" in n["en"] and "两次" in n["zh"] for n in told)
    damaged = [r["why"] for r in found["lost"] if r["state"] == "damaged"]
    assert damaged and all("lower or higher" in why["en"] and CHINESE.search(why["zh"]) for why in damaged)


def test_a_note_says_the_same_fields_in_both_languages() -> None:
    for key, text in notes.TEXTS["en"].items():
        values = dict.fromkeys(re.findall(r"{(\w+)", text), 12345)
        told = notes.note(key, **values)
        assert told == str(told) and (told.count("12345") + told.count("12,345")) == len(values)
        assert CHINESE.search(told.zh) or not CHINESE.search(notes.TEXTS["zh"][key])
