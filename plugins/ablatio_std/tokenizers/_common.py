"""Shared by tokenizers: GPT-2's byte alphabet, decoding of ids, and reading a saved state."""

from collections.abc import Sequence
from typing import Any

from ablatio.storage.json_files import parse_object


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters -> bytes: a printable byte is its own character, the others have characters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    # In the order of GPT-2's table, whose characters stand in every vocabulary of this kind.
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_alphabet()


def text_of(table: Sequence[bytes], ids: Sequence[int]) -> str:
    """Decode ids by their bytes; ids without bytes are left out, an incomplete character becomes U+FFFD.

    Ids beyond the table have no bytes: a model may have more rows than its tokenizer has ids.
    """
    return b"".join(table[i] for i in ids if i < len(table)).decode("utf-8", errors="replace")


def state_of(text: str) -> dict[str, Any]:
    """Parse a saved tokenizer state; DamagedFile if it is not JSON."""
    return parse_object(text, "the tokenizer state")
