"""Which documents are held out: the source's own word, else a hash of the text, so that order and count do not matter."""

import hashlib
import logging
from collections.abc import Iterator

from ablatio.data.types import Document, Source, Split
from ablatio.errors import UserError

log = logging.getLogger("ablatio")


def text_digest(document: Document) -> bytes:
    try:
        return hashlib.sha256(document.text.encode()).digest()
    except UnicodeEncodeError as error:
        raise UserError(
            f"document {document.id!r}: character {error.start} is half of a surrogate pair, which is no Unicode text; "
            "expected text that UTF-8 can hold. Read it with text.encode('utf-8', 'replace').decode() first."
        ) from None


def hash_split(digest: bytes, val_fraction: float) -> Split:
    """validation if the first 64 bits of sha256(text), read as a fraction of 2^64, lie below `val_fraction`."""
    return "validation" if int.from_bytes(digest[:8], "big") < val_fraction * 2.0**64 else "train"


def split_rule(val_fraction: float) -> str:
    """The rule by name, for the cache key: raise the number when the meaning of a split changes."""
    return f"split-1:{float(val_fraction)!r}"


def divide(source: Source, val_fraction: float) -> Iterator[tuple[Split, Document]]:
    """Each document that is not blank with its split; a training copy of a held-out text is left out.

    Reads the source twice: first for what is held out, then to give the documents.
    """
    held_out = {digest for split, digest, _ in _assigned(source, val_fraction) if split == "validation"}
    copies = 0
    for split, digest, document in _assigned(source, val_fraction):
        if split == "train" and digest in held_out:
            copies += 1
        else:
            yield split, document
    if copies:
        log.warning("%d training document(s) repeat the text of a held-out one and are left out", copies)


def _assigned(source: Source, val_fraction: float) -> Iterator[tuple[Split, bytes, Document]]:
    for document in source.documents():
        if not document.text.strip():
            continue
        digest = text_digest(document)
        if document.split not in ("train", "validation", ""):
            raise UserError(
                f"document {document.id!r} names the split {document.split!r}; expected 'train', 'validation' "
                "or '' (decided by a hash of the text). Correct the source's documents()."
            )
        yield document.split or hash_split(digest, val_fraction), digest, document
