"""Data files of every format and compression: the same records, and errors that name file and place."""

import csv
import functools
import gzip
import io
import json
import logging
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ablatio import sources
from ablatio.data.data_files import EXPANSION_FREE, Place, invalid_data, read_all, read_text
from ablatio.data.records import Record, UnusedFields, records
from ablatio.errors import EnvironmentFault, UserError

PAIRS: list[dict[str, Any]] = [
    {"prompt": f"Which is larger,\n{i} or {i + 1}?", "chosen": f"{i + 1}, naïve 世界", "rejected": f'"{i}"'}
    for i in range(6)
]
TEXTS: list[dict[str, Any]] = [{"text": f"Document {i}, with a comma,\nand two lines 🙂"} for i in range(300)]
CHATS: list[dict[str, Any]] = [{"prompt": f"How much is {i} + {i}?", "completion": f"{2 * i}"} for i in range(6)]


def zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def comma_separated(rows: list[dict[str, Any]]) -> bytes:
    target = io.StringIO(newline="")
    writer = csv.DictWriter(target, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return target.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    target = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), target, row_group_size=100)
    return target.getvalue()


def arrow(kind: Callable[..., Any]) -> Callable[[list[dict[str, Any]]], bytes]:
    def written(rows: list[dict[str, Any]]) -> bytes:
        target, table = io.BytesIO(), pyarrow.Table.from_pylist(rows)
        with kind(target, table.schema) as writer:
            writer.write_table(table, max_chunksize=70)
        return target.getvalue()

    return written


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a.jsonl": jsonl,
    "a.ndjson": lambda rows: b"\xef\xbb\xbf" + jsonl(rows).replace(b"\n", b"\r\n\r\n"),
    "a.json": lambda rows: json.dumps(rows, indent=2).encode(),
    "compact.json": lambda rows: b" \n" + json.dumps(rows).encode() + b"\n",
    "list.jsonl": lambda rows: json.dumps(rows, ensure_ascii=False).encode(),
    "lines.json": jsonl,
    "a.csv": comma_separated,
    "a.tsv": lambda rows: b"\t".join([c.encode() for c in rows[0]]) + b"\n" + b"".join(
        b"\t".join(('"' + v.replace('"', '""') + '"').encode() for v in row.values()) + b"\n" for row in rows
    ),
    "a.parquet": parquet,
    "a.arrow": arrow(pyarrow.ipc.new_stream),
    "file.arrow": arrow(pyarrow.ipc.new_file),
}  # fmt: skip
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd,
}  # fmt: skip


@pytest.mark.oracle("source", "the records that were written, by csv, json and pyarrow's writers")
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_compression_gives_the_same_records(tmp_path: Path, name: str, compression: str) -> None:
    """For every source of files: text of records, conversations, preferences."""
    file = tmp_path / f"{name}{compression}"
    for source, method, rows in (
        ("jsonl", "documents", TEXTS),
        ("chats", "conversations", CHATS),
        ("feedback", "feedback", PAIRS),
    ):
        file.write_bytes(COMPRESSIONS[compression](FORMATS[name](rows)))
        assert [record.fields for record in records(file)] == rows
        found: list[Any] = list(getattr(sources.build(source, {"path": str(file)}), method)())
        assert len({item.id for item in found}) == len(rows)
        if source == "jsonl":
            assert [d.text for d in found] == [row["text"] for row in rows]
        elif source == "chats":
            assert [[m.text for m in c.messages] for c in found] == [list(row.values()) for row in rows]
        else:
            assert [(f.prompt[0].text, *f.answers) for f in found] == [tuple(row.values()) for row in rows]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_text_of_every_compression(tmp_path: Path, compression: str) -> None:
    file = tmp_path / f"book.txt{compression}"
    file.write_bytes(COMPRESSIONS[compression](("Line of a book, naïve 世界.\n" * 2000).encode()))
    assert read_text(file) == "Line of a book, naïve 世界.\n" * 2000
    train, validation = sources.build("text", {"path": str(tmp_path)}).documents()
    assert train.text + validation.text == read_text(file)


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("source", ["text", "jsonl"])
def test_archive_without_its_ending_is_named(tmp_path: Path, source: str, compression: str) -> None:
    file = tmp_path / "it's.jsonl"
    file.write_bytes(COMPRESSIONS[compression](jsonl(TEXTS)))
    with pytest.raises(UserError, match=f"an archive without the ending {compression}; expected UTF-8 text") as error:
        list(sources.build(source, {"path": str(file)}).documents())
    subprocess.run(str(error.value).partition("try: ")[2], shell=True, check=True)
    assert len(list(sources.build("jsonl", {"path": f"{file}{compression}"}).documents())) == len(TEXTS)


