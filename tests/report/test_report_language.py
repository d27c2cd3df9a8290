"""`ablatio report --language zh`: report.md and the terminal in Chinese, with the numbers of the English ones."""

import html
import io
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from helpers.studies import ACTIVATIONS, MIXED, POLICIES, RATES, Fake, plackett_burman, write_study
from rich.console import Console

from ablatio.cli.report import run
from ablatio.errors import UserError
from ablatio.report.analysis.findings import Findings, find
from ablatio.report.markdown import markdown_text
from ablatio.report.read.table import read_table
from ablatio.report.terminal import arm_table
from ablatio.report.words import LANGUAGES, TEXTS, Language, heads, page_words

CHINESE = re.compile(r"[\u4e00-\u9fff]")
ENGLISH = re.compile(r"(?:\b[a-z]{2,}\b[,;:]? ){2,}[a-z]{2,}\b")  # three words: names of arms and settings have none
NUMBER = re.compile(r"[-+−]?\d+\.\d+")
SAMPLES = [{"prompt": "2 + 2 =", "expected": "4", "before": "5", "after": "4", "reward": "0.25 -> 0.75"}]
STUDIES = {
    "arms": ACTIVATIONS, "factors": MIXED, "rates": RATES, "screening": plackett_burman(), "policies": POLICIES,
    "best": Fake(axes={"norm": [f"n{i}" for i in range(12)]}, effects={"norm=n3": -0.1}),
    "wild": Fake(axes={"norm": ["a", "b", "c"]}, states={("norm=a", 1): "diverged", ("norm=b", None): "failed"}),
    "going on": Fake(axes={"norm": ["a", "b"]}, states={("norm=a", 1): "running", ("norm=b", 2): "planned"}),
    "one run": Fake(axes={"norm": ["a"]}, seeds=[1], samples=SAMPLES),
}  # fmt: skip


def shown(found: Findings, language: Language) -> str:
    console = Console(file=io.StringIO(), width=300)
    arm_table.show(console, found, language)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def without_names(found: Findings, text: str) -> str:
    """The text without commands, what a person or a run wrote, and the names of settings and their values."""
    text = html.unescape(text.replace("\\", ""))
    reasons = [one.why for one in (*found.table.runs, *found.table.refused)]
    for line in (found.question, *(line for why in reasons for line in why.split("\n"))):
        text = text.replace(line, "") if line else text
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE).replace("--interval skewed", "")
    words = {word for run in found.table.runs for setting in run.arm.items() for word in setting}
    names = {part for word in words for part in (word, *word.split("."))} | {found.table.study.name}
    return re.sub("|".join(rf"\b{re.escape(name)}\b" for name in sorted(names, key=len, reverse=True)), "", text)


OUTPUTS: Mapping[str, Callable[[Findings, Language], str]] = {"report.md": markdown_text, "terminal": shown}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", STUDIES)
def test_chinese_report_has_no_english_sentence_and_the_same_numbers(tmp_path: Path, name: str, output: str) -> None:
    found = find(read_table([write_study(tmp_path / name, STUDIES[name])]), margin="0.01nats")
    english, chinese = (OUTPUTS[output](found, language) for language in LANGUAGES)
    assert Counter(NUMBER.findall(english)) == Counter(NUMBER.findall(chinese))
    assert CHINESE.search(chinese) and not CHINESE.search(english) and ENGLISH.search(english)
    assert ENGLISH.findall(without_names(found, chinese)) == []


def test_titles_and_heads_are_chinese(tmp_path: Path) -> None:
    text = markdown_text(find(read_table([write_study(tmp_path / "s", plackett_burman())])), "zh")
    titles = re.findall("^#{2} (.*)$", text, re.MULTILINE)
    assert len(titles) >= 6 and all(CHINESE.search(title) for title in titles)
    for table in ("arms", "stage", "effect", "evaluations", "answers", "signal", "sources", "filters", "dropped"):
        assert len(heads(table, "zh")) == len(heads(table, "en")) > 2, table


def test_no_text_of_the_report_hides_one_of_the_page() -> None:
    """`say` looks here first: a key in both places would have two texts."""
    assert TEXTS["en"].keys() & page_words("en").keys() == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_command_writes_the_language_that_was_asked_whatever_the_environment_says(
    tmp_path: Path, language: Language, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path / "s", ACTIVATIONS)
    told = []
    for variable in ("en_US.UTF-8", "zh_CN.UTF-8"):
        monkeypatch.setenv("LANG", variable)
        monkeypatch.setenv("LC_ALL", variable)
        assert run([str(study), "--language", language]) == 0
        told.append((capsys.readouterr().out, (study / "report/report.md").read_text()))
    assert told[0] == told[1]
    assert all(bool(CHINESE.search(text)) == (language == "zh") for text in told[0])
    assert run([str(study)]) == 0 and CHINESE.search(capsys.readouterr().out) is None


@pytest.mark.parametrize("words", [["--language", "fr"], ["--language=fr"]])
def test_unknown_language_is_refused_with_a_command_that_works(tmp_path: Path, words: list[str]) -> None:
    study = write_study(tmp_path / "s", ACTIVATIONS)
    with pytest.raises(UserError, match="--language is 'fr'; expected en or zh") as refused:
        run([str(study), *words])
    program, command, *rest = shlex.split(str(refused.value).split("try: ")[1])
    assert (program, command) == ("ablatio", "report") and run(rest) == 0


def test_language_has_no_effect_on_a_served_page(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--language has no effect with --serve"):
        run([str(write_study(tmp_path / "s", ACTIVATIONS)), "--serve", "--language", "zh"])
