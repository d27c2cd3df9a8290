"""The tool that compares what parts cite with arXiv's titles: the answer's form, and no network."""

import importlib.util
import io
import urllib.error
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "docs" / "tools" / "papers.py"
# The form of export.arxiv.org/api/query, with two papers, a version, a line break in a title, and an unknown id.
ANSWER = b"""<?xml version='1.0' encoding='UTF-8'?>
<feed xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/" xmlns:arxiv="http://arxiv.org/schemas/atom"
      xmlns="http://www.w3.org/2005/Atom">
  <id>https://arxiv.org/api/abc</id><title>arXiv Query: id_list=1412.6980,1706.03762</title>
  <opensearch:totalResults>2</opensearch:totalResults>
  <entry><id>http://arxiv.org/abs/1412.6980v9</id><title>Adam: A Method for
    Stochastic Optimization</title><author><name>D. P. Kingma</name></author><summary>We introduce ...</summary></entry>
  <entry><id>http://arxiv.org/abs/1706.03762v7</id><title>Attention Is All You Need</title></entry>
</feed>"""


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("papers", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_titles_of_an_answer_are_compared(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def answer(url: str, timeout: float) -> Any:
        asked.append(url)
        return io.BytesIO(ANSWER)

    monkeypatch.setattr(tool.urllib.request, "urlopen", answer)
    assert tool.titles_in(ANSWER) == {
        "1412.6980": "Adam: A Method for Stochastic Optimization", "1706.03762": "Attention Is All You Need",
    }  # fmt: skip
    table = {"1412.6980": "Adam", "1706.03762": "Attention Is Nothing", "2001.00001": "Not There"}
    assert list(tool.other_titles(table, [*table, "1711.05101"])) == [
        "1706.03762: arXiv has Attention Is All You Need", "2001.00001: arXiv has no such paper",
        "1711.05101: arXiv has no such paper",
    ]  # fmt: skip
    assert asked[0].endswith("id_list=1412.6980,1706.03762,2001.00001,1711.05101")


@pytest.mark.parametrize(
    "fault", [urllib.error.URLError("Name or service not known"), TimeoutError("timed out"), b"<html>busy", b""]
)
def test_without_an_answer_it_says_so(
    tool: ModuleType, fault: Exception | bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(url: str, timeout: float) -> Any:
        if isinstance(fault, Exception):
            raise fault
        return io.BytesIO(fault)

    monkeypatch.setattr(tool.urllib.request, "urlopen", answer)
    assert tool.main(online=True) == 5
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[0].startswith("arXiv gave no answer") and said[1].startswith("    try: python ")
    assert tool.main(online=False) == 0
