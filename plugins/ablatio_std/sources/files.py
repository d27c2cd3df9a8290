"""Sources of documents in files of records: one part per format, over one reader (`_records`)."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from ablatio import sources
from ablatio.data.data_files import Place, files_digest, invalid_data, readable
from ablatio.data.records import ENDINGS, BadRows
from ablatio.data.types import Document
from ablatio.errors import UserError

from ._records import COLUMN, ON_ERROR, PATH, ColumnOfText, OnError, files_of, text_records

HELD_OUT = ("validation", "valid", "val", "dev", "test")  # names of a dataset's held-out split, tried in this order


@sources.register("jsonl")
class JsonLines(ColumnOfText):
    """Records with their text in a field: JSON, one object per line or one list; or the rows of any table.

    Files of CSV, Parquet, Arrow and tar shards are read, too; fields that are not used are counted.
    """

    name, endings, example, project = "jsonl", ENDINGS, "data.jsonl", False

    def __init__(
        self,
        *,
        path: Annotated[str, PATH] = "",
        column: Annotated[str, COLUMN] = "text",
        on_error: Annotated[OnError, ON_ERROR] = "fail",
    ) -> None:
        super().__init__(path, column, on_error)


@sources.register("json")
class Json(ColumnOfText):
    """A JSON list of objects per file (or an object per line), with the text in a field."""

    name, endings, example, project = "json", ((".json",), (".jsonl", ".ndjson")), "data.json", False

    def __init__(
        self,
        *,
        path: Annotated[str, PATH] = "",
        column: Annotated[str, COLUMN] = "text",
        on_error: Annotated[OnError, ON_ERROR] = "fail",
    ) -> None:
        super().__init__(path, column, on_error)


@sources.register("csv")
class Csv(ColumnOfText):
    """Rows of CSV (.csv) or tab-separated (.tsv) files whose first line names the columns."""

    name, endings, example = "csv", ((".csv", ".tsv"),), "data.csv"

    def __init__(
        self,
        *,
        path: Annotated[str, PATH] = "",
        column: Annotated[str, COLUMN] = "text",
        on_error: Annotated[OnError, ON_ERROR] = "fail",
    ) -> None:
        super().__init__(path, column, on_error)


@sources.register("parquet")
class Parquet(ColumnOfText):
    """Rows of Parquet files; only the column that is named is read, a row group at a time."""

    name, endings, example = "parquet", ((".parquet",),), "data.parquet"

    def __init__(
        self,
        *,
        path: Annotated[str, PATH] = "",
        column: Annotated[str, COLUMN] = "text",
        on_error: Annotated[OnError, ON_ERROR] = "fail",
    ) -> None:
        super().__init__(path, column, on_error)


@sources.register("webdataset")
class WebDataset(ColumnOfText):
    """Tar shards: files that share a name up to the first dot are a sample, and their endings are its columns.

    The column `json` holds parsed JSON; any other is text.  Source: https://github.com/webdataset/webdataset
    """

    name, endings, example = "webdataset", ((".tar",),), "shards/000000.tar"

    def __init__(
        self,
        *,
        path: Annotated[str, PATH] = "",
        column: Annotated[str, "ending of the files that hold the text"] = "txt",
        on_error: Annotated[OnError, ON_ERROR] = "fail",
    ) -> None:
        super().__init__(path, column, on_error)


@sources.register("dataset")
class Dataset:
    """A Hugging Face dataset on disk: a folder that `save_to_disk` of datasets wrote, or Arrow files.

    A folder with several splits gives the documents of `split`, and holds out those of the split `held_out`; without
    such a split, a hash of the text decides.  The folder names its files; only the column is read from them.
    """

    def __init__(
        self,
        *,
        path: Annotated[str, "folder of a saved dataset, or Arrow files: a file, a folder or a glob"] = "",
        column: Annotated[str, COLUMN] = "text",
        split: Annotated[str, "split that is trained on"] = "train",
        held_out: Annotated[
            str | None,
            "split that is held out; null: validation, valid, val, dev or test, the first that is there; empty: none",
        ] = None,
        on_error: Annotated[OnError, ON_ERROR] = "fail",
    ) -> None:
        self.path, self.column, self.split, self.held_out, self.on_error = path, column, split, held_out, on_error
        self.skipped_rows = 0

    @property
    def names_splits(self) -> bool:
        """True if the dataset has a held-out split."""
        return len(self._parts()) > 1

    def _parts(self) -> list[tuple[Literal["train", "validation", ""], list[Path]]]:
        """The files by split; a dataset without splits is one part, split by hash."""
        folder = Path(self.path).expanduser()
        if not self.path or not (folder / "dataset_dict.json").is_file():
            return [("", self._files_of(folder))]
        splits: list[str] = _object(folder / "dataset_dict.json").get("splits", [])
        # The validation split before the test split: the test set is not for choosing between arms.
        usual = [n for n in HELD_OUT if n in splits and n != self.split][:1]
        wanted = usual if self.held_out is None else [self.held_out] if self.held_out else []
        if unknown := [n for n in (self.split, *wanted) if n not in splits]:
            raise UserError(
                f"{folder}: there is no split {unknown[0]!r}; it has {', '.join(splits) or 'none'}\n"
                f"    try: source.split={splits[0] if splits else 'train'}"
            )
        if not wanted:
            return [("", self._files_of(folder / self.split))]
        return [("train", self._files_of(folder / self.split)), ("validation", self._files_of(folder / wanted[0]))]

    def _files_of(self, folder: Path) -> list[Path]:
        """The Arrow files that `state.json` names, in its order; without one, those of the path."""
        if not self.path or not (folder / "state.json").is_file():
            return files_of(self.path, "dataset", ((".arrow",),), "saved_dataset")
        # Only names: a data file must not lead to files elsewhere.
        named = [Path(str(entry["filename"])).name for entry in _object(folder / "state.json").get("_data_files", [])]
        files = [folder / name for name in named]
        if missing := [f for f in files if not f.is_file()]:
            raise UserError(
                f"{folder}: state.json names {missing[0].name}, which is missing\n"
                f"    try: ls {shlex.quote(str(folder))}"
            )
        return files

    def documents(self) -> Iterator[Document]:
        bad, used = BadRows(self.on_error == "skip"), 0
        for split, files in self._parts():
            for file in files:
                for record in text_records(file, self.column, bad=bad, name="dataset"):
                    used += 1
                    # Files of two splits may have the same names.
                    place = f"{file.parent.name}/{record.id}" if split else record.id
                    yield Document(record.fields[self.column], place, split)
        self.skipped_rows = bad.close("dataset", used)

    def fingerprint(self) -> str:
        parts = self._parts()
        # The number of files of each split: the same files divided in another way are other data.
        knobs = [self.column, *(f"{split}:{len(files)}" for split, files in parts)]
        skip = [self.on_error] if self.on_error != "fail" else []
        return files_digest([file for _, files in parts for file in files], "dataset-1", *knobs, *skip)


def _object(file: Path) -> dict[str, Any]:
    with readable(file):
        text = file.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise invalid_data(Place(file), f"not JSON ({error})", "what save_to_disk writes") from None
    if not isinstance(found, dict):
        raise invalid_data(Place(file), f"a {type(found).__name__}", "what save_to_disk writes")
    return found
