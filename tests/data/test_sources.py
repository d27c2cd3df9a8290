"""Sources: documents that they read, and errors for files that cannot be read."""

import gzip
import hashlib
import json
import lzma
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from ablatio import sources
from ablatio.errors import UserError
from ablatio_std.sources import ChineseClassics, JsonLines, StateOfTheUnion, Text


def read(source: Any) -> list[str]:
    return [document.text for document in source.documents()]


def refused(source: Any, *parts: str) -> str:
    """Check that the only output is one error with each of `parts` and a suggested command; no traceback."""
    with pytest.raises(UserError) as caught:
        read(source)
    message = str(caught.value)
    assert "try: " in message
    for part in parts:
        assert part in message, message
    return message


@pytest.mark.oracle("source=text", "files written by the test")
def test_each_file_of_a_folder_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.md").write_text("second, naïve 世界")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\r\n")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"third"))
    (tmp_path / "d.txt.xz").write_bytes(lzma.compress(b"fourth"))
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    assert read(Text(path=str(tmp_path))) == ["first\r\n", "second, naïve 世界", "third", "fourth"]
    assert read(Text(path=str(tmp_path / "**" / "*.txt*"))) == ["first\r\n", "third", "fourth"]
    assert [d.id for d in Text(path=str(tmp_path)).documents()] == ["a.txt", "two.md", "c.txt.gz", "d.txt.xz"]


def test_separator_splits_a_file(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("one\n\ntwo\n\n\n\nthree\n")
    for separator in ("\n\n", r"\n\n"):
        documents = list(Text(path=str(tmp_path / "book.txt"), separator=separator).documents())
        assert [d.text for d in documents] == ["one", "two", "three\n"]
        assert {d.split for d in documents} == {""} and len({d.id for d in documents}) == 3


def test_single_file_holds_out_its_last_tenth(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "book.txt").write_text(text)
    train, validation = Text(path=str(tmp_path / "book.txt")).documents()
    assert (train.split, validation.split) == ("train", "validation")
    assert train.text + validation.text == text and train.text.endswith("\n")
    assert 0.09 < len(validation.text) / len(text) < 0.11


@pytest.mark.oracle("source=jsonl", "files written by the test")
def test_json_lines(tmp_path: Path) -> None:
    rows = [{"text": "one", "body": "uno"}, {"text": "two\nlines", "body": "due"}]
    data = ("\n".join(json.dumps(row) for row in rows) + "\n\n").encode()
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(data))
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.xz"):
        assert read(JsonLines(path=str(tmp_path / name))) == ["one", "two\nlines"]
    assert read(JsonLines(path=str(tmp_path / "a.jsonl"), column="body")) == ["uno", "due"]
    assert len(read(JsonLines(path=str(tmp_path)))) == 6
    assert [d.id for d in JsonLines(path=str(tmp_path / "a.jsonl")).documents()] == ["a.jsonl:1", "a.jsonl:2"]


