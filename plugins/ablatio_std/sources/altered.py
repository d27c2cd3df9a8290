"""Sources whose training text has a known fault: copies of few documents, or damaged documents.

The held-out text is that of the source without the fault, so that runs on both are scored on the same text.
"""

import hashlib
import heapq
import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from ablatio import Fraction, NonNegative, OptionOf, Positive, Range, sources
from ablatio.data.splits import hash_split, text_digest
from ablatio.data.types import Document
from ablatio.errors import UserError

Of = Annotated[str, OptionOf("source"), "source of the documents"]
HeldOut = Annotated[float, Range(0, 0.5, open_low=True), "share that is held out if the source names no splits"]
FaultSeed = Annotated[int, NonNegative, "seed of the choice of documents"]


class _Altered:
    """Documents of a source with their splits; training documents are chosen by a hash of their text."""

    def __init__(self, of: str, held_out: float, seed: int) -> None:
        if sources[of].wiring or issubclass(sources.target(of), _Altered):  # type: ignore[arg-type]
            raise UserError(
                f"source.of={of}: expected a source that needs no run and has no fault\n    try: source.of=sotu"
            )
        self.source: Any = sources.build(of)
        self.held_out, self.seed = held_out, seed

    def _split(self) -> Iterator[Document]:
        for document in self.source.documents():
            yield replace(document, split=document.split or hash_split(text_digest(document), self.held_out))

    def _draw(self, text: str, what: str) -> float:
        """A number in [0, 1) that depends on the text and the seed."""
        # By the text, not by its place: the same documents are chosen whatever the order of the source.
        drawn = hashlib.sha256(f"{self.seed} {what} {text}".encode()).digest()
        return int.from_bytes(drawn[:8], "big") / 2.0**64

    def held_out_fingerprint(self) -> str:
        """sha256 of what the held-out text follows from: the source and the share that is held out."""
        return hashlib.sha256(f"held-out-1 {self.held_out!r} {self.source.fingerprint()}".encode()).hexdigest()

    def _fingerprint(self, *knobs: Any) -> str:
        told = (type(self).__name__, 1, *knobs, self.held_out, self.seed, self.source.fingerprint())
        return hashlib.sha256(repr(told).encode()).hexdigest()


@sources.register("repeated", paper="arXiv:2205.10487")
class Repeated(_Altered):
    """The documents of a source, a share of whose training text is replaced by copies of few of its documents.

    Each training document is replaced with probability `share`, by copies of as many characters, which are taken in
    turn from documents of together `characters`; the last of these is cut.  So the size of the training text and the
    held-out text stay.  A run that reads S characters reads each copied one about share * S / characters times.  With
    share=1 there is no other text: training on limited data (arXiv:2305.16264).
    """

    def __init__(
        self,
        *,
        of: Of = "sotu",
        share: Annotated[float, Fraction, "share of the training text that consists of copies"] = 0.5,
        characters: Annotated[int, Positive, "characters of the documents that are copied"] = 2**16,
        held_out: HeldOut = 0.02,
        seed: FaultSeed = 0,
    ) -> None:
        super().__init__(of, held_out, seed)
        self.share, self.characters = share, characters

    def documents(self) -> Iterator[Document]:
        copies = itertools.cycle(self._copied()) if self.share else iter(())
        owed, number = 0, itertools.count(1)
        for document in self._split():
            if document.split != "train" or self._draw(document.text, "replaced") >= self.share:
                yield document
                continue
            owed += len(document.text)
            while owed > 0:
                copy = next(copies)
                owed -= len(copy.text)
                yield replace(copy, id=f"{copy.id}, copy {next(number)}")

    def _copied(self) -> list[Document]:
        """The training documents with the smallest hashes, of together `characters`."""
        kept = list[tuple[float, int, Document]]()  # a heap with the largest hash on top
        size = 0
        for place, document in enumerate(self._split()):
            if document.split == "train" and document.text.strip():
                # As many as are needed are held in memory, whatever the size of the source.
                heapq.heappush(kept, (-self._draw(document.text, "copied"), place, document))
                size += len(document.text)
                while size - len(kept[0][2].text) >= self.characters:
                    size -= len(heapq.heappop(kept)[2].text)
        found = [document for _, _, document in sorted(kept, reverse=True)]
        if not found:
            raise UserError("source.of has no training document with text\n    try: source.of=sotu")
        last = found.pop()
        return [*found, replace(last, text=last.text[: len(last.text) - max(0, size - self.characters)])]

    def fingerprint(self) -> str:
        return self._fingerprint(self.share, self.characters)


@sources.register("damaged")
class Damaged(_Altered):
    """The documents of a source, a share of which is damaged in training: text that a filter of quality should find.

    words: the words of a document in random order; characters: a share `rate` of its characters, white space apart, is
    replaced by others of the same document, as a bad scan does.  Held-out documents stay whole.  Source: a control,
    from no paper; what filters gain on real web text is in arXiv:2305.13169.
    """

    def __init__(
        self,
        *,
        of: Of = "sotu",
        share: Annotated[float, Fraction, "share of the training documents that is damaged"] = 0.3,
        by: Annotated[Literal["words", "characters"], "damage"] = "words",
        rate: Annotated[float, Fraction, "share of the characters that is replaced"] = 0.3,
        held_out: HeldOut = 0.02,
        seed: FaultSeed = 0,
    ) -> None:
        super().__init__(of, held_out, seed)
        self.share, self.by, self.rate = share, by, rate

    def documents(self) -> Iterator[Document]:
        for document in self._split():
            if document.split == "train" and self._draw(document.text, "damaged") < self.share:
                document = replace(document, text=self._damaged(document.text), id=f"{document.id}, damaged")
            yield document

    def _damaged(self, text: str) -> str:
        drawn = random.Random(f"{self.seed} {hashlib.sha256(text.encode()).hexdigest()}")
        if self.by == "words":
            words = text.split(" ")
            drawn.shuffle(words)
            return " ".join(words)
        others = [c for c in text if not c.isspace()]
        return "".join(c if c.isspace() or drawn.random() >= self.rate else drawn.choice(others) for c in text)

    def fingerprint(self) -> str:
        return self._fingerprint(self.share, self.by, self.rate)
