"""Train-validation split: as the source says, otherwise by a hash of the text; never by the position in a list."""

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from ablatio.data.types import Conversation, Document, Feedback, Source, Split
from ablatio.errors import UserError
from ablatio.storage.paths import shell_word

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
    # Of the text alone: adding or reordering documents moves none of the others to another split.
    return "validation" if int.from_bytes(digest[:8], "big") < val_fraction * 2.0**64 else "train"


def split_rule(val_fraction: float) -> str:
    """Name the rule, for cache keys; increase its number if documents are assigned differently."""
    return f"split-1:{float(val_fraction)!r}"


def key_split(item: Conversation | Feedback, val_fraction: float) -> Split:
    """Return the split that the source names, else the one that a hash of the item's `split_key` assigns."""
    return item.split or hash_split(_digest(item.split_key), val_fraction)


def refuse_empty_split(
    source: Any, items: Sequence[Conversation | Feedback], val_fraction: float, unit: str, key: str
) -> None:
    """Raise UserError if `key_split` assigns none of the items to one of the splits.

    Args:
        source: where the items come from; if it has the knob `split_by`, a message can propose it
        items: conversations or lines of feedback
        val_fraction: share of the keys that is held out
        unit: name of the items in the message
        key: name of the text whose hash assigns the split
    """
    found = {key_split(item, val_fraction) for item in items}
    if len(found) == 2:
        return
    if not items:
        raise UserError(f"the source has no {unit}\n    try: source.path=FILE, a file with at least two")
    empty = "train" if found == {"validation"} else "validation"
    keys = {item.split_key for item in items if not item.split}
    fraction = fraction_for_both(_digest(k) for k in keys)
    if not keys:
        why, fix = f"the source assigns all {len(items)} {unit} to the other one", "a source that assigns some to each"
    elif len(keys) == 1 and len(items) > 1:
        why = f"all {len(items)} {unit} have the same {key}, and equal ones stay in one split"
        splits = hasattr(source, "split_by")
        fix = "source.split_by=all, which splits by everything that they hold" if splits else f"data with another {key}"
    else:
        why = (
            f"a hash of the {key} holds out about data.val_fraction={val_fraction}, and the {len(items)} {unit} have "
            f"{len(keys)} different ones"
        )
        fix = "a source with more than one" if fraction is None else f"data.val_fraction={fraction:g}"
    raise UserError(f"the {empty} split is empty: {why}\n    try: {fix}")


def fraction_for_both(digests: Iterable[bytes]) -> float | None:
    """Return the shortest decimal fraction for which `hash_split` fills both splits; None if there is none."""
    shares = sorted({int.from_bytes(digest[:8], "big") / 2.0**64 for digest in digests})
    # Rounded up to ever more digits, so that the command in the message has a number that people would type.
    for digits in range(1, 12) if len(shares) > 1 else ():
        fraction = math.floor(shares[0] * 10.0**digits + 1) / 10.0**digits
        if shares[0] < fraction <= shares[-1] and fraction < 1:
            return fraction
    return None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class TrainValSplit:
    """The documents of a source by split, read lazily; blank documents are skipped.

    Training documents that repeat a held-out text are left out. A hash never separates equal texts, so a source whose
    `names_splits` is False is not read before its first document is yielded. A source that names splits itself can hold
    copies, so it is read once for the held-out texts.
    """

    def __init__(self, source: Source, val_fraction: float) -> None:
        self.source, self.val_fraction = source, val_fraction
        self._warned = False

    @cached_property
    def names_splits(self) -> bool:
        """True if a document of the source may name its split."""
        return bool(getattr(self.source, "names_splits", True))

    @cached_property
    def held_out(self) -> frozenset[bytes]:
        """The digests of the validation texts of a source that names splits; reads the source.

        Raises UserError if the validation split is empty.
        """
        if not self.names_splits:
            return frozenset()
        total, held_out = 0, set()
        for split, digest, _ in self._assigned():
            total += 1
            if split == "validation":
                held_out.add(digest)
        if not held_out:
            raise UserError(self._empty("validation", total))
        return frozenset(held_out)

    def assigned(self) -> Iterator[tuple[Split, Document]]:
        """Yield all documents with their splits, in the source's order. Raises UserError at the end if one is empty."""
        held_out, copies = self.held_out, 0
        counts: dict[Split, int] = {"train": 0, "validation": 0}
        for split, digest, document in self._assigned():
            # The copy in the training split goes: the held-out text is what runs are compared on.
            if split == "train" and digest in held_out:
                copies += 1
                continue
            counts[split] += 1
            yield split, document
        for split, count in counts.items():
            if not count:
                raise UserError(self._empty(split, copies + sum(counts.values())))
        if copies and not self._warned:
            self._warned = True
            log.warning("%d training document(s) repeat the text of a held-out one and are left out", copies)

    def documents(self, split: Split) -> Iterator[Document]:
        """Yield the documents of one split."""
        return (document for assigned, document in self.assigned() if assigned == split)

    def _empty(self, split: Split, total: int) -> str:
        if not total:
            path = str(getattr(self.source, "path", ""))
            fix = f"ls -l {shell_word(path)}" if path else "ablatio train source=sotu"
            return f"the source {path}{' ' * bool(path)}has no document with text\n    try: {fix}"
        digests = {digest for _, digest, document in self._assigned() if not document.split}
        fraction = fraction_for_both(digests)
        different = f" with {len(digests)} different text(s)" if len(digests) < total else ""
        number = "" if fraction is None else f"data.val_fraction={fraction:g}, or "
        return (
            f"the {split} split is empty: the source has {total} document(s){different}, and a hash of the text holds "
            f"out about val_fraction={self.val_fraction} of them.\n    try: {number}more and shorter documents "
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
            if document.split and not self.names_splits:
                raise UserError(
                    f"document {document.id!r} has split={document.split!r}, but its source declares that it names no "
                    f"splits\n    try: names_splits = True in {type(self.source).__name__}"
                )
            digest = text_digest(document)  # also if the source names the split: it reveals copies across splits
            yield document.split or hash_split(digest, self.val_fraction), digest, document
