"""What tasks on feedback share: answers to prompts as tokens, batches of them by number, what a model says of them."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablatio.data.chat import write
from ablatio.data.rows import ExampleOrder, PackedRows
from ablatio.data.splits import hash_split
from ablatio.data.types import Feedback, Ids, Message
from ablatio.errors import UserError
from ablatio.model.example import Example
from ablatio.model.language_model import LanguageModel
from ablatio.model.logps import Spoken, token_logps
from ablatio.tasks.setup import Setup

SPLITS = ("train", "validation")
log = logging.getLogger("ablatio")


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A prompt and one answer to it: `ids` from `first` on are the answer, its end sign included."""

    ids: Ids
    first: int

    @property
    def length(self) -> int:
        return len(self.ids) - self.first


@dataclass(frozen=True, slots=True)
class Judged:
    """One line of feedback: places of its answers in `AnswerSet.answers`, and how good they were found."""

    members: tuple[int, ...]
    scores: tuple[float, ...]
    elo: bool
    source: Feedback


@dataclass(slots=True)
class Answers:
    """N answers behind their prompts, filled up on the right.

    tokens (N, L); places, targets, mask (N, A): where the hidden states that say the answer stand, what they say, and
    which are real; index (N,): places in the AnswerSet; more: what a task adds, by name
    """

    tokens: Tensor
    places: Tensor
    targets: Tensor
    mask: Tensor
    index: Tensor
    more: dict[str, Tensor]

    def to(self, device: torch.device | str) -> "Answers":
        held = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "more"}
        return replace(self, **held, more={name: t.to(device) for name, t in self.more.items()})

    def hidden(self, model: LanguageModel) -> Tensor:
        """(N, L, D); what fills a row up stands behind all that is looked at."""
        return model.hidden(Example(self.tokens, self.tokens))

    def spoken(self, model: LanguageModel, collision: bool = False) -> Spoken:
        """Of each token of each answer: (N, A), 0 behind its end."""
        states = self.hidden(model)
        picked = states.gather(1, self.places[:, :, None].expand(-1, -1, states.shape[-1]))
        found = token_logps(model, picked, self.targets, collision=collision)
        return Spoken(found.logps * self.mask, None if found.collision is None else found.collision * self.mask)

    def last(self, model: LanguageModel) -> Tensor:
        """(N, D): the state at the end of each answer."""
        ends = (self.places[:, :1] + self.mask.sum(1, keepdim=True).long()).clamp(max=self.tokens.shape[1] - 1)
        states = self.hidden(model)
        return states.gather(1, ends[:, :, None].expand(-1, -1, states.shape[-1]))[:, 0]


