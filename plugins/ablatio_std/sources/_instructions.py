"""Instructions written by a model: reading seeds, novelty by ROUGE-L, and a cache of what was written."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from ablatio.data.cache_store import get_or_build, key_of
from ablatio.data.data_files import files_digest, find_files, invalid_data
from ablatio.data.records import ENDINGS, records
from ablatio.data.types import Conversation, Document, Message
from ablatio.errors import UserError
from ablatio.storage.atomic_write import write_text
from ablatio.storage.paths import cache_root

from ._records import as_documents

_WORD = re.compile(r"[a-z0-9]+")
FILE = "instructions.jsonl"

log = logging.getLogger("ablatio")


@dataclass(frozen=True, slots=True)
class Instruction:
    """A task, its input (may be empty) and its answer; `origin` names the seed, the round or the operation."""

    instruction: str
    input: str
    output: str
    origin: str = "seed"

    @property
    def question(self) -> str:
        """Instruction and input, as the user writes them."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction


class Writer(Protocol):
    """Continues prompts (ablatio.training.frozen_model.FrozenModel)."""

    digest: str

    def longest(self, tokens: int) -> int: ...

    def size(self, text: str) -> int: ...

    def __call__(self, prompts: Sequence[str], tokens: int, temperature: float, seed: int) -> list[str]: ...


OpenRun = Callable[[str], Writer]


class WrittenInstructions:
    """Conversations from instructions that a run's model writes once; they are kept in the cache.

    Subclasses define `write(writer, seeds, dropped)`, which returns the new instructions and counts in `dropped` what
    the filters removed and why. `knobs` are what they depend on beside writer and seeds.
    """

    name: str
    names_splits = False

    def __init__(self, open_run: OpenRun, run: str, path: str, keep_seeds: bool, knobs: dict[str, Any]) -> None:
        self.open_run, self.run, self.path, self.keep_seeds, self.knobs = open_run, run, path, keep_seeds, knobs
        self._writer: Writer | None = None

    def write(self, writer: Writer, seeds: Sequence[Instruction], dropped: Counter[str]) -> list[Instruction]:
        raise NotImplementedError

    @property
    def writer(self) -> Writer:
        """The run's model."""
        if self._writer is None:
            self._writer = self.open_run(self.run)
        return self._writer

    def _files(self) -> list[Path]:
        return find_files(self.path, self.name, ENDINGS, "seed_tasks.jsonl")

    def fingerprint(self) -> str:
        return key_of(self._key(), str(self.keep_seeds))

    def _key(self) -> str:
        """Identifies what is written: by the writer, the seeds and the knobs."""
        knobs = json.dumps(self.knobs, sort_keys=True)
        # The number is raised when the code writes something else: old caches are then not used.
        return files_digest(self._files(), f"{self.name}-1", self.writer.digest, knobs)

    def _written(self) -> list[Instruction]:
        seeds = list(read_seeds(self._files()))
        entry = cache_root() / "instructions" / key_of(self.name, self._key())

        def build(folder: Path) -> dict[str, Any]:
            dropped = Counter[str]()
            made = self.write(self.writer, seeds, dropped)
            write_text(folder / FILE, "".join(json.dumps(asdict(i), ensure_ascii=False) + "\n" for i in made))
            return {"written": len(made), "dropped": dict(sorted(dropped.items()))}

        facts = get_or_build(entry, build)
        log.info("source=%s wrote %s, in %s", self.name, facts, entry / FILE)
        lines = (entry / FILE).read_text(encoding="utf-8").splitlines()
        written = [Instruction(**json.loads(line)) for line in lines]
        return [*seeds, *written] if self.keep_seeds else written

    def conversations(self) -> Iterator[Conversation]:
        for number, found in enumerate(self._written()):
            messages = Message("user", found.question), Message("assistant", found.output)
            yield Conversation(messages, f"{self.name}:{number}:{found.origin}")

    def documents(self) -> Iterator[Document]:
        yield from as_documents(self.conversations())


def read_seeds(files: Sequence[Path]) -> Iterator[Instruction]:
    """Seed tasks: records with `instruction`, `output` and optionally `input`, or with `prompt` and `completion`."""
    for file in files:
        for record in records(file):
            held = record.fields
            asked, answer = held.get("instruction", held.get("prompt")), held.get("output", held.get("completion"))
            more = held.get("input") or ""
            if not (isinstance(asked, str) and isinstance(answer, str) and isinstance(more, str) and asked.strip()):
                names = ", ".join(list(held)[:20]) or "none"
                raise invalid_data(
                    record.place, f"no seed task; its fields: {names}",
                    '{"instruction": "...", "input": "", "output": "..."}',
                )  # fmt: skip
            yield Instruction(asked.strip(), more.strip(), answer.strip())


def words_of(text: str) -> list[str]:
    """Lower-case words of letters and digits, as ROUGE counts them."""
    return _WORD.findall(text.lower())


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """F measure of ROUGE-L (Lin 2004): 2 l / (len(a) + len(b)), with l the length of the longest common subsequence.

    l is counted with one bit per word of `a` (Hyyrö 2004, Bit-parallel LCS-length computation revisited).
    """
    if not a or not b:
        return 0.0
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(a)) - 1
    # A zero bit of `row` is a word of `a` that the common subsequence has reached.
    row = every
    for word in b:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & every
    return 2.0 * (every ^ row).bit_count() / (len(a) + len(b))


class Novelty:
    """Texts that were kept so far; a new one is novel if its ROUGE-L with each of them is below `most`."""

    def __init__(self, most: float) -> None:
        self.most = most
        self._known: list[list[str]] = []

    def add(self, text: str) -> None:
        """Remember a text."""
        self._known.append(words_of(text))

    def __call__(self, text: str) -> bool:
        """True if the text differs enough from all that are known."""
        words = words_of(text)
        # The F measure is at most 2 min / (m + n): most texts of another length need no comparison.
        for known in self._known:
            limit = 2 * min(len(words), len(known)) / max(1, len(words) + len(known))
            if limit >= self.most and rouge_l(words, known) >= self.most:
                return False
        return True


def draw_of(*parts: object) -> int:
    """A seed that follows from the parts alone."""
    # 31 bits: torch and numpy take seeds of at most 32, and some of them only positive numbers.
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


def refuse_few(seeds: Sequence[Instruction], name: str) -> None:
    """Raise UserError if there are no seed tasks."""
    if not seeds:
        raise UserError(f"source={name}: the file of seed tasks has none\n    try: source.path=seed_tasks.jsonl")
