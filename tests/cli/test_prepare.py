"""`ablatio prepare`: the numbers that describe a corpus are those of its text, and a run opens what it built."""

import json
from pathlib import Path

import pytest

from ablatio.cli.main import main


def test_corpus_is_described_by_its_text(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("ABLATIO_CACHE", str(tmp_path / "cache"))
    rows = [{"text": f"Document {i} with naïve words"} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{bad\n")
    settings = ["source=jsonl", f"source.path={tmp_path}/a.jsonl", "source.on_error=skip", "data.val_fraction=0.3"]
    assert main(["prepare", *settings, "--tokenizers", "bytes,bpe", "--json"]) == 0
    by_bytes, by_pairs = json.loads(capsys.readouterr().out)
    size = sum(len(row["text"].encode()) for row in rows)
    words = sum(len(row["text"].split()) for row in rows)
    for found in (by_bytes, by_pairs):
        both = [found[split] for split in ("train", "validation")]
        assert sum(held["documents"] for held in both) == 40 and sum(held["bytes"] for held in both) == size
        tokens = sum(held["tokens"] for held in both) - 40
        assert found["bytes_per_token"] == pytest.approx(size / tokens)
        assert found["fertility"] == pytest.approx(tokens / words)
        assert found["skipped_rows"] == 1 and found["speed"] > 0 and (Path(found["folder"]) / "train.bin").exists()
    assert by_bytes["bytes_per_token"] == 1 < by_pairs["bytes_per_token"]
    assert main(["prepare", *settings, "tokenizer=bytes"]) == 0
    told = capsys.readouterr().out
    assert "skipped_rows" in told and "bytes/token" in told and by_bytes["folder"] in told
