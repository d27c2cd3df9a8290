"""Shared by tasks on preference feedback: tokenized answers, batches by number, log-probabilities of answers."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablatio.data.chat import reading_notes, write
from ablatio.data.data_files import read_all
from ablatio.data.packing import ExampleOrder, PackedRows
from ablatio.data.splits import key_split, refuse_empty_split
from ablatio.data.types import Feedback, Ids, Message
from ablatio.errors import UserError
from ablatio.model.decoding.shared_prefix import answer_states
from ablatio.model.language_model import LanguageModel
from ablatio.model.ranks import Ranks, ranks
from ablatio.model.rl.token_logprobs import TokenLogProbs, token_logps
from ablatio.model.transfer import to_device
from ablatio.training.task_context import TaskContext

SPLITS = ("train", "validation")
log = logging.getLogger("ablatio")


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedAnswer:
    """A prompt and one answer to it; `ids[first:]` is the answer, with its end-of-answer token."""

    ids: Ids
    first: int

    @property
    def length(self) -> int:
        return len(self.ids) - self.first

    @property
    def start(self) -> Ids:
        """The prompt without its last token, which is the first input that predicts a token of the answer."""
        return self.ids[: self.first - 1]


@dataclass(frozen=True, slots=True)
class RatedAnswers:
    """One line of feedback: indices of its answers in `AnswerSet.answers`, with their scores; `elo`: Elo ratings."""

    members: tuple[int, ...]
    scores: tuple[float, ...]
    elo: bool
    source: Feedback


@dataclass(slots=True)
class Answers:
    """Batch of N answers to G distinct prompts.

    prompts  (G, P) prompts without their last token, padded on the left
    lengths  (G,) number of tokens of each row of `prompts`
    parents  (N,) row of `prompts` that each answer belongs to
    tokens   (N, A + 1) last token of the prompt, then the answer, padded on the right
    mask     (N, A) 1 on the tokens of the answer, 0 in padding
    kept     (number of answer tokens,) their places in N * A
    index    (N,) indices in the AnswerSet
    longest  tokens of the longest prompt together with its answer
    shortest  tokens of the shortest row of `prompts`
    more     further tensors that a task adds, by name
    """

    prompts: Tensor
    lengths: Tensor
    parents: Tensor
    tokens: Tensor
    mask: Tensor
    kept: Tensor
    index: Tensor
    longest: int
    shortest: int
    more: dict[str, Tensor]

    @property
    def targets(self) -> Tensor:
        """The answers: (N, A)."""
        return self.tokens[:, 1:]

    def to(self, device: torch.device | str) -> "Answers":
        """The same batch on another device."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: to_device(value, device) for name, value in held.items() if isinstance(value, Tensor)}
        return replace(self, **moved, more={name: to_device(t, device) for name, t in self.more.items()})

    def rows(self, ranks: Ranks) -> "Answers":
        """The batch itself: `UnitBatches` has cut it."""
        return self

    def token_logprobs(self, model: LanguageModel, collision: bool = False) -> TokenLogProbs:
        """Log-probability in nats of each answer token: (N, A), 0 in padding; `collision`: also log sum_v p(v)^2."""
        states, kept = self._states(model, self.tokens[:, :-1], self.longest - 1), self.kept
        # Padding is dropped here, so that no time is spent on its logits over the vocabulary.
        answer_tokens = states.flatten(0, 1).index_select(0, kept)  # (number of answer tokens, D)
        found = token_logps(model, answer_tokens, self.targets.flatten()[kept], collision=collision)

        def unpacked(values: Tensor) -> Tensor:
            return values.new_zeros(self.mask.numel()).index_copy(0, kept, values).view_as(self.mask)

        return TokenLogProbs(unpacked(found.logps), None if found.collision is None else unpacked(found.collision))

    def states(self, model: LanguageModel) -> Tensor:
        """Hidden states at the last token of the prompt and at all tokens of the answer: (N, A + 1, D)."""
        return self._states(model, self.tokens, self.longest)

    def _states(self, model: LanguageModel, read: Tensor, longest: int) -> Tensor:
        prompts = self.prompts, self.lengths, self.parents
        return answer_states(model, *prompts, read, longest, shortest=self.shortest)

    def last_states(self, model: LanguageModel) -> Tensor:
        """Hidden state at the last token of each answer: (N, D)."""
        states = self.states(model)
        return states[torch.arange(len(states), device=states.device), self.mask.sum(1).long()]


