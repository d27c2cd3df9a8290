"""Files of conversations, and what was read from them."""

import json
from pathlib import Path
from typing import Any

ASKED, ANSWERED = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = [("user", "q"), ("assistant", "a")]


def lines(tmp_path: Path, *records: Any) -> str:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return str(path)


def said(messages: Any) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in messages]