def test_text_reads_the_column_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(TEXTS))
    found = sources.build("text", {"path": str(tmp_path / "a.parquet")}).documents()
    assert [d.text for d in found] == [row["text"] for row in TEXTS]


def test_folder_with_several_formats_says_what_it_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS[:2]))
    (tmp_path / "b.parquet").write_bytes(parquet(TEXTS))
    with caplog.at_level(logging.WARNING, "ablatio"):
        assert len(list(sources.build("jsonl", {"path": str(tmp_path)}).documents())) == 2
    (record,) = caplog.records
    assert "a.jsonl are read, and 1 as b.parquet are not" in record.message


def test_object_over_several_lines_is_one_record(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(TEXTS[0], indent=1))
    (record,) = records(tmp_path / "a.json")
    assert record.fields == TEXTS[0] and str(record.place).endswith("a.json, line 1")


def test_empty_cells_of_a_table_are_missing_fields(tmp_path: Path) -> None:
    """A table has all columns in each row: what a row does not have is null there."""
    rows = [
        {"prompt": "q", "completion": "a"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "gpt", "content": "a"}]},
    ]
    (tmp_path / "a.parquet").write_bytes(
        parquet([{"prompt": None, "completion": None, "messages": None} | r for r in rows])
    )
    found: Any = sources.build("chats", {"path": str(tmp_path / "a.parquet")})
    assert [[m.text for m in c.messages] for c in found.conversations()] == [["q", "a"], ["q", "a"]]


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("a.json", b"[1]", "a.json, record 1: found a int"),
        ("a.json", b'[{"text": "a"}\n {"text": "b"}]', "a.json, line 2: no comma after record 1"),
        ("a.json", b'[{"text": "a"},\n\n{"text": ]', "a.json, line 3: not valid JSON in record 2"),
        ("a.json", b'[{"text": "a"}] {"text": "b"}', "text after the end of the list"),
        ("a.json", b'[{"text": "a"},', "not valid JSON in record 2"),
        ("a.json", b"[" * 100_000, "not valid JSON in record 1"),
        ("a.jsonl", b'{"text": "a"}\n[1]', "a.jsonl, line 2: found a list"),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "a.jsonl, line 1: not valid JSON"),
        ("a.csv", b"text,b\n1\n", "a.csv, line 2: 1 cells; expected 2"),
        ("a.csv", b"text,text\n1,2\n", "a name for each column"),
        ("a.csv", b'text\n"a\nb"\n"c', "a.csv, line 4: not valid CSV"),
        ("a.parquet", b"PAR1 and more", "not a valid table"),
        ("a.parquet", b"", "not a valid table"),
        ("a.arrow", b"ARROW1\0\0", "not a valid table"),
        ("a.jsonl", parquet(TEXTS)[:-200], "not a valid table"),
        ("a.jsonl.zst", b"no archive", "damaged .zst archive"),
        ("a.jsonl.zst", zstd(jsonl(TEXTS))[:-20], "damaged .zst archive"),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), "not a valid table"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_with_their_place(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        list(sources.build("jsonl", {"path": str(tmp_path / name)}).documents())
    assert what in str(error.value) and str(tmp_path / name) in str(error.value) and "\n    try: " in str(error.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.xz"])
def test_suggested_command_shows_the_record(tmp_path: Path, name: str) -> None:
    """The command of an error prints the record that the error is about."""
    folder = tmp_path / "a folder's"
    folder.mkdir()
    kind, _, packed = name.partition(".xz")
    (folder / name).write_bytes((lzma.compress if packed or name.endswith(".xz") else bytes)(FORMATS[kind](PAIRS)))
    chosen = list(records(folder / name))[3]
    command = chosen.place.command.replace("python ", f"{sys.executable} ", 1)
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    # A record of a CSV file may have several lines: its first one is shown.
    assert "Which is larger" in done.stdout and ("3 or 4" in done.stdout or name == "a.csv")


@functools.cache
def bomb(compression: str) -> bytes:
    pack = (lambda data: lzma.compress(data, preset=0)) if compression == ".xz" else COMPRESSIONS[compression]
    return pack(b" " * (EXPANSION_FREE + (16 << 20)))


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("source", ["text", "jsonl", "chats", "feedback"])
def test_archive_that_expands_without_end_is_refused(tmp_path: Path, source: str, compression: str) -> None:
    """A bomb: a line of 80 MiB in less than 100 KB, which is refused before its end."""
    file = tmp_path / f"a.jsonl{compression}"
    file.write_bytes(bomb(compression))
    method = {"chats": "conversations", "feedback": "feedback"}.get(source, "documents")
    with pytest.raises(UserError, match="the archive expands to more than 64 MiB, over 200 times its size"):
        list(getattr(sources.build(source, {"path": str(file)}), method)())


def test_archive_under_a_memory_limit_ends_with_one_message(tmp_path: Path) -> None:
    """Data that compress well enough to pass as data, under a limit that they exceed: an error, no traceback."""
    file = tmp_path / "a.json.gz"
    with gzip.open(file, "wb", 1) as stream:
        stream.write(json.dumps([{"text": f"{i:x}" * 60} for i in range(60_000)]).encode())
        stream.write(b"," * (24 << 20))
    code = f"""
import resource
from ablatio import sources
from ablatio.errors import EnvironmentFault
methods = {{"text": "documents", "jsonl": "documents", "chats": "conversations", "feedback": "feedback"}}
made = [getattr(sources.build(name, {{"path": {str(file)!r}}}), method) for name, method in methods.items()]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20),) * 2)
for read in made:
    try:
        list(read())
    except EnvironmentFault as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr and done.stdout.count("needs more memory than this process has") == 4


def test_items_that_exceed_the_memory_end_with_one_message() -> None:
    def items() -> Any:
        yield from range(5)
        raise MemoryError

    with pytest.raises(EnvironmentFault, match=r"the lines of the source need more memory .*: 5 were"):
        read_all(items(), "lines")
    assert read_all(range(3), "lines") == [0, 1, 2]


def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    half = "a\ud800b"
    turn = {"role": "user", "content": "q"}
    cases: list[tuple[str, Any]] = [
        ("jsonl", {"text": half}),
        ("chats", {"prompt": half, "completion": "a"}), ("chats", {"prompt": "q", "completion": half}),
        ("chats", {"system": half, "prompt": "q", "completion": "a"}),
        ("chats", {"tools": [{"name": half}], "prompt": "q", "completion": "a"}),
        ("chats", {"messages": [turn, {"role": "assistant", "tool_calls": [{"name": half}]}]}),
        ("chats", {"messages": [{"role": "user", "content": [{"text": half}]}, {"role": "assistant", "content": "a"}]}),
        ("chats", {"prompt": {"text": "q", "replies": [{"text": half}]}}),
        ("feedback", {"prompt": half, "chosen": "a", "rejected": "b"}),
        ("feedback", {"prompt": "q", "chosen": "a", "rejected": half}),
        ("feedback", {"prompt": "q", "answers": ["a", half]}),
        ("feedback", {"chosen": [turn, {"role": "assistant", "content": half}], "rejected": [turn, turn]}),
    ]  # fmt: skip
    for source, record in cases:
        file = tmp_path / "a.jsonl"
        file.write_text("\n" + json.dumps(record))
        method = {"chats": "conversations", "feedback": "feedback"}.get(source, "documents")
        with pytest.raises(UserError, match=r"a\.jsonl, line 2: character \d+ of .* half of a surrogate pair") as error:
            list(getattr(sources.build(source, {"path": str(file)}), method)())
        str(error.value).encode()


def unused(source: str, rows: list[Any], tmp_path: Path) -> dict[str, int]:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made: Any = sources.build(source, {"path": str(file)})
    method = {"chats": "conversations", "feedback": "feedback"}.get(source, "documents")
    for _ in range(2):  # each pass counts anew
        list(getattr(made, method)())
    return dict(made.unused_fields)


def test_fields_that_are_not_used_are_named_once_with_their_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns = [{"role": "user", "content": "q", "lang": "en"}, {"role": "assistant", "content": "a", "weight": 0.5}]
    with caplog.at_level(logging.WARNING, "ablatio"):
        rows = [{"text": "a", "meta": {}}, {"text": "b", "meta": 1, "id": 3}, {"text": "c"}]
        assert unused("jsonl", rows, tmp_path) == {"id": 1, "meta": 2}
    assert [r.message for r in caplog.records] == [
        "source=jsonl does not use these fields (number of times that they occur): id (1), meta (2)"
    ]
    chat = {"messages": turns, "source": "web", "system": "s", "tools": None, "none": None}
    assert unused("chats", [chat, chat], tmp_path) == {"messages[].lang": 2, "source": 2}
    tree = {"prompt": {"text": "q", "rank": 1, "replies": [{"text": "a", "lang": "en"}, {"text": "b", "lang": "en"}]}}
    assert unused("chats", [tree | {"id": 5}], tmp_path) == {"id": 1, "prompt.rank": 1, "replies[].lang": 2}
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 3.5, "messages": turns, "input": "i"}
    assert unused("feedback", [pair], tmp_path) == {"input": 1, "messages": 1, "score_chosen": 1}
    scored = {"prompt": "q", "chosen": [turns[1]], "rejected": [{"role": "assistant", "content": "b"}]}
    assert unused("feedback", [scored], tmp_path) == {"weights of turns": 1}
    assert len(unused("jsonl", [{"text": "a", f"field {i}\ud800": 1} for i in range(500)], tmp_path)) == 51


def test_fields_that_are_not_used_are_in_the_token_cache(tmp_path: Path) -> None:
    from ablatio.data.corpus import prepare
    from ablatio_std.tokenizers.trained import Bytes

    file = tmp_path / "a.jsonl"
    file.write_bytes(jsonl([row | {"url": "x"} for row in TEXTS]))
    for _ in range(2):
        corpus = prepare(sources.build("jsonl", {"path": str(file)}), Bytes(), "bytes", tmp_path / "cache", 0.2)
        assert corpus.counts["unused_fields"] == {"url": 300}
        assert sum(corpus.counts[split]["documents"] for split in ("train", "validation")) == 300


def test_several_sources_keep_their_unused_fields_apart(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(jsonl([row | {"url": "x"} for row in CHATS]))
    made: Any = sources.build("several", {"of": [f"chats:{file}"]})
    assert len(list(made.conversations())) == 6 and made.unused_fields == {f"chats:{file}/url": 6}


def test_one_error_for_data_files() -> None:
    place = Place(Path("it's.jsonl.gz"), "line", 3)
    error = invalid_data(place, "found a list", "an object")
    assert str(error) == (
        "it's.jsonl.gz, line 3: found a list; expected an object\n"
        "    try: zcat 'it'\"'\"'s.jsonl.gz' | sed -n 3p, then correct or delete it"
    )
    found = UnusedFields()
    found.add({"a": 1, "b": None}, {"c"})
    assert found.close("test") == {"a": 1}
    assert Record({}, place, 3).id == "it's.jsonl.gz:3"