class AnswerSet:
    """The feedback of a source, tokenized: each answer after its prompt, split by the hash of the prompt.

    ahead: number of last tokens of an answer that are not inputs.  1 for a task that needs log-probabilities, where the
    last token is only a target; 0 for one that reads the hidden state at the last token
    """

    def __init__(self, setup: TaskContext, too_long: str, ahead: int = 1) -> None:
        self.setup, self.too_long, self.room = setup, too_long, setup.length + ahead
        source: Any = setup.source()
        self.tokenizer, self.form = setup.chat(source)
        self.answers: list[TokenizedAnswer] = []
        self.judged: dict[str, list[RatedAnswers]] = {split: [] for split in SPLITS}
        self.content: dict[str, Any] = {"fingerprint": source.fingerprint()}
        lines = read_all(source.feedback(), "lines of feedback")
        refuse_empty_split(source, lines, setup.config["data"]["val_fraction"], "lines of feedback", "prompt")
        self.content |= reading_notes(source, self.form, lines)
        self._read(lines)

    def _read(self, lines: Sequence[Feedback]) -> None:
        prompts = write(self.tokenizer, self.form, [line.prompt for line in lines], answering=True)
        whole = [(*line.prompt, Message("assistant", answer)) for line in lines for answer in line.answers]
        everything = write(self.tokenizer, self.form, whole)
        written = iter(everything)
        lost = Counter[str]()  # how many lines were cut or dropped because they are too long
        for line, prompt in zip(lines, prompts, strict=True):
            _refuse_contradictions(line)
            found = [next(written) for _ in line.answers]
            # The template may write text between prompt and answer: the answer begins at its first scored token.
            first = [len(prompt) + int(w.said[len(prompt) :].argmax()) for w in found]
            ends = [int(np.flatnonzero(w.said)[-1]) + 1 for w in found]
            answers = [TokenizedAnswer(w.ids[:end], at) for w, at, end in zip(found, first, ends, strict=True)]
            self._add(line, answers, lost)
        longest = max((len(w) for w in everything), default=0)
        for split, judged in self.judged.items():
            self.content[split] = {"lines": len(judged), "answers": sum(len(j.members) for j in judged)}
            if not judged:
                raise UserError(
                    f"the {split} split is empty: of {len(lines)} lines of feedback, {lost['dropped']} do not fit "
                    f"into {self.setup.length} tokens, the longest has {longest}\n    try: "
                    + (f"model.max_len={longest}" if lost["dropped"] else "data.val_fraction=0.2")
                )
        self.content |= {"cut": lost["cut"], "dropped": lost["dropped"]}
        if lost:
            log.warning(
                "%d of %d prompts were cut at their beginning and %d left out: with their answers they are longer than "
                "%d tokens", lost["cut"], len(lines), lost["dropped"], self.room,
            )  # fmt: skip

    def _add(self, line: Feedback, answers: list[TokenizedAnswer], lost: Counter[str]) -> None:
        """Add a line.  A prompt that is too long is cut at the same place for all its answers: they stay comparable."""
        over = max(len(a.ids) for a in answers) - self.room
        if over > 0 and self.too_long == "refuse":
            raise UserError(
                f"{line.id}: the prompt with its answer has {over + self.room} tokens, and at most {self.room} fit\n"
                f"    try: model.max_len={over + self.setup.length}, or task.too_long=cut"
            )
        if over > 0:
            # Two tokens of a prompt at least: the one that opens a document, and one that predicts the answer.
            if self.too_long == "drop" or min(a.first for a in answers) - over < 2:
                lost["dropped"] += 1
                return
            lost["cut"] += 1
            # The first token stays: it opens a document, as in training.
            answers = [TokenizedAnswer(np.append(a.ids[:1], a.ids[1 + over :]), a.first - over) for a in answers]
        members = tuple(range(len(self.answers), len(self.answers) + len(answers)))
        self.answers += answers
        self.judged[key_split(line, self.setup.config["data"]["val_fraction"])].append(
            RatedAnswers(members, line.scores, line.elo, line)
        )

    def digest(self) -> str:
        """Hash of all tokens in their present state (a task may replace answers)."""
        total = hashlib.sha256()
        for answer in self.answers:
            total.update(f"{answer.first}/".encode() + answer.ids.astype(np.int64).tobytes())
        return total.hexdigest()

    def arranged(self, index: Iterable[int]) -> list[int]:
        """The same indices, sorted: answers to one prompt adjacent, prompts of similar length near one another.

        Batches made in this order encode each prompt once and need little padding.
        """
        groups: dict[bytes, list[int]] = {}
        for i in index:
            # By the prompt without its last token, which is what a batch encodes once.
            groups.setdefault(self.answers[i].start.tobytes(), []).append(i)
        lengths = {start: max(len(self.answers[i].ids) for i in places) for start, places in groups.items()}
        # The prompt itself breaks ties of the length, so that the order does not depend on that of a dictionary.
        return [i for start in sorted(groups, key=lambda s: (lengths[s], s)) for i in groups[start]]

    def batch(self, index: Sequence[int]) -> dict[str, Tensor]:
        """Batch of the answers at these indices, as tensors; `example_of` turns it into Answers."""
        held = [self.answers[i] for i in index]
        prompts = {a.start.tobytes(): a.start for a in held}
        parents = {start: i for i, start in enumerate(prompts)}
        lengths, most = [len(p) for p in prompts.values()], max(a.length for a in held)
        # Padded on the left: all prompts end where their answers begin.
        starts = np.full((len(prompts), max(lengths)), self.tokenizer.eos, dtype=np.int64)
        for row, prompt in zip(starts, prompts.values(), strict=True):
            row[len(row) - len(prompt) :] = prompt
        tokens = np.full((len(held), most + 1), self.tokenizer.eos, dtype=np.int64)
        mask = np.zeros((len(held), most), dtype=np.float32)
        for i, answer in enumerate(held):
            tokens[i, : answer.length + 1], mask[i, : answer.length] = answer.ids[answer.first - 1 :], 1
        made = {
            "prompts": starts,
            "lengths": np.array(lengths),
            "parents": np.array([parents[a.start.tobytes()] for a in held]),
            "tokens": tokens,
            "mask": mask,
            "kept": mask.ravel().nonzero()[0],
            "index": np.array(index),
            "longest": np.array(max(len(a.ids) for a in held)),
            "shortest": np.array(min(lengths)),
        }
        return {name: torch.from_numpy(values) for name, values in made.items()}


