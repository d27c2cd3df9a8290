"""What tokenizers share: GPT-2's letters for bytes, ids as text, and a state that is read back."""

import json
from collections.abc import Sequence
from typing import Any

from ablatio.errors import DamagedFile


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself, or a character from U+0100 on for what is not printable."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_alphabet()


def text_of(table: Sequence[bytes], ids: Sequence[int]) -> str:
    """Ids that stand for no bytes are left out; an incomplete character becomes U+FFFD."""
    return b"".join(table[i] for i in ids).decode("utf-8", errors="replace")


def state_of(text: str) -> dict[str, Any]:
    try:
        state = json.loads(text)
    except ValueError as error:
        raise DamagedFile(f"the tokenizer state is no JSON ({error}); delete it and train again") from error
    return state if isinstance(state, dict) else {}
