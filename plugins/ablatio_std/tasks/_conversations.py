"""Conversations as tokens, and as rows of a batch: one text, or what is read beside what is said."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from ablatio.data.chat import Template, Written, truncate_to_length, write
from ablatio.data.splits import hash_split
from ablatio.data.types import Conversation, Tokenizer
from ablatio.errors import UserError
from ablatio.model.example import PADDING, Example
from ablatio.training.task_context import TaskContext

SPLITS = ("train", "validation")
Row = dict[str, Tensor]
log = logging.getLogger("ablatio")


class Reading(Protocol):
    """How a model reads conversations.

    unit   what a piece is called
    ahead  tokens of a piece that take no place in a row: they are said and not read
    fill   what a row is filled up with, by name
    even   whether packed rows are all filled up to the same length, which compiled code likes
    """

    unit: ClassVar[str]
    ahead: ClassVar[int]
    fill: dict[str, float]
    even: ClassVar[bool]

    def pieces(self, written: Written) -> list[Written]: ...

    def row(self, pieces: Sequence[Written]) -> Row: ...

    def plain(self, tokens: Tensor, documents: Tensor | None, generator: torch.Generator) -> Row:
        """A row of plain text (1, T + 1), as in pre-training."""
        ...

    def example(self, batch: Mapping[str, Tensor]) -> Example: ...


class OneText:
    """A decoder reads a conversation as one text; the loss stands on what the assistant says in it.

    prompts  whether it stands on the questions too
    causal   whether no token sees what comes later
    """

    unit, ahead, even = "conversations", 1, True

    def __init__(self, eos: int, *, prompts: bool, causal: bool) -> None:
        self.prompts, self.causal = prompts, causal
        self.fill: dict[str, float] = {"inputs": eos, "targets": eos, "weights": 0.0, "segments": PADDING}

    def pieces(self, written: Written) -> list[Written]:
        return [written]

    def row(self, pieces: Sequence[Written]) -> Row:
        """Side by side; each begins anew, and what its last token would say is no target."""
        ids = [w.ids.astype(np.int64) for w in pieces]
        said = [np.ones(len(w), dtype=bool) if self.prompts else w.said for w in pieces]
        return _tensors(
            inputs=[i[:-1] for i in ids],
            targets=[i[1:] for i in ids],
            weights=[s[1:].astype(np.float32) for s in said],
            segments=[np.full(len(i) - 1, n) for n, i in enumerate(ids)],
        )

    def plain(self, tokens: Tensor, documents: Tensor | None, generator: torch.Generator) -> Row:
        numbers = torch.zeros_like(tokens) if documents is None else documents.long()
        inputs, targets = tokens[0, :-1], tokens[0, 1:]
        return {
            "inputs": inputs, "targets": targets, "weights": torch.ones(len(inputs)), "segments": numbers[0, :-1],
        }  # fmt: skip

    def example(self, batch: Mapping[str, Tensor]) -> Example:
        """A row of one conversation needs no segments: what fills it up stands behind all that is said."""
        alone = self.causal and not bool((batch["segments"] > 0).any())
        segments = None if alone else batch["segments"]
        return Example(batch["inputs"], batch["targets"], batch["weights"], segments)


class SourceAndTarget:
    """What comes before an answer is the source, which is seen in both directions; the answer is the target.

    A conversation is as many pieces as it has answers, so that each answer is learned.  The decoder begins with the
    sign between documents, which stands in the row in place of the answer's last token.

    objective  shows plain text as source and target
    """

    unit, ahead, even = "answers", 0, False

    def __init__(self, eos: int, objective: Any) -> None:
        self.eos, self.objective = eos, objective
        self.fill: dict[str, float] = {
            "inputs": eos, "targets": eos, "weights": 0.0, "segments": PADDING,
            "source": eos, "source_segments": PADDING,
        }  # fmt: skip

    def pieces(self, written: Written) -> list[Written]:
        borders = np.flatnonzero(np.diff(written.said, prepend=False, append=False)).reshape(-1, 2)
        return [Written(written.ids[:end], np.arange(end) >= first) for first, end in borders.tolist()]

    def row(self, pieces: Sequence[Written]) -> Row:
        ids = [w.ids.astype(np.int64) for w in pieces]
        read = [i[~w.said] for i, w in zip(ids, pieces, strict=True)]
        said = [i[w.said] for i, w in zip(ids, pieces, strict=True)]
        return _tensors(
            inputs=[np.append(self.eos, s[:-1]) for s in said],
            targets=said,
            weights=[np.ones(len(s), dtype=np.float32) for s in said],
            segments=[np.full(len(s), n) for n, s in enumerate(said)],
            source=read,
            source_segments=[np.full(len(r), n) for n, r in enumerate(read)],
        )

    def plain(self, tokens: Tensor, documents: Tensor | None, generator: torch.Generator) -> Row:
        made: Example = self.objective(tokens, documents, generator)
        usual = {"segments": made.inputs, "source_segments": made.source}
        found = {name: getattr(made, name) for name in self.fill}
        found["weights"] = torch.ones(made.targets.shape) if made.weights is None else made.weights
        found |= {name: torch.zeros_like(x) for name, x in usual.items() if found[name] is None}
        return {name: x[0] for name, x in found.items()}

    def example(self, batch: Mapping[str, Tensor]) -> Example:
        held = {name: batch[name] for name in self.fill}
        if not any(bool(held[name].any()) for name in ("segments", "source_segments")):
            held |= {"segments": None, "source_segments": None}  # type: ignore[dict-item]
        return Example(**held)


def _tensors(**parts: Sequence[np.ndarray]) -> Row:
    return {name: torch.from_numpy(np.concatenate(arrays)) for name, arrays in parts.items()}


class Talks:
    """The conversations of a source, split by the hash of their first question, as pieces that fit into a row.

    written  the pieces of each split; held: the conversation that each of them is of; content: for the manifest
    """

    def __init__(
        self, setup: TaskContext, source: Any, tokenizer: Tokenizer, form: Template, reading: Reading, too_long: str
    ) -> None:
        self.setup, self.tokenizer, self.form, self.reading = setup, tokenizer, form, reading
        self.too_long = too_long
        self.content: dict[str, Any] = {"fingerprint": source.fingerprint()}
        self.held: dict[str, list[Conversation]] = {}
        self.written: dict[str, list[Written]] = {}
        every = list(source.conversations())
        for split in SPLITS:
            self._write(split, [c for c in every if self._split(c) == split])

    def _split(self, conversation: Conversation) -> str:
        """One question never stands on both sides."""
        if conversation.split:
            return conversation.split
        asked = next(m.text for m in conversation.messages if m.role == "user")
        return hash_split(hashlib.sha256(asked.encode()).digest(), self.setup.config["data"]["val_fraction"])

    def _write(self, split: str, conversations: Sequence[Conversation]) -> None:
        length, reading = self.setup.length, self.reading
        held, found, count, longest = list[Conversation](), list[Written](), Counter[str](), 0
        whole = write(self.tokenizer, self.form, [c.messages for c in conversations])
        pieces = [(c, p) for c, written in zip(conversations, whole, strict=True) for p in reading.pieces(written)]
        for conversation, piece in pieces:
            fits = truncate_to_length(piece, length, self.too_long, conversation.id, reading.ahead)
            count["cut"] += fits is not None and fits is not piece
            count["dropped"] += fits is None
            longest = max(longest, len(piece))
            if fits is not None:
                found.append(fits)
                held.append(conversation)
        self.held[split], self.written[split] = held, found
        self.content[split] = dict(count) | {reading.unit: len(found), "tokens": sum(map(len, found))}
        if not found:
            raise UserError(
                f"the {split} split is empty: {len(pieces)} {reading.unit} came, and {count['dropped']} of them do not "
                f"fit into {length} tokens, the longest has {longest}\n    try: "
                + (f"model.max_len={longest}" if count["dropped"] else "data.val_fraction=0.2")
            )
        if count["cut"] or count["dropped"]:
            log.warning(
                "%s: %d of %d %s lost their beginning, %d were left out: they are longer than %d tokens",
                split, count["cut"], len(pieces), reading.unit, count["dropped"], length,
            )  # fmt: skip