def _refuse_contradictions(line: Feedback) -> None:
    """Raise UserError if a line contains the same answer twice with different scores."""
    for i, a in enumerate(line.answers):
        for j in range(i):
            if a == line.answers[j] and line.scores[i] != line.scores[j]:
                raise UserError(
                    f"{line.id}: the better answer and the worse one are the same: {a[:60]!r}\n"
                    "    try: ablatio show source=feedback, for the layouts of a line"
                )


def example_of(batch: Mapping[str, Tensor]) -> Answers:
    """Answers from a batch of `AnswerSet.batch`; tensors that a task added are put into `more`."""
    own = [f.name for f in fields(Answers) if f.type is Tensor]
    sizes = ("longest", "shortest")
    more = {name: value for name, value in batch.items() if name not in (*own, *sizes, "number")}
    return Answers(**{name: batch[name] for name in own}, **{name: int(batch[name]) for name in sizes}, more=more)


class UnitBatches:
    """Training batches by number, each of `train.batch_size` units (pairs, rankings or answers), made by `make`.

    With several ranks a batch has this rank's units.
    """

    def __init__(self, setup: TaskContext, count: int, make: Any) -> None:
        self.setup, self.make, self.own = setup, make, ranks()
        # Each unit counts 1 and nothing is packed: the order of an epoch and its seeds are those of other tasks.
        self.rows = PackedRows([1] * count, ExampleOrder([""] * count, setup.seeds.data), None)

    @property
    def epoch_rows(self) -> int:
        return self.rows.epoch_rows

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        first, count = self.setup.plan.batch(number)
        own = self.own.rows(count)
        units = [self.rows.row(g)[0] for g in range(first + own.start, first + own.stop)]
        return {**self.make(units), "number": torch.tensor(number)}


def chunks(count: int, at_once: int) -> Iterable[list[int]]:
    """Split 0 ... count - 1 into consecutive lists of at most `at_once` numbers."""
    return [list(range(i, min(i + at_once, count))) for i in range(0, count, at_once)]
