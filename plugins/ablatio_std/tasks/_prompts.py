"""Prompts by number: passages of a text, or the questions of conversations."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ablatio.data.batches import Windows
from ablatio.data.chat import reading_notes, sign_id, write
from ablatio.data.corpus import Corpus
from ablatio.data.data_files import read_all
from ablatio.data.order import WindowOrder
from ablatio.data.splits import key_split, refuse_empty_split
from ablatio.errors import UserError
from ablatio.model.parameter_roles import named_generator
from ablatio.training.task_context import TaskContext

log = logging.getLogger("ablatio")


class Prompt(NamedTuple):
    """A prompt: its ids, the ids that follow it in the data, and the correct answer as text if the data has one."""

    ids: list[int]
    following: list[int]
    truth: str | None = None


class TextPrompts:
    """Prompt i is a passage of at most `length` tokens at a random place of the text, inside one document."""

    def __init__(self, corpus: Corpus, length: int, following: int, eos: int, seed: int) -> None:
        self.length, self.eos = length, eos
        size = length + following
        self.pools: dict[str, tuple[Windows, Any]] = {}
        for split, tokens in (("train", corpus.train), ("validation", corpus.validation)):
            if len(tokens) < size + 1:
                raise UserError(
                    f"the {split} text has {len(tokens)} tokens, too few for a prompt and its answer of {size} tokens\n"
                    "    try: task.prompt_tokens=8"
                )
            self.pools[split] = Windows(tokens, size), WindowOrder(len(tokens), size, seed)

    def __call__(self, numbers: Sequence[int], split: str = "train") -> list[Prompt]:
        windows, order = self.pools[split]
        rows = windows(order.starts(np.array(numbers))).tolist()
        return [self._prompt(row) for row in rows]

    def _prompt(self, row: list[int]) -> Prompt:
        """Keep the part of the passage from its last document boundary on, and at least one token."""
        head, tail = row[: self.length], row[self.length :]
        # Without the last token: a prompt that began with it would be the opening token alone.
        ends = [i for i, token in enumerate(head[:-1]) if token == self.eos]
        return Prompt(head[ends[-1] :] if ends else head, tail)


class ChatPrompts:
    """Prompt i is a conversation up to its last answer, which counts as correct; each epoch has its own order."""

    def __init__(self, setup: TaskContext, source: Any, room: int) -> None:
        self.tokenizer, form = setup.chat(source)
        self.stop, self.seed = sign_id(self.tokenizer, form.end), setup.seeds.data
        self.pools: dict[str, list[Prompt]] = {"train": [], "validation": []}
        every, fraction = read_all(source.conversations(), "conversations"), setup.config["data"]["val_fraction"]
        refuse_empty_split(source, every, fraction, "conversations", "first question")
        self.notes = reading_notes(source, form, every)
        prompts = write(self.tokenizer, form, [c.messages[:-1] for c in every], answering=True)
        truths = [c.messages[-1].content for c in every]
        answers = self.tokenizer.encode(truths)
        for c, prompt, truth, ids in zip(every, prompts, truths, answers, strict=True):
            found = Prompt(prompt.ids.tolist(), list(map(int, ids)), truth)
            self.pools[key_split(c, fraction)].append(found)
        self._check(source, room)

    def _check(self, source: Any, room: int) -> None:
        """Leave out prompts that do not fit next to an answer, with a warning: a cut question would be another one."""
        longest = max((len(p.ids) for pool in self.pools.values() for p in pool), default=0)
        whole = sum(map(len, self.pools.values()))
        self.pools = {split: [p for p in pool if len(p.ids) <= room] for split, pool in self.pools.items()}
        left = whole - sum(map(len, self.pools.values()))
        reason = (
            f"{left} of {whole} prompts are longer than the {room} tokens that model.max_len leaves beside an answer; "
            f"the longest has {longest}"
        )
        for split, pool in self.pools.items():
            if not pool:
                fix = f"model.max_len={longest + 64}" if left else "data.val_fraction=0.2"
                raise UserError(f"the {split} split has no prompt: {reason}\n    try: {fix}")
        if left:
            log.warning("%s: they are left out", reason)
        self.longest = max(len(p.ids) for p in self.pools["train"])
        self.content: dict[str, Any] = {"fingerprint": source.fingerprint(), "left_out": left}
        self.content |= self.notes
        self.content |= {split: len(pool) for split, pool in self.pools.items()}

    def __call__(self, numbers: Sequence[int], split: str = "train") -> list[Prompt]:
        pool = self.pools[split]
        return [pool[self._place(number, split, len(pool))] for number in numbers]

    def _place(self, number: int, split: str, size: int) -> int:
        epoch, at = divmod(number, size)
        # Made anew for each number: a prompt is a function of its number, whatever was asked before.
        generator = named_generator(self.seed, f"prompts/{split}/{epoch}")
        return int(torch.randperm(size, generator=generator)[at])
