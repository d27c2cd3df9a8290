"""Tokenized conversations and their rows in a batch: as one text, or as source and target."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from ablatio.data.chat import Template, Written, reading_notes, truncate_to_length, write
from ablatio.data.data_files import read_all
from ablatio.data.splits import key_split, refuse_empty_split
from ablatio.data.types import Conversation, Tokenizer
from ablatio.errors import UserError
from ablatio.model.example import PADDING, Example
from ablatio.training.task_context import TaskContext

SPLITS = ("train", "validation")
Row = dict[str, Tensor]
log = logging.getLogger("ablatio")


class ConversationFormat(Protocol):
    """How conversations become the rows of a batch.

    A piece is the part of a conversation that one row entry holds: the whole conversation, or one answer.

    unit   name of a piece in messages
    ahead  number of tokens of a piece that are targets only and take no place in a row
    fill   padding value of each tensor of a row, by name
    even   True if packed rows are all padded to the same length, which avoids recompilation
    """

    unit: ClassVar[str]
    ahead: ClassVar[int]
    fill: dict[str, float]
    even: ClassVar[bool]

    def pieces(self, written: Written) -> list[Written]:
        """The pieces of a conversation that have a loss."""
        ...

    def row(self, pieces: Sequence[Written]) -> Row: ...

    def plain(self, tokens: Tensor, documents: Tensor | None, generator: torch.Generator) -> Row:
        """A row of plain text (1, T + 1), as in pre-training."""
        ...

    def example(self, batch: Mapping[str, Tensor]) -> Example: ...


class TextFormat:
    """For a decoder: a conversation is one text; the loss is on the tokens of the assistant.

    prompts  True if the loss is on the other tokens too
    causal   True if no token attends to later ones
    """

    unit, ahead, even = "conversations", 1, True

    def __init__(self, eos: int, *, prompts: bool, causal: bool) -> None:
        self.prompts, self.causal = prompts, causal
        self.fill: dict[str, float] = {"inputs": eos, "targets": eos, "weights": 0.0, "segments": PADDING}

    def pieces(self, written: Written) -> list[Written]:
        return [written] if self.prompts or written.loss_weights.any() else []

    def row(self, pieces: Sequence[Written]) -> Row:
        """Pieces one after the other, as separate documents; the last token of a piece is only a target."""
        ids = [w.ids.astype(np.int64) for w in pieces]
        # With the loss on prompts their tokens weigh 1, and answers keep the weights of the data.
        scored = [np.where(w.said, w.loss_weights, 1.0) if self.prompts else w.loss_weights for w in pieces]
        return _tensors(
            inputs=[i[:-1] for i in ids],
            targets=[i[1:] for i in ids],
            weights=[s[1:].astype(np.float32) for s in scored],
            segments=[np.full(len(i) - 1, n) for n, i in enumerate(ids)],
        )

    def plain(self, tokens: Tensor, documents: Tensor | None, generator: torch.Generator) -> Row:
        numbers = torch.zeros_like(tokens) if documents is None else documents.long()
        inputs, targets = tokens[0, :-1], tokens[0, 1:]
        return {
            "inputs": inputs, "targets": targets, "weights": torch.ones(len(inputs)), "segments": numbers[0, :-1],
        }  # fmt: skip

    def example(self, batch: Mapping[str, Tensor]) -> Example:
        """Make the example; causal rows of one conversation need no segments, as padding follows every target."""
        alone = self.causal and not bool((batch["segments"] > 0).any())
        segments = None if alone else batch["segments"]
        return Example(batch["inputs"], batch["targets"], batch["weights"], segments)


class SourceTargetFormat:
    """For models with a source: the text before an answer is the source, the answer is the target.

    The source is read in both directions.  Each answer of a conversation is a piece of its own, so that the loss covers
    all of them.  The decoder's first input is the end-of-document token; the answer's last token is only a target.

    objective  makes source and target out of plain text
    """

    unit, ahead, even = "answers", 0, False

    def __init__(self, eos: int, objective: Any) -> None:
        self.eos, self.objective = eos, objective
        self.fill: dict[str, float] = {
            "inputs": eos, "targets": eos, "weights": 0.0, "segments": PADDING,
            "source": eos, "source_segments": PADDING,
        }  # fmt: skip

    def pieces(self, written: Written) -> list[Written]:
        # Padded with False on both sides, so that starts and ends come in pairs.
        borders = np.flatnonzero(np.diff(written.said, prepend=False, append=False)).reshape(-1, 2)
        weights = written.loss_weights
        return [
            Written(written.ids[:end], (here := np.arange(end) >= first), weights[:end] * here)
            for first, end in borders.tolist()
            if weights[first:end].any()
        ]

    def row(self, pieces: Sequence[Written]) -> Row:
        ids = [w.ids.astype(np.int64) for w in pieces]
        sources = [i[~w.said] for i, w in zip(ids, pieces, strict=True)]
        targets = [i[w.said] for i, w in zip(ids, pieces, strict=True)]
        return _tensors(
            inputs=[np.append(self.eos, t[:-1]) for t in targets],
            targets=targets,
            weights=[w.loss_weights[w.said] for w in pieces],
            segments=[np.full(len(t), n) for n, t in enumerate(targets)],
            source=sources,
            source_segments=[np.full(len(s), n) for n, s in enumerate(sources)],
        )

    def plain(self, tokens: Tensor, documents: Tensor | None, generator: torch.Generator) -> Row:
        made: Example = self.objective(tokens, documents, generator)
        # Rows of a batch must have the same tensors: what the objective leaves out is filled in with its meaning.
        shaped_as = {"segments": made.inputs, "source_segments": made.source}
        found = {name: getattr(made, name) for name in self.fill}
        found["weights"] = torch.ones(made.targets.shape) if made.weights is None else made.weights
        found |= {name: torch.zeros_like(x) for name, x in shaped_as.items() if found[name] is None}
        return {name: x[0] for name, x in found.items()}

    def example(self, batch: Mapping[str, Tensor]) -> Example:
        held = {name: batch[name] for name in self.fill}
        if not any(bool(held[name].any()) for name in ("segments", "source_segments")):
            held |= {"segments": None, "source_segments": None}  # type: ignore[dict-item]
        return Example(**held)


def _tensors(**parts: Sequence[np.ndarray]) -> Row:
    return {name: torch.from_numpy(np.concatenate(arrays)) for name, arrays in parts.items()}


class TokenizedConversations:
    """The conversations of a source, split by the hash of their first question, as pieces that fit into a row.

    written  pieces of each split
    held     conversation of each piece
    content  description for the manifest
    """

    def __init__(
        self,
        setup: TaskContext,
        source: Any,
        tokenizer: Tokenizer,
        form: Template,
        reading: ConversationFormat,
        too_long: str,
    ) -> None:
        self.setup, self.tokenizer, self.form, self.reading = setup, tokenizer, form, reading
        self.too_long = too_long
        self.content: dict[str, Any] = {"fingerprint": source.fingerprint()}
        self.held: dict[str, list[Conversation]] = {}
        self.written: dict[str, list[Written]] = {}
        every = read_all(source.conversations(), "conversations")
        fraction = setup.config["data"]["val_fraction"]
        refuse_empty_split(source, every, fraction, "conversations", "first question")
        self.content |= reading_notes(source, form, every)
        for split in SPLITS:
            self._write(split, [c for c in every if key_split(c, fraction) == split])

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
        unscored = sum(not reading.pieces(written) for written in whole)
        if unscored:
            self.content[split]["without_loss"] = unscored
            log.warning("%s: %d conversations are left out: all their turns have weight 0", split, unscored)
        if not pieces:
            raise UserError(
                f"the {split} split is empty: all turns of its {len(conversations)} conversations have weight 0\n"
                "    try: data.val_fraction=0.2, or a positive weight for an answer"
            )
        if not found:
            raise UserError(
                f"the {split} split is empty: of {len(pieces)} {reading.unit}, {count['dropped']} do not fit into "
                f"{length} tokens, the longest has {longest}\n    try: "
                + (f"model.max_len={longest}" if count["dropped"] else "data.val_fraction=0.2")
            )
        if count["cut"] or count["dropped"]:
            log.warning(
                "%s: %d of %d %s were cut at their beginning and %d left out: they are longer than %d tokens",
                split, count["cut"], len(pieces), reading.unit, count["dropped"], length,
            )  # fmt: skip