class AnswerSet:
    """The feedback of a source: each answer written behind its prompt, split by the hash of the prompt."""

    def __init__(self, setup: Setup, too_long: str) -> None:
        self.setup, self.too_long = setup, too_long
        source: Any = setup.source()
        self.tokenizer, self.form = setup.chat(source)
        self.answers: list[Answered] = []
        self.judged: dict[str, list[Judged]] = {split: [] for split in SPLITS}
        self.content: dict[str, Any] = {"fingerprint": source.fingerprint()}
        self._read(list(source.feedback()))

    def _read(self, lines: Sequence[Feedback]) -> None:
        prompts = write(self.tokenizer, self.form, [line.prompt for line in lines], answering=True)
        whole = [(*line.prompt, Message("assistant", answer)) for line in lines for answer in line.answers]
        everything = write(self.tokenizer, self.form, whole)
        written = iter(everything)
        lost = Counter[str]()
        for line, prompt in zip(lines, prompts, strict=True):
            _refuse_contradictions(line)
            found = [next(written) for _ in line.answers]
            first = [len(prompt) + int(w.said[len(prompt) :].argmax()) for w in found]
            ends = [int(np.flatnonzero(w.said)[-1]) + 1 for w in found]
            answers = [Answered(w.ids[:end], at) for w, at, end in zip(found, first, ends, strict=True)]
            self._add(line, answers, lost)
        longest = max((len(w) for w in everything), default=0)
        for split, judged in self.judged.items():
            self.content[split] = {"lines": len(judged), "answers": sum(len(j.members) for j in judged)}
            if not judged:
                raise UserError(
                    f"the {split} split is empty: {len(lines)} lines of feedback came, {lost['dropped']} do not fit "
                    f"into {self.setup.length} tokens, the longest has {longest}\n    try: "
                    + (f"model.max_len={longest}" if lost["dropped"] else "data.val_fraction=0.2")
                )
        self.content |= {"cut": lost["cut"], "dropped": lost["dropped"]}
        if lost:
            log.warning(
                "%d of %d prompts lost their beginning, %d were left out: with their answers they are longer than %d "
                "tokens", lost["cut"], len(lines), lost["dropped"], self.setup.length,
            )  # fmt: skip

    def _add(self, line: Feedback, answers: list[Answered], lost: Counter[str]) -> None:
        """Answers to one prompt lose the same beginning of it, so that they stay comparable."""
        over = max(len(a.ids) for a in answers) - self.setup.length - 1
        if over > 0 and self.too_long == "refuse":
            raise UserError(
                f"{line.id}: {over + self.setup.length + 1} tokens came, and a row takes {self.setup.length} + 1\n"
                f"    try: model.max_len={over + self.setup.length}, or task.too_long=cut"
            )
        if over > 0:
            if self.too_long == "drop" or min(a.first for a in answers) - over < 2:
                lost["dropped"] += 1
                return
            lost["cut"] += 1
            answers = [Answered(np.append(a.ids[:1], a.ids[1 + over :]), a.first - over) for a in answers]
        members = tuple(range(len(self.answers), len(self.answers) + len(answers)))
        self.answers += answers
        self.judged[self._split(line)].append(Judged(members, line.scores, line.elo, line))

    def _split(self, line: Feedback) -> str:
        if line.split:
            return line.split
        asked = "\n\n".join(message.text for message in line.prompt)
        return hash_split(hashlib.sha256(asked.encode()).digest(), self.setup.config["data"]["val_fraction"])

    def digest(self) -> str:
        """Of all tokens, as they are now."""
        total = hashlib.sha256()
        for answer in self.answers:
            total.update(f"{answer.first}/".encode() + answer.ids.astype(np.int64).tobytes())
        return total.hexdigest()

    def batch(self, index: Sequence[int]) -> dict[str, Tensor]:
        """The answers at these places; `filled` makes an example of it."""
        held = [self.answers[i] for i in index]
        length, longest = max(len(a.ids) for a in held), max(a.length for a in held)
        tokens = np.full((len(held), length), self.tokenizer.eos, dtype=np.int64)
        places, targets = (np.zeros((len(held), longest), dtype=np.int64) for _ in "ab")
        mask = np.zeros((len(held), longest), dtype=np.float32)
        for i, answer in enumerate(held):
            n = answer.length
            tokens[i, : len(answer.ids)] = answer.ids
            places[i, :n] = np.arange(answer.first - 1, answer.first - 1 + n)
            targets[i, :n], mask[i, :n] = answer.ids[answer.first :], 1
        made = {"tokens": tokens, "places": places, "targets": targets, "mask": mask, "index": np.array(index)}
        return {name: torch.from_numpy(values) for name, values in made.items()}


def _refuse_contradictions(line: Feedback) -> None:
    for i, a in enumerate(line.answers):
        for j in range(i):
            if a == line.answers[j] and line.scores[i] != line.scores[j]:
                raise UserError(
                    f"{line.id}: the better answer and the worse one are the same: {a[:60]!r}\n"
                    "    try: ablatio show source=feedback, for what a line may hold"
                )


def example_of(batch: Mapping[str, Tensor]) -> Answers:
    own = {f.name for f in fields(Answers)}
    more = {name: value for name, value in batch.items() if name not in own and name != "number"}
    return Answers(*(batch[name] for name in ("tokens", "places", "targets", "mask", "index")), more)


class Units:
    """Training batches by number: each has as many units (pairs, rankings, answers) as `train.batch_size` says."""

    def __init__(self, setup: Setup, count: int, make: Any) -> None:
        self.setup, self.make = setup, make
        self.rows = PackedRows([1] * count, ExampleOrder([""] * count, setup.seeds.data), None)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        first, count = self.setup.plan.batch(number)
        units = [self.rows.row(g)[0] for g in range(first, first + count)]
        return {**self.make(units), "number": torch.tensor(number)}


def groups_of(count: int, at_once: int) -> Iterable[list[int]]:
    """0 ... count - 1, some at a time."""
    return [list(range(i, min(i + at_once, count))) for i in range(0, count, at_once)]
