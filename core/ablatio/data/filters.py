"""Filters of training documents: a pipeline whose outcome is cached and recorded.

source -> split -> filter 1 -> ... -> filter n -> tokens.  Each filter reads what the one before it kept.  Held-out
documents are never filtered, so that runs with different filters are scored on the same text.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from ablatio.data.cache_store import get_or_build, key_of
from ablatio.data.documents import Verdict as Verdict
from ablatio.data.parallel import Engine, map_texts
from ablatio.data.splits import TrainValSplit, split_rule
from ablatio.data.types import Document, Source, Split
from ablatio.errors import UserError
from ablatio.registry.kinds import filters
from ablatio.storage.atomic_write import explained, write_pieces

EXAMPLES = 5  # per filter, of dropped and of changed documents
SHOWN = 240  # characters of an example
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Chosen filters in order, and where they run.

    choices  {option: its knobs}
    cache    folder of cached data
    workers  processes that measure the texts; 0: this one.  The outcome does not depend on it
    """

    choices: Mapping[str, Mapping[str, Any]]
    cache: Path
    val_fraction: float
    workers: int = 0
    engine: Engine = "processes"

    def build(self) -> dict[str, Any]:
        """Build the filters, not fitted yet."""
        return {name: filters.build(name, knobs) for name, knobs in self.choices.items()}

    @property
    def key(self) -> str:
        """Identifies the filters with their knobs, their code and the files that they read."""
        parts = self.build()
        read = {name: part.fingerprint() for name, part in parts.items() if hasattr(part, "fingerprint")}
        made = [[name, filters[name].digest, dict(knobs), read.get(name, "")] for name, knobs in self.choices.items()]
        return json.dumps([*made, split_rule(self.val_fraction)], sort_keys=True)

    @property
    def avoids(self) -> bool:
        """True if one of the filters takes the held-out text."""
        return any(hasattr(part, "avoid") for part in self.build().values())

    def over(self, source: Source, others: Sequence[Source] = ()) -> "FilteredSource":
        """The source with its training documents filtered.

        others  further sources of the same run, whose held-out text the training text must not contain either
        """
        # Held-out texts that no filter looks at must not change the fingerprint, and with it the cache.
        return FilteredSource(source, self, others if self.avoids else ())


class FilteredSource:
    """The documents of a source after a pipeline of filters, each with its split; read from the cache.

    others  sources whose held-out text filters take beside that of `source`

    Raises UserError, when it is read, if a filter leaves no document.
    """

    combines: ClassVar[bool] = False

    def __init__(self, source: Source, pipeline: Pipeline, others: Sequence[Source] = ()) -> None:
        self.source, self.pipeline, self.others = source, pipeline, others

    def fingerprint(self) -> str:
        """Hash of the content of the sources and the pipeline."""
        others = [other.fingerprint() for other in self.others]
        return key_of("filtered", self.source.fingerprint(), self.pipeline.key, *others)

    @cached_property
    def _entry(self) -> tuple[Path, Record]:
        folder = self.pipeline.cache / "filtered" / self.fingerprint()
        return folder, get_or_build(folder, partial(_filter, self.source, self.pipeline, self.others))

    @property
    def record(self) -> list[Record]:
        """Per filter: documents seen, kept and changed, characters removed, reasons, counts, examples."""
        found: list[Record] = self._entry[1]["filters"]
        return found

    @property
    def unused_fields(self) -> dict[str, int]:
        """Fields of the records that the source did not use."""
        found: dict[str, int] = self._entry[1]["unused_fields"]
        return found

    def documents(self) -> Iterator[Document]:
        """The filtered training documents, then the held-out ones as they are."""
        for split in ("train", "validation"):
            yield from _read(self._entry[0] / f"{split}.jsonl", split)


