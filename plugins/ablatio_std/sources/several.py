"""Several sources as one: one stream for tasks that know no mixture, and its parts for those that draw from each."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath
from typing import Annotated, Any

from ablatio import sources
from ablatio.data.types import Conversation, Document, Source
from ablatio.errors import UserError


@sources.register("several")
class Several:
    """Several sources, for a `mixture`; without one, their documents or conversations one source after the other.

    An entry is the name of a source, or `name:path` for one that reads files: [sotu,jsonl:web.jsonl].  A source is
    called by its name, or by the name of its file without endings, here `sotu` and `web`.
    """

    combines = True

    def __init__(
        self,
        *,
        of: Annotated[tuple[str, ...], "sources, each as name or name:path"] = ("gsm_symbolic",),
    ) -> None:
        self.of = list(of)
        self.unused_fields: dict[str, int] = {}

    def _built(self) -> Iterator[tuple[str, Any]]:
        """(entry, its source)."""
        if not self.of:
            raise UserError("source.of is empty\n    try: source.of=[sotu,zh_classics]")
        for written in self.of:
            name, colon, path = written.partition(":")
            if sources[name].facts["combines"]:
                raise UserError(f"source.of: {name} consists of sources itself\n    try: source.of=[sotu,zh_classics]")
            if sources[name].wiring:
                raise UserError(f"source.of: {name} needs a run, and can only be used alone\n    try: source={name}")
            yield written, sources.build(name, {"path": path} if colon else {})

    def parts(self) -> dict[str, Source]:
        """{name: source}; a name that occurs again gets a number."""
        found, seen = dict[str, Source](), Counter[str]()
        for written, part in self._built():
            option, colon, path = written.partition(":")
            name = PurePath(path).name.partition(".")[0].strip("*") or option if colon else option
            seen[name] += 1
            found[f"{name}_{seen[name]}" if seen[name] > 1 else name] = part
        return found

    def conversations(self) -> Iterator[Conversation]:
        unused: dict[str, int] = {}
        for written, part in self._built():
            if not hasattr(part, "conversations"):
                name = written.partition(":")[0]
                raise UserError(f"source.of: {name} does not provide conversations\n    try: source.of=[gsm_symbolic]")
            for c in part.conversations():
                yield replace(c, id=f"{written}/{c.id}", group=written)
            unused |= {f"{written}/{name}": n for name, n in getattr(part, "unused_fields", {}).items()}
        self.unused_fields = unused

    def documents(self) -> Iterator[Document]:
        for written, part in self._built():
            for document in part.documents():
                yield replace(document, id=f"{written}/{document.id}")

    def fingerprint(self) -> str:
        made: list[tuple[str, Source]] = list(self._built())
        # Without the paths: the same files in another folder are the same data.
        held = [(written.partition(":")[0], part.fingerprint()) for written, part in made]
        return hashlib.sha256(json.dumps(["several-1", held]).encode()).hexdigest()
