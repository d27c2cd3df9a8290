"""What filters and mixtures did, in report.md and on the page; a damaged record leaves the report whole."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import Fake, write_study

from ablatio.report.analysis.data_use import data_tables
from ablatio.report.analysis.findings import Findings, find
from ablatio.report.html.page_data import content
from ablatio.report.html.render import page_text
from ablatio.report.markdown import markdown_text
from ablatio.report.read.table import read_table
from ablatio.report.words import heads

STAGE = {
    "filter": "pii", "seen": 2000, "kept": 1500, "changed": 7, "characters_removed": 90_000,
    "reasons": {"too much personal data": 500}, "counts": {"email": 9},
    "examples": [{"what": "changed", "id": "3", "why": "email: 1", "text": "to <EMAIL> | & <b>"}],
}  # fmt: skip
DRAWN = {"tokens": 12_345, "share": 0.31, "expected": 0.3, "error": 0.01, "epochs": 1.25}


def report(folder: Path, record: Any = None, sources: Any = None) -> Findings:
    """A study of two arms, with a record of data and drawn rows in the first run of the first arm."""
    study = write_study(folder / "s", Fake({"norm": ["rmsnorm", "layernorm"]}))
    for run in (path.parent for path in study.glob("runs/*/summary.json")):
        if record is not None:
            (run / "data.json").write_text(json.dumps(record))
        summary = json.loads((run / "summary.json").read_text())
        more = {} if sources is None else {"sources": sources, "val/bpb/web": 1.25, "val/loss/web": 2.0}
        (run / "summary.json").write_text(json.dumps(summary | more))
        if sources is not None:
            header, *lines = (run / "metrics.csv").read_text().splitlines()
            rows = [f"{line},{2 + (len(lines) - 1 - i) / len(lines)}" for i, line in enumerate(lines)]
            (run / "metrics.csv").write_text("\n".join([f"{header},val/loss/web", *rows]) + "\n")
    return find(read_table([study]))


def test_tables_and_curves(tmp_path: Path) -> None:
    findings = report(tmp_path, {"filters": {"web": [STAGE]}}, {"web": DRAWN})
    found = data_tables(findings)
    arms = {row.arm.name for row in findings.rows}
    assert {row[0] for rows in found.values() for row in rows} == arms and len(arms) == 2
    assert [len(row) for row in (found["filters"][0], found["examples"][0], found["sources"][0])] == [
        len(head) for head in (heads("filters"), heads("dropped"), heads("sources"))
    ]
    assert found["filters"][0][1:] == (
        "web", "pii", "2,000", "1,500", "7", "90,000", "too much personal data: 500, email: 9",
    )  # fmt: skip
    n = len(findings.rows[0].arm.runs)
    assert n > 1 and found["sources"][0][1:] == (
        "web", str(n), "31.00%", "30.00%", f"{0.01 / math.sqrt(n):.2%}", "12,345", "1.25", "1.2500", "0.0000",
    )  # fmt: skip
    text = markdown_text(findings)
    assert "## What filters dropped" in text and "## Rows of each source" in text
    assert r"to \<EMAIL\> \| & \<b\>" in text or "&lt;EMAIL" in text  # escaped for a table
    assert "val/loss/web" in {curve["name"] for curve in content(findings)["curves"]}
    assert "too much personal data" in page_text(findings)


def test_sources_are_means_over_the_runs_of_an_arm(tmp_path: Path) -> None:
    findings = report(tmp_path, {}, {"web": DRAWN})
    one, two, *others = findings.rows[0].arm.runs
    for run, share, error, bits in ((one, 0.28, 0.03, 1.0), (two, 0.34, 0.04, 1.5)):
        summary = json.loads((run.folder / "summary.json").read_text())
        summary |= {"sources": {"web": DRAWN | {"share": share, "error": error, "tokens": 100}}, "val/bpb/web": bits}
        (run.folder / "summary.json").write_text(json.dumps(summary))
    for run in others:
        (run.folder / "summary.json").write_text("{}")
    row = next(row for row in data_tables(findings)["sources"] if row[0] == findings.rows[0].arm.name)
    assert row[1:] == ("web", "2", "31.00%", "30.00%", "2.50%", "100", "1.25", "1.2500", "0.3536")


def test_tokenizers_are_compared_where_they_differ(tmp_path: Path) -> None:
    """Counts of a text of 1000 bytes in 100 words: as bytes, and as 250 tokens of 4 bytes."""
    study = write_study(tmp_path / "s", Fake({"tokenizer": ["bytes", "bpe"]}, steps=10))
    for path in study.glob("runs/*/manifest.json"):
        manifest = json.loads(path.read_text())
        bytewise = json.loads((path.parent / "config.json").read_text())["tokenizer"]["name"] == "bytes"
        manifest["size"]["vocab_size"] = 257 if bytewise else 512
        held = {"documents": 5, "tokens": 1005 if bytewise else 255, "bytes": 1000, "words": 100}
        seconds = {"encoding_seconds": 0.004} if bytewise else {}
        manifest["data"] |= {"train": held, "validation": held} | seconds
        path.write_text(json.dumps(manifest))
    findings = find(read_table([study]))
    rows = {row[1]: row[2:] for row in data_tables(findings)["tokenizers"]}
    tokens = {run.tokenizer.split()[0]: run.size["tokens"] for run in findings.table.runs}
    assert rows["bytes"] == ("257", "1", "10", "0.5", f"{tokens['bytes'] * 1000 / 1005 / 1e6:.3g}")
    assert rows["bpe"] == ("512", "4", "2.5", "", f"{tokens['bpe'] * 1000 / 255 / 1e6:.3g}")
    assert len(heads("tokenizers")) == 7 and "## Tokenizers" in markdown_text(findings)
    assert content(findings)["data"]["tokenizers"] == [list(row) for row in data_tables(findings)["tokenizers"]]


def test_no_section_without_filters_and_mixtures(tmp_path: Path) -> None:
    findings = report(tmp_path)
    assert data_tables(findings) == {"tokenizers": [], "filters": [], "examples": [], "sources": []}
    assert "What filters dropped" not in markdown_text(findings)


@pytest.mark.parametrize(
    ("record", "sources"),
    [
        ([], {}),
        ({"filters": 3}, {"web": 7}),
        ({"filters": {"": [None, 4, {"reasons": 5, "examples": {"a": 1}, "seen": "many"}]}}, {"web": {"share": "x"}}),
        ({"filters": {"": [{"filter": ["x"], "reasons": {"a": None}, "examples": [3]}]}}, {"web": {"tokens": None}}),
    ],
)
def test_a_damaged_record_is_no_error(tmp_path: Path, record: Any, sources: Any) -> None:
    findings = report(tmp_path, record, sources)
    assert markdown_text(findings) and content(findings)
