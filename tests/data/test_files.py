"""Sources of files: every format gives the written texts, bad rows are named or counted, large files are read once."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ablatio import sources
from ablatio.data import data_files
from ablatio.data.data_files import content_digest, read_parts
from ablatio.data.splits import TrainValSplit
from ablatio.data.types import Document
from ablatio.errors import UserError

ROWS: list[dict[str, Any]] = [{"text": f"Document {i}, naïve 世界\nof two lines", "number": i} for i in range(300)]
TEXTS = [row["text"] for row in ROWS]


def read(name: str, path: object, **knobs: Any) -> list[str]:
    return [d.text for d in sources.build(name, {"path": str(path), **knobs}).documents()]


@pytest.mark.oracle("source=parquet", "written by datasets")
@pytest.mark.oracle("source=csv", "written by datasets")
@pytest.mark.oracle("source=json", "written by datasets")
@pytest.mark.oracle("source=dataset", "save_to_disk of datasets, and its own reading")
def test_what_datasets_writes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(str(tmp_path / "a.parquet"), batch_size=100)
    data.to_csv(str(tmp_path / "a.csv"))
    data.to_json(str(tmp_path / "a.json"))
    for name in ("parquet", "csv", "json"):
        assert read(name, tmp_path / f"a.{name}") == TEXTS
        assert read(name, tmp_path) == TEXTS  # a folder with other formats beside it
    chosen = data.shuffle(seed=1).select(range(40))
    chosen.save_to_disk(str(tmp_path / "one"), num_shards=3)
    assert read("dataset", tmp_path / "one") == datasets.load_from_disk(str(tmp_path / "one"))["text"][:]
    splits = datasets.DatasetDict({"train": data, "test": chosen, "dev": data.select(range(3))})
    splits.save_to_disk(str(tmp_path / "several"))
    for knobs, held_out in (({}, TEXTS[:3]), ({"held_out": "test"}, chosen["text"][:]), ({"held_out": ""}, [])):
        source = sources.build("dataset", {"path": str(tmp_path / "several"), **knobs})
        assert [d.text for d in source.documents() if d.split == "validation"] == held_out
        assert [d.text for d in source.documents() if d.split != "validation"] == TEXTS


def test_dataset_says_which_splits_there_are(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["one", "two"]}')
    with pytest.raises(UserError, match=r"no split 'train'; it has one, two\n    try: source\.split=one"):
        read("dataset", tmp_path)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "../../secret.arrow"}]}')
    (tmp_path / "dataset_dict.json").unlink()
    with pytest.raises(UserError, match=r"state\.json names secret\.arrow, which is missing"):
        read("dataset", tmp_path)


@pytest.mark.oracle("source=webdataset", "tarfile")
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_shards_of_a_web_dataset(tmp_path: Path, mode: Any) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar{'.gz' if mode == 'w:gz' else ''}", mode) as target:
            for i in range(5):
                for ending, data in (("txt", TEXTS[5 * shard + i].encode()), ("png", b"\x89PNG\0"), ("json", b"{}")):
                    member = tarfile.TarInfo(f"part/{i:03d}.{ending}")
                    member.size = len(data)
                    target.addfile(member, io.BytesIO(data))
    assert read("webdataset", tmp_path) == TEXTS[:10]
    with pytest.raises(UserError, match=r"no column 'cap'; expected one of its columns: txt, png, json"):
        read("webdataset", tmp_path, column="cap")
    with pytest.raises(UserError, match=r"try: source\.column=json"):
        read("webdataset", tmp_path, column="jsno")


def test_many_files_by_a_list_of_paths(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jsonl").write_text(json.dumps(ROWS[i]))
    paths = f"{tmp_path}/2.jsonl:{tmp_path}/[01].jsonl"
    assert read("jsonl", paths) == [TEXTS[2], TEXTS[0], TEXTS[1]]
    with pytest.raises(UserError, match=r"there is no file .*9\.jsonl"):
        read("jsonl", f"{tmp_path}/9.jsonl:{tmp_path}/1.jsonl")


def write(path: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    file = path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif kind == "csv":
        pyarrow.csv.write_csv(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_missing_column_lists_the_columns(tmp_path: Path, kind: str) -> None:
    import pyarrow.csv  # noqa: F401

    file = write(tmp_path, kind, ROWS[:3])
    for on_error in ("fail", "skip"):
        with pytest.raises(UserError, match=r"no (column|field) 'txet'") as error:
            read(kind, file, column="txet", on_error=on_error)
        assert "text" in str(error.value) and "number" in str(error.value) and "column=text" in str(error.value)


def test_rows_that_cannot_be_used_are_counted_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = [json.dumps(row) for row in ROWS[:5]]
    bad = ["{broken", '{"text": 3}', '["a"]', '{"other": "a"}', '{"text": "\\ud800"}']
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(line for pair in zip(good, bad, strict=True) for line in pair))
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: not valid JSON"):
        read("jsonl", file)
    source = sources.build("jsonl", {"path": str(file), "on_error": "skip"})
    with caplog.at_level("WARNING", "ablatio"):
        assert [d.text for d in source.documents()] == TEXTS[:5]
    assert source.skipped_rows == 5
    assert "left out 5 row(s)" in caplog.text and "a.jsonl, line 2: not valid JSON" in caplog.text
    assert source.fingerprint() != sources.build("jsonl", {"path": str(file)}).fingerprint()
    (tmp_path / "a.csv").write_text("text,b\none,1\ntwo\nthree,3\n")
    assert read("csv", tmp_path / "a.csv", on_error="skip") == ["one", "three"]
    mixed = pyarrow.table({"text": pyarrow.array(["a", None, "b"])})
    pyarrow.parquet.write_table(mixed, tmp_path / "m.parquet")
    assert read("parquet", tmp_path / "m.parquet", on_error="skip") == ["a", "b"]
    with pytest.raises(UserError, match=r"m\.parquet, row 2: there is no field 'text'"):
        read("parquet", tmp_path / "m.parquet")


@pytest.mark.parametrize("row", ["{broken", '{"text": 3}', '["a"]'])
def test_a_bad_row_after_good_ones_proposes_to_skip_it(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + row + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: .*\n    try: source\.on_error=skip"):
        read("jsonl", tmp_path / "a.jsonl")
    # The first row says what kind of file it is.
    (tmp_path / "b.jsonl").write_text(row + "\n")
    with pytest.raises(UserError, match=r"b\.jsonl, (line|record) 1: ") as error:
        read("jsonl", tmp_path / "b.jsonl")
    assert "try: " in str(error.value) and "on_error" not in str(error.value)


def test_truncated_files_are_named_with_either_setting(tmp_path: Path) -> None:
    whole = write(tmp_path, "parquet", ROWS).read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    packed = pyarrow.compress("".join(json.dumps(r) + "\n" for r in ROWS).encode(), codec="zstd", asbytes=True)
    (tmp_path / "a.jsonl.zst").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    for name, file in (("parquet", "a.parquet"), ("jsonl", "a.jsonl.zst"), ("webdataset", "a.tar")):
        for on_error in ("fail", "skip"):
            with pytest.raises(UserError, match=file.replace(".", r"\.")) as error:
                read(name, tmp_path / file, on_error=on_error)
            assert "\n    try: " in str(error.value)


def test_a_file_of_another_format_names_the_source_that_reads_it(tmp_path: Path) -> None:
    file = write(tmp_path, "json", ROWS[:2])
    with pytest.raises(UserError, match=r"a \.json file; expected \.parquet.*\n    try: ablatio train source=jsonl"):
        read("parquet", file)
    assert read("jsonl", file) == TEXTS[:2]


@pytest.mark.parametrize("separator", ["\n\n", "ab", "—", "\n"])
def test_parts_of_a_file_are_those_of_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    text = "aab—naïve\n\n\n世界ab\n\nb—" * 7
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    for size in (1, 2, 3, 7, 1 << 20):
        monkeypatch.setattr(data_files, "_CHUNK", size)
        assert list(read_parts(tmp_path / "a.txt.gz", separator)) == text.split(separator)


def test_digest_of_a_large_file_is_remembered_until_it_changes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ABLATIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data_files, "REMEMBERED", 10)
    monkeypatch.setattr(data_files, "_SETTLED", -1)
    reads = []
    real = data_files._sha256
    monkeypatch.setattr(data_files, "_sha256", lambda file: reads.append(file) or real(file))
    file = tmp_path / "a.txt"
    file.write_text("a long text")
    assert content_digest(file) == content_digest(file) == real(file) and len(reads) == 1
    file.write_text("b long text")
    assert content_digest(file) == real(file) and len(reads) == 2


class Counted:
    """A source that counts how many documents were read before the first one was used."""

    def __init__(self, names_splits: bool, splits: tuple[Any, ...] = ("",)) -> None:
        self.names_splits, self.splits, self.read = names_splits, splits, 0

    def documents(self) -> Any:
        for i in range(100):
            self.read += 1
            yield Document(f"text {i}", str(i), self.splits[i % len(self.splits)])

    def fingerprint(self) -> str:
        return "counted"


def test_a_source_that_names_no_splits_is_read_once() -> None:
    """The first document comes before the second is read; another source is read whole for its held-out texts."""
    source = Counted(False)
    split = TrainValSplit(source, 0.3)
    next(iter(split.assigned()))
    assert source.read == 1
    assert {(s, d.id) for s, d in split.assigned()} == {
        (s, d.id) for s, d in TrainValSplit(Counted(True), 0.3).assigned()
    }
    named = Counted(True, ("train", "validation"))
    next(iter(TrainValSplit(named, 0.3).assigned()))
    assert named.read == 101
    with pytest.raises(UserError, match="declares that it names no splits"):
        list(TrainValSplit(Counted(False, ("train",)), 0.3).assigned())
    with pytest.raises(UserError, match="the validation split is empty"):
        list(TrainValSplit(Counted(False), 1e-9).documents("train"))