class Texts:
    """Texts that can be read again and again."""

    def __init__(self, read: Callable[[], Iterator[Document]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[str]:
        return (document.text for document in self._read())


def verdicts(
    part: Any, texts: Iterable[str], held_out: Iterable[str] = (), workers: int = 0, engine: Engine = "processes"
) -> Iterator[Verdict]:
    """Fit a filter on texts, which are read several times, and yield its verdict on each, in order."""
    if hasattr(part, "fit"):
        part.fit(texts)
    if hasattr(part, "avoid"):
        part.avoid(held_out)
    if hasattr(part, "measure"):
        measures: Iterable[Any] = map_texts(part.measure, texts, workers, engine)
    else:
        measures = (None for _ in texts)
    if hasattr(part, "plan"):
        # A plan looks at all documents, as in deduplication, so that all measures must be known first.
        measures = list(measures)
        part.plan(measures)
    for text, measure in zip(texts, measures, strict=True):
        verdict: Verdict = part.judge(text, measure)
        yield verdict


def _filter(source: Source, pipeline: Pipeline, others: Sequence[Source], folder: Path) -> Record:
    """Run the pipeline; writes train.jsonl and validation.jsonl to `folder` and returns the record."""
    by_split, *theirs = [TrainValSplit(each, pipeline.val_fraction) for each in (source, *others)]
    own, kept = folder / "validation.jsonl", folder / "stage-0.jsonl"
    _write(own, by_split.documents("validation"))
    held_out = folder / "held-out.jsonl" if theirs else own
    if theirs:
        _write(held_out, chain(_read(own, "validation"), *(each.documents("validation") for each in theirs)))
    _write(kept, by_split.documents("train"))
    records = []
    for number, (name, part) in enumerate(pipeline.build().items(), 1):
        found, rest = Stage(name, part, kept, held_out), folder / f"stage-{number}.jsonl"
        # From file to file: a filter may read its texts several times, and a corpus need not fit into memory.
        _write(rest, found.kept(pipeline.workers, pipeline.engine))
        records.append(found.record())
        kept.unlink()
        kept = rest
    kept.rename(folder / "train.jsonl")
    if theirs:
        held_out.unlink()
    return {"filters": records, "unused_fields": dict(getattr(source, "unused_fields", {}))}


class Stage:
    """One filter over the documents of a file.

    part      the filter, not fitted
    training  file of the documents that the filters before it kept
    held_out  file of the held-out documents
    """

    def __init__(self, name: str, part: Any, training: Path, held_out: Path) -> None:
        self.name, self.part = name, part
        self.documents = partial(_read, training, "train")
        self.held_out = partial(_read, held_out, "validation")
        self.seen = self.dropped = self.changed = self.removed = 0
        self.reasons, self.counts = Counter[str](), Counter[str]()
        self.examples: list[dict[str, str]] = []

    def kept(self, workers: int = 0, engine: Engine = "processes") -> Iterator[Document]:
        """Fit the filter, then yield the documents that it keeps; UserError if it keeps none."""
        found = verdicts(self.part, Texts(self.documents), Texts(self.held_out), workers, engine)
        for document, verdict in zip(self.documents(), found, strict=True):
            made = self._judged(document, verdict)
            if made is not None:
                yield made
        if self.dropped == self.seen:
            raise UserError(
                f"filter={self.name} leaves no document: all {self.seen} are dropped ({_counted(self.reasons)})\n"
                f"    try: ablatio show filter={self.name}, for settings that drop less"
            )

    def _judged(self, document: Document, verdict: Verdict) -> Document | None:
        self.seen += 1
        # White space alone is no document: its row would be two ends of documents in a row.
        text = verdict.text if verdict.text and verdict.text.strip() else None
        if text is None:
            self.dropped += 1
            self.removed += len(document.text)
            self.reasons[verdict.reason or "nothing is left"] += 1
            self._remember("dropped", document, verdict.reason or "nothing is left", document.text)
            return None
        self.counts.update(verdict.counts)
        if text != document.text:
            self.changed += 1
            self.removed += len(document.text) - len(text)
            self._remember("changed", document, _counted(verdict.counts), _around(text, document.text))
        return replace(document, text=text)

    def _remember(self, what: str, document: Document, why: str, text: str) -> None:
        if sum(example["what"] == what for example in self.examples) < EXAMPLES:
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
            self.examples.append({"what": what, "id": document.id, "why": why, "text": shown})

    def record(self) -> Record:
        """Counts, reasons and examples of the filter, as plain JSON."""
        return {
            "filter": self.name, "seen": self.seen, "kept": self.seen - self.dropped, "changed": self.changed,
            "characters_removed": self.removed, "reasons": dict(self.reasons.most_common()),
            "counts": dict(self.counts.most_common()), "examples": self.examples,
        }  # fmt: skip


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _around(text: str, before: str) -> str:
    """The changed text from shortly before the first difference on."""
    first = next((i for i, (a, b) in enumerate(zip(text, before, strict=False)) if a != b), 0)
    return text[max(0, first - SHOWN // 4) :]


def _write(path: Path, documents: Iterable[Document]) -> None:
    lines = (json.dumps([d.id, d.text], ensure_ascii=False) + "\n" for d in documents)
    write_pieces(path, (line.encode() for line in lines))


def _read(path: Path, split: Split) -> Iterator[Document]:
    # Python's universal newlines would cut a line at a bare carriage return of a text.
    with explained("read", path), path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            name, text = json.loads(line)
            yield Document(text, name, split)


def kept_share(record: Sequence[Mapping[str, Any]]) -> float:
    """Share of the documents that passed all filters."""
    return record[-1]["kept"] / record[0]["seen"] if record and record[0]["seen"] else 1.0
