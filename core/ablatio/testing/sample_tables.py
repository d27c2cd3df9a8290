"""A few documents in every format of tables that sources read, and a writer in place of a run's model."""

import atexit
import hashlib
import io
import json
import random
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

WORDS = ("name", "list", "write", "a", "short", "story", "about", "two", "birds", "and", "rivers", "with", "rhymes")


def sample_tables(texts: Sequence[str]) -> list[Path]:
    """Files with a column `text` (of tar shards `txt`): Parquet, CSV, JSON, tar, and a saved Hugging Face dataset."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    folder = Path(tempfile.mkdtemp(prefix="ablatio-tables-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rows = [{"text": text, "number": i} for i, text in enumerate(texts)]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "sample.parquet", row_group_size=2)
    pyarrow.csv.write_csv(table, folder / "sample.csv")
    (folder / "sample.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    with tarfile.open(folder / "sample.tar", "w") as shard:
        for i, text in enumerate(texts):
            member = tarfile.TarInfo(f"{i:06d}.txt")
            member.size = len(text.encode())
            shard.addfile(member, io.BytesIO(text.encode()))
    saved = folder / "saved"
    for name, part in (("train", table.slice(1)), ("test", table.slice(0, 1))):
        (saved / name).mkdir(parents=True)
        with pyarrow.ipc.new_stream(str(saved / name / "data.arrow"), table.schema) as writer:
            writer.write_table(part)
        (saved / name / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    return [folder / f"sample.{ending}" for ending in ("parquet", "csv", "json", "tar")] + [saved]


class SampleWriter:
    """Writes lists of tasks in place of the model of a run; the words follow from all arguments."""

    def __init__(self, path: str) -> None:
        self.digest = hashlib.sha256(path.encode()).hexdigest()

    def longest(self, tokens: int) -> int:
        """Number of prompt tokens that leave room for `tokens` new ones."""
        return 256 - tokens

    def size(self, text: str) -> int:
        """Number of words."""
        return len(text.split())

    def __call__(self, prompts: Sequence[str], tokens: int, temperature: float, seed: int) -> list[str]:
        """A list of short tasks for each prompt."""
        made = []
        for i, prompt in enumerate(prompts):
            draw = random.Random(f"{self.digest} {prompt} {tokens} {temperature} {seed} {i}")
            lines = [" ".join(draw.choices(WORDS, k=draw.randint(2, 6))) for _ in range(3)]
            made.append(" " + "\nTask 9: ".join(lines))
        return made