def test_fingerprint_depends_on_content_and_knobs_not_on_location(tmp_path: Path) -> None:
    for folder in ("here", "there and 世界"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("one")
    here, there = (str(tmp_path / folder) for folder in ("here", "there and 世界"))
    first = Text(path=here).fingerprint()
    assert first == Text(path=there).fingerprint() and len(first) == 64
    assert first != Text(path=here, separator="|").fingerprint()
    (tmp_path / "here" / "a.txt").write_text("two")
    assert first != Text(path=here).fingerprint()
    row = tmp_path / "a.jsonl"
    row.write_text('{"text": "a", "b": "c"}')
    assert JsonLines(path=str(row)).fingerprint() != JsonLines(path=str(row), column="b").fingerprint()
    assert len({StateOfTheUnion().fingerprint(), ChineseClassics().fingerprint()}) == 2


def test_registry_builds_sources(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one|two")
    assert read(sources.build("text", {"path": str(tmp_path), "separator": "|"})) == ["one", "two"]
    assert {"text", "jsonl", "sotu", "zh_classics"} <= set(sources.names())


def shipped(name: str) -> list[dict[str, Any]]:
    file = resources.files("ablatio_std") / "corpora" / name
    return [json.loads(line) for line in lzma.decompress(file.read_bytes()).decode().split("\n") if line]


@pytest.mark.oracle("source=sotu", "lzma and json on the shipped file; the rule of the split, year by year")
def test_state_of_the_union_equals_its_file() -> None:
    documents = {d.id: d for d in StateOfTheUnion().documents()}
    rows = {f"{r['year']} {r['president']}": r for r in shipped("sotu.jsonl.xz")}
    assert rows.keys() - documents.keys() == {"1867 Andrew Johnson"}
    assert all(d.text == rows[name]["text"] for name, d in documents.items())
    expected = set()
    for party in {r["party"] for r in rows.values()}:
        of_party = [r for r in rows.values() if r["party"] == party]
        late = [r for r in of_party if sum(q["year"] > r["year"] for q in of_party) < max(1, round(len(of_party) / 8))]
        late.sort(key=lambda r: hashlib.sha256(r["text"].encode()).hexdigest())
        expected |= {f"{r['year']} {r['president']}" for r in late[: (len(late) + 1) // 2]}
    assert {name for name, d in documents.items() if d.split == "validation"} == expected


@pytest.mark.oracle("source=zh_classics", "lzma and json on the shipped file")
def test_classics_equal_their_file() -> None:
    rows = shipped("zh_classics.jsonl.xz")
    assert [d.text for d in ChineseClassics().documents()] == [r["text"] for r in rows]


def test_each_corpus_stands_once_in_the_package() -> None:
    files = [f for f in Path(str(resources.files("ablatio_std"))).rglob("*.xz") if f.is_file()]
    assert len(files) == 2
    assert len({hashlib.sha256(f.read_bytes()).digest() for f in files}) == 2


@pytest.mark.parametrize("source", [Text, JsonLines])
class TestPaths:
    def test_no_path(self, source: Any) -> None:
        refused(source(), "source.path=''", "ablatio train source=")
        refused(source(path="a\0b"), "source.path='a\\x00b'")
        with pytest.raises(UserError):
            source().fingerprint()

    def test_missing_file(self, source: Any, tmp_path: Path) -> None:
        (tmp_path / "books.xyz").write_text("text")
        refused(source(path=str(tmp_path / "boks.xyz")), "there is no file", f"did you mean {tmp_path / 'books.xyz'}?")
        refused(source(path=str(tmp_path / "no" / "*.q")), "there is no file")
        refused(source(path="x" * 5000), "cannot be read")

    def test_folder_without_files(self, source: Any, tmp_path: Path) -> None:
        refused(source(path=str(tmp_path)), "has no .")
        (tmp_path / "a.png").write_bytes(b"")
        refused(source(path=str(tmp_path)), "1 other file(s), as a.png", "**/*.*")

    def test_permission(self, source: Any, tmp_path: Path, unprivileged: Any) -> None:
        file = tmp_path / "a.txt"
        file.write_text("secret")
        file.chmod(0)
        with unprivileged():
            refused(source(path=str(file)), str(file), "permission", "chmod u+r")
            with pytest.raises(UserError, match="permission"):
                source(path=str(file)).fingerprint()

    @pytest.mark.parametrize(
        ("data", "parts"),
        [
            (b"abc\n\xe9t\xe9", ("byte 4 (0xe9) is not UTF-8", "iconv -f LATIN1")),
            (b"\xef\xbb\xbfabc\xff", ("byte 6 (0xff)",)),
            (b"ab\nc\0d", ("byte 4 is NUL", "not text")),
            ("Text".encode("utf-16"), ("byte 0 (0xff)", "UTF-16", "iconv -f UTF-16")),
        ],
    )
    def test_no_text(self, source: Any, tmp_path: Path, data: bytes, parts: tuple[str, ...]) -> None:
        if source is JsonLines:  # blank lines are not JSON, but allowed
            data = data.replace(b"abc\n", b"   \n").replace(b"ab\n", b"  \n")
        (tmp_path / "a.bin").write_bytes(data)
        refused(source(path=str(tmp_path / "a.bin")), str(tmp_path / "a.bin"), *parts)

    @pytest.mark.parametrize("ending", [".gz", ".xz"])
    def test_damaged_archive(self, source: Any, tmp_path: Path, ending: str) -> None:
        whole = {".gz": gzip.compress, ".xz": lzma.compress}[ending](b'{"text": "one"}\n' * 5000)
        for data in (whole[: len(whole) // 2], b"no archive", whole[:40] + b"????" + whole[44:]):
            (tmp_path / f"a{ending}").write_bytes(data)
            refused(source(path=str(tmp_path / f"a{ending}")), f"damaged {ending} archive", "--test")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("{'text': 1}", ("line 3", "not valid JSON", 'as {"text": "..."}')),
        ("[" * 100_000, ("line 3", "not valid JSON")),
        ('["a"]', ("line 3: found a list", "expected one JSON object per line")),
        ('{"texts": "a", "n": 1}', ("line 3: there is no field 'text'", "'texts', 'n'", "source.column=texts")),
        ('{"body": "a"}', ("there is no field 'text'", "source.column=body")),
        ('{"text": 5}', ("the field 'text' holds int",)),
        # The rows before have text in this field, so no other one is proposed.
        ('{"text": 5, "lang": "en"}', ("the field 'text' holds int", "try: source.on_error=skip")),
        ("{}", ("Its fields: none",)),
    ],
)
def test_invalid_lines_are_refused(tmp_path: Path, line: str, parts: tuple[str, ...]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n\n' + line + "\n")
    assert len(refused(JsonLines(path=str(tmp_path / "a.jsonl")), *parts)) < 1000


def test_error_offset_counts_from_the_start_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    refused(JsonLines(path=str(tmp_path / "a.jsonl")), "byte 24 (0xff)")


def test_since_selects_messages_by_year() -> None:
    """`since` removes messages and moves none to the other split."""
    whole = {d.id: d for d in sources.build("sotu").documents()}
    recent = list(sources.build("sotu", {"since": 1945}).documents())
    assert {d.id for d in recent} == {name for name in whole if int(name[:4]) >= 1945}
    assert all(whole[d.id] == d for d in recent) and {d.split for d in recent} == {"train", "validation"}
    assert sources.build("sotu", {"since": 1945}).fingerprint() != sources.build("sotu").fingerprint()
