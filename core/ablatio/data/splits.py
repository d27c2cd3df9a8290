"""Train-validation split: as the source says, otherwise by a hash of the text; never by the position in a list."""

import hashlib
import logging
from collections.abc import Iterator
from functools import cached_property

from ablatio.data.types import Document, Source, Split
from ablatio.errors import UserError

log = logging.getLogger("ablatio")


def text_digest(document: Document) -> bytes:
    """Return the sha256 of the document's text in UTF-8. Raises UserError if UTF-8 cannot hold the text."""
    try:
        return hashlib.sha256(document.text.encode()).digest()
    except UnicodeEncodeError as error:
        raise UserError(
            f"document {document.id!r}: character {error.start} is half of a surrogate pair, which UTF-8 cannot hold; "
            "expected valid Unicode text.\n    try: text.encode('utf-8', 'replace').decode() in the source"
        ) from None


def hash_split(digest: bytes, val_fraction: float) -> Split:
    """Return 'validation' if the first 64 bits of the sha256 of the text, over 2^64, are below `val_fraction`."""
    return "validation" if int.from_bytes(digest[:8], "big") < val_fraction * 2.0**64 else "train"


def split_rule(val_fraction: float) -> str:
    """Name the rule, for cache keys; increase its number if documents are assigned differently."""
    return f"split-1:{float(val_fraction)!r}"


class TrainValSplit:
    """The documents of a source by split, read lazily; blank documents are skipped.

    Training documents that repeat a held-out text are left out. A hash never separates equal texts, but a source that
    names splits itself can.
    """

    def __init__(self, source: Source, val_fraction: float) -> None:
        self.source, self.val_fraction = source, val_fraction
        self._warned = False

    @cached_property
    def held_out(self) -> frozenset[bytes]:
        """The digests of the validation texts; reads the source. Raises UserError if a split is empty."""
        total, held_out = 0, set()
        for split, digest, _ in self._assigned():
            total += 1
            if split == "validation":
                held_out.add(digest)
        if not held_out:
            raise UserError(self._empty("validation", total))
        # A second pass, not a list of texts: the source may be larger than the memory.
        if all(split == "validation" or digest in held_out for split, digest, _ in self._assigned()):
            raise UserError(self._empty("train", total))
        return frozenset(held_out)

    def documents(self, split: Split) -> Iterator[Document]:
        """Yield the documents of one split."""
        held_out, copies = self.held_out, 0
        for assigned, digest, document in self._assigned():
            if split == "train" and assigned == "train" and digest in held_out:
                copies += 1
            elif assigned == split:
                yield document
        if copies and not self._warned:
            self._warned = True
            log.warning("%d training document(s) repeat the text of a held-out one and are left out", copies)

    def _empty(self, split: Split, total: int) -> str:
        if not total:
            return "the source has no document with text.\n    try: ablatio train source=sotu"
        return (
            f"the {split} split is empty: the source has {total} document(s), and a hash of the text holds out about "
            f"val_fraction={self.val_fraction} of them.\n    try: data.val_fraction=0.2, or more and shorter documents "
            "(for a text file: source.separator='\\n\\n')"
        )

    def _assigned(self) -> Iterator[tuple[Split, bytes, Document]]:
        for document in self.source.documents():
            if not document.text.strip():
                continue
            if document.split not in ("train", "validation", ""):
                raise UserError(
                    f"document {document.id!r} has split={document.split!r}; expected 'train', 'validation' or '' "
                    "(a hash of the text decides).\n    try: Document(text, id, split='') in the source"
                )
            digest = text_digest(document)  # also if the source names the split: it reveals copies across splits
            yield document.split or hash_split(digest, self.val_fraction), digest, document
