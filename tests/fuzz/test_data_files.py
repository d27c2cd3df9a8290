"""Fuzzing of the readers of data files: damaged files are read or refused, and never end with a traceback.

Each reader gets files with random leaves, with cut and changed bytes, and with values of another type; the seeds are
fixed.
"""

import copy
import gzip
import io
import json
import lzma
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ablatio import sources
from ablatio.data.chat import reading_notes, write
from ablatio.data.types import Conversation
from ablatio.errors import AblatioError
from ablatio.registry.kinds import templates, tokenizers

EDITS = 300
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0.5}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}
OTHER = {"role": "assistant", "content": "b"}
CHATS: list[Any] = [
    {"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["q", "a"]], "weight": 1},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": '[{"name": "f"}]'},
    {"messages": [USER, CALL, {"role": "tool", "tool_call_id": "c", "content": "1"}, ANSWER], "weights": [0, 1]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER], "tools": [{"name": "f"}]},
    {"prompt": "q", "completion": "a"},
    {"prompt": {"role": "prompter", "text": "q", "replies": [{"role": "assistant", "text": "a", "replies": []}]}},
]
FEEDBACK: list[Any] = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": [USER], "answers": ["a", "b", "c"], "scores": [1, 2.5, 0]},
    {"prompt": "q", "answers": ["a", "b"], "elo": [1200, 1000]},
    {"prompt": "q", "completion": "a", "label": True},
    {"chosen": [USER, ANSWER], "rejected": [USER, OTHER], "system": "s"},
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": OTHER},
    {"messages": [USER, ANSWER], "kto_tag": False},
]  # fmt: skip
TEXTS: list[Any] = [{"text": f"Document {i}", "meta": {"id": i, "tags": ["a", None]}} for i in range(8)]
READERS = {
    "jsonl": ("documents", TEXTS), "text": ("documents", TEXTS), "chats": ("conversations", CHATS),
    "feedback": ("feedback", FEEDBACK),
}  # fmt: skip
LEAVES: list[Any] = [
    None, True, False, 0, -1, 7, 2**64, 10**400, -0.5, 1e308, math.nan, math.inf, "", " ", "x", "\ud800", "a\0b",
    "\ufeff", "Human: q\n\nAssistant: a", "[1]", "{}", "9" * 5000, [], [[]], [None], ["q", "a"], [["q", "a"]], {},
    {"a": 1}, {"role": 5}, {"role": "user", "content": "q"}, [{"role": "assistant", "content": "a"}],
    {"type": "text"}, "assistant", "function_call",
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [p for key in keys for p in places(value[key])]


def edited(records: list[Any], rng: random.Random) -> list[Any]:
    """The records with one to three values replaced, removed, wrapped, doubled or moved, or with one nested deeply."""
    found = copy.deepcopy(records)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, key = rng.choice(places(found))
        change = rng.randrange(8)
        if change == 0:
            del holder[key]
        elif change == 1:
            holder[key] = [holder[key]]
        elif change == 2 and isinstance(holder, dict):
            holder[rng.choice(("text", "prompt", "messages", "role", "label", "weight", "new", "\ud800"))] = holder.pop(
                key
            )
        elif change == 3 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif change == 4 and rng.random() < 0.3:
            for _ in range(rng.choice((50, 300))):
                holder[key] = rng.choice(([holder[key]], {"replies": [holder[key]], "text": "a"}))
            return found
        else:
            holder[key] = copy.deepcopy(rng.choice(LEAVES))
        if not found:
            return found
    return found


def scrambled(data: bytes, rng: random.Random) -> bytes:
    """The bytes cut, with some changed, or with a piece repeated or removed."""
    if not data:
        return data
    at, end = sorted(rng.randrange(len(data)) for _ in range(2))
    change = rng.randrange(5)
    if change == 0:
        return data[:at]
    if change == 1:
        return data[:at] + data[end:]
    if change == 2:
        return data[:end] + data[at:]
    found = bytearray(data)
    for _ in range(rng.choice((1, 3, 20))):
        found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found)


def as_lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def as_list(records: list[Any]) -> bytes:
    return json.dumps(records, indent=1).encode()


def as_table(records: list[Any]) -> bytes:
    """Parquet; a record that no table can hold is left out, and a value of mixed type becomes text."""
    rows = [{k: v for k, v in r.items() if isinstance(k, str)} for r in records if isinstance(r, dict) and r]
    target = io.BytesIO()
    try:
        table = pyarrow.Table.from_pylist(rows)
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
        rows = [
            {str(k).encode("utf-8", "replace").decode(): json.dumps(v)[:100] for k, v in row.items()} for row in rows
        ]
        table = pyarrow.Table.from_pylist(rows)
    try:
        pyarrow.parquet.write_table(table, target)
    except pyarrow.ArrowException:  # an empty struct
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), target)
    return target.getvalue()


def as_csv(records: list[Any]) -> bytes:
    rows = [r for r in records if isinstance(r, dict)]
    names = list(dict.fromkeys(str(k) for r in rows for k in r))
    cells = [[json.dumps(row.get(name)) for name in names] for row in rows]
    return "\n".join(",".join('"' + c.replace('"', '""') + '"' for c in row) for row in [names, *cells]).encode(
        "utf-8", "replace"
    )


def as_zstd(records: list[Any]) -> bytes:
    return bytes(pyarrow.compress(as_lines(records), codec="zstd", asbytes=True))


FORMATS: dict[str, Callable[[list[Any]], bytes]] = {
    "a.jsonl": as_lines, "a.json": as_list, "a.parquet": as_table, "a.csv": as_csv,
    "a.jsonl.gz": lambda r: gzip.compress(as_lines(r)), "a.jsonl.xz": lambda r: lzma.compress(as_lines(r), preset=0),
    "a.jsonl.zst": as_zstd,
}  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("name", READERS)
def test_readers_of_data_files_survive_damage(tmp_path: Path, name: str) -> None:
    """Each edit gives texts that can be encoded and tokenized, or one error that names the file."""
    method, records = READERS[name]
    rng, ends = random.Random(f"{name} 1"), Counter[str]()
    form, tokenizer = templates.build("plain"), tokenizers.build("bytes")
    for number in range(EDITS):
        format_ = rng.choice([*FORMATS, "a.jsonl", "a.jsonl", "a.json"])
        chosen = rng.sample(records, rng.choice((1, 2)))
        data = FORMATS[format_](edited(chosen, rng) if number % 3 else chosen)
        if number % 3 == 0:
            data = scrambled(data, rng)
        file = tmp_path / format_
        file.write_bytes(data)
        source: Any = sources.build(name, {"path": str(file)})
        try:
            found = list(getattr(source, method)())
            source.fingerprint()
            if name == "chats":
                reading_notes(source, form, found)
                assert len(write(tokenizer, form, [c.messages for c in found])) == len(found)
        except AblatioError as error:
            message = str(error)
            assert str(file) in message and "\n    try: " in message and len(message) < 3000, message
            message.encode()  # it can be written to every log
            ends["refused"] += 1
            continue
        ends["read"] += 1
        for item in found:
            item.text.encode()
            item.id.encode()
            if isinstance(item, Conversation):
                assert item.messages[-1].role == "assistant" and all(0 <= m.weight <= 1 for m in item.messages)
        json.dumps(source.unused_fields).encode()
    assert ends["refused"] > EDITS // 10 and ends["read"] > EDITS // 20, ends
