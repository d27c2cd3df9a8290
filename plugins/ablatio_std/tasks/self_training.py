"""Self-training: a model writes answers to the questions of a source, and is trained on those that a reward accepts."""

import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ablatio import Fraction, OptionOf, Positive, rule
from ablatio.data.chat import sign_id, write
from ablatio.data.packing import ExampleOrder, PackedRows
from ablatio.data.types import Conversation, Message, Tokenizer
from ablatio.errors import UserError
from ablatio.model.decoding.rollout import sample_rollouts, streams
from ablatio.model.language_model import LanguageModel
from ablatio.model.rl.answers import Answer, judged
from ablatio.registry.kinds import tasks
from ablatio.training.task_context import TaskContext

from ._rollouts import Reward, reward_of
from .sft import SupervisedFineTuning

log = logging.getLogger("ablatio")
FIRST_HINTED = 1000  # number of the random streams of hinted answers; those before are of answers and revisions


class AnswerWriter:
    """Writes answers of a model to conversations, and scores them by a reward.

    revise  requests that follow the answer, one after the other; the last reply is the answer then
    """

    def __init__(
        self,
        setup: TaskContext,
        tokenizer: Tokenizer,
        form: Any,
        reward: tuple[Reward, str],
        revise: Sequence[str],
        answer_tokens: int,
        temperature: float,
    ) -> None:
        self.setup, self.tokenizer, self.form, self.reward = setup, tokenizer, form, reward
        self.revise, self.answer_tokens, self.temperature = revise, answer_tokens, temperature
        self.stop = sign_id(tokenizer, form.end)
        self.room = int(setup.config["model"]["max_len"]) - answer_tokens

    def fits(self, asked: Sequence[Message]) -> bool:
        """True if a prompt leaves room for an answer."""
        return len(write(self.tokenizer, self.form, [asked], answering=True)[0]) <= self.room

    def write(
        self, model: LanguageModel, asked: Sequence[Sequence[Message]], stream: int | None, group: int = 1
    ) -> list[list[str]]:
        """Return `group` answers to each prompt, sampled with the random streams number `stream`; None: greedy."""
        rows = [w.ids.tolist() for w in write(self.tokenizer, self.form, asked, answering=True)]
        rows = [row[:1] + row[1 + max(0, len(row) - self.room) :] for row in rows]  # revisions may be too long
        seed, count = self.setup.seeds.data, len(rows) * group
        draws = None if stream is None else streams(seed, stream, count, self.answer_tokens)
        rollout = sample_rollouts(
            model, rows, draws, stop=self.stop, new_tokens=self.answer_tokens, group=group, temperature=self.temperature
        )
        texts = [self.decode(rollout.answer(row, self.stop)) for row in range(count)]
        return [texts[i : i + group] for i in range(0, count, group)]

    def revised(
        self, model: LanguageModel, asked: Sequence[Sequence[Message]], stream: int | None, group: int = 1
    ) -> list[list[str]]:
        """Return the answers to each prompt after all requests for revisions."""
        found = self.write(model, asked, stream, group)
        # A template cannot write an empty turn.
        flat = [[*prompt, Message("assistant", text or " ")] for prompt, texts in zip(asked, found, strict=True)
                for text in texts]  # fmt: skip
        # Each revision has random streams of its own.
        for number, request in enumerate(self.revise, 1):
            turns = [[*prompt, Message("user", request)] for prompt in flat]
            replies = self.write(model, turns, None if stream is None else stream + number)
            flat = [[*prompt, Message("assistant", text or " ")] for prompt, [text] in zip(turns, replies, strict=True)]
        texts = [turns[-1].text.strip() for turns in flat]
        return [texts[i : i + group] for i in range(0, len(texts), group)]

    def scores(self, asked: Sequence[Conversation], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return the reward of each answer; conversations: their last turn is the correct answer."""
        answers = [self._answer(c, text) for c, row in zip(asked, texts, strict=True) for text in row]
        flat = iter(judged(*self.reward, answers)[0].tolist()) if answers else iter(())
        return [[next(flat) for _ in row] for row in texts]

    def _answer(self, asked: Conversation, text: str) -> Answer:
        [prompt] = write(self.tokenizer, self.form, [asked.messages[:-1]], answering=True)
        ids, truth = prompt.ids.tolist(), asked.messages[-1].content
        more = {"following": list(map(int, self.tokenizer.encode([truth])[0]))}
        own = list(map(int, self.tokenizer.encode([text])[0]))
        # An empty answer is its end alone, as rewards of length count tokens.
        return Answer(self.decode(ids), text, ids, own or [self.stop], truth, more)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without those of special tokens beyond the tokenizer's."""
        return self.tokenizer.decode([i for i in ids if i < self.tokenizer.vocab_size])


@tasks.register("self_training", paper="arXiv:2203.14465")
class SelfTraining(SupervisedFineTuning):
    """sum -log p(answer | question) over answers that a model has written and the reward has accepted.

    Before the first step the writer, by default this model at its start, gives `answers` answers to each training
    question; of those with a reward above `least` the best is trained on, as the answer that it would give.  A question
    without such an answer is asked again with `hint`, in which {answer} is replaced by the correct answer, and trained
    on without it (STaR's rationalization).  `revise` are requests that follow each answer, such as a critique and a
    revision by a constitution (arXiv:2212.08073); then the last reply is the answer.

    `reward` scores greedy answers to held-out questions; `loss` and `accuracy` are of the source's own answers.

    Raises:
        UserError: no answer is accepted, or the writer has other token ids.
    """

    accepts, scores, main, better = "conversations", ("reward", "loss", "accuracy"), "reward", "higher"
    needs = ("reward=length",)

    def __init__(
        self,
        setup: TaskContext,
        *,
        writer: Annotated[str | None, "run folder of the model that writes; null: this model at its start"] = None,
        answers: Annotated[int, Positive, "answers written to each question"] = 1,
        least: Annotated[float, "answers with a larger reward are accepted"] = 0.0,
        hint: Annotated[str, "added to questions without an accepted answer; {answer}: the correct one"] = "",
        revise: Annotated[tuple[str, ...], "requests that follow an answer; the last reply is the answer"] = (),
        answer_tokens: Annotated[int, Positive, "largest number of tokens of an answer"] = 64,
        temperature: Annotated[float, Positive, "sampling temperature of the answers"] = 1.0,
        held_out: Annotated[int, Positive, "number of held-out questions that are scored"] = 64,
        packing: Annotated[bool, "pack several conversations into a row"] = True,
        too_long: Annotated[
            Literal["cut", "drop", "refuse"],
            "a conversation longer than a row: cut its beginning, leave it out, or stop the run",
        ] = "cut",
        text: Annotated[str, OptionOf("source"), "source of the plain text that is mixed in"] = "sotu",
        share: Annotated[float, Fraction, "share of the rows that are plain text"] = 0.0,
    ) -> None:
        super().__init__(setup, packing=packing, too_long=too_long, text=text, share=share)
        self.writer_path, self.count, self.least, self.hint, self.asked = writer, answers, least, hint, held_out
        name = str(setup.config["reward"]["name"])
        reward = reward_of(setup, name, self.tokenizer), name
        self.writer = AnswerWriter(setup, self.tokenizer, self.form, reward, revise, answer_tokens, temperature)
        self.questions = {split: self._questions(split) for split in self.held}

    def _questions(self, split: str) -> list[Conversation]:
        """Conversations of a split whose prompts leave room for an answer, each once."""
        found = [c for c in dict.fromkeys(self.held[split]) if self.writer.fits(c.messages[:-1])]
        if not found:
            room = self.writer.room
            raise UserError(
                f"no question of the {split} split fits into the {room} tokens that model.max_len leaves beside an "
                f"answer\n    try: task.answer_tokens={max(1, self.writer.answer_tokens // 2)}"
            )
        return found

    def prepare(self, model: LanguageModel) -> None:
        """Write the answers and put those that are accepted in place of the training conversations."""
        mode = model.training
        accepted, notes = self._written(self._writing_model(model).eval())
        model.train(mode)
        if not accepted:
            raise UserError(
                f"no answer of {notes['questions']:g} questions has a reward above task.least={self.least:g}; the best "
                f"has {notes['best']:.3g}\n    try: more training of the model that writes, or task.least="
                f"{notes['best'] - 1e-3:.3g}"
            )
        log.info("%s", ", ".join(f"{value:g} {name}" for name, value in notes.items()))
        self.content |= {"written": notes}
        conversations = [replace(c, messages=(*c.messages[:-1], Message("assistant", text))) for c, text in accepted]
        whole = write(self.tokenizer, self.form, [c.messages for c in conversations])
        pieces = [(c, piece) for c, w in zip(conversations, whole, strict=True) for piece in self.reading.pieces(w)]
        # Left out, not cut: a cut question is not the one that was answered.
        kept = [(c, piece) for c, piece in pieces if len(piece) <= self.setup.length + self.reading.ahead]
        self.held["train"], self.written["train"] = [c for c, _ in kept], [piece for _, piece in kept]
        order = ExampleOrder([c.group for c, _ in kept], self.setup.seeds.data)
        self.rows = PackedRows(self._sizes(self.written["train"]), order, self.setup.length if self.packing else None)

    def _writing_model(self, model: LanguageModel) -> LanguageModel:
        if self.writer_path is None:
            return model
        if self.setup.open_model is None:
            raise UserError(
                "task.writer can only be used inside a run, which loads the model that writes\n"
                "    try: ablatio train task=self_training"
            )
        opened = self.setup.open_model(self.writer_path, "task.writer")
        if opened.tokenizer.vocab_size != self.tokenizer.vocab_size:
            raise UserError(
                f"task.writer={self.writer_path} has {opened.tokenizer.vocab_size} token ids, and this run "
                f"{self.tokenizer.vocab_size}; both need the same tokenizer and template\n"
                f"    try: tokenizer=pretrained tokenizer.path={shlex.quote(self.writer_path)}"
            )
        found: LanguageModel = opened.model.to(next(model.parameters()).device)
        return found

    @torch.no_grad()
    def _written(self, model: LanguageModel) -> tuple[list[tuple[Conversation, str]], dict[str, float]]:
        """Return the accepted answers with their conversations, and counts for the manifest."""
        asked = self.questions["train"]
        texts = self.writer.revised(model, [c.messages[:-1] for c in asked], 0, self.count)
        scores = self.writer.scores(asked, texts)
        best = max(score for row in scores for score in row)
        accepted = list(self._best(asked, texts, scores))
        notes = {"questions": float(len(asked)), "accepted": float(len(accepted))}
        if self.hint:
            known = {id(c) for c, _ in accepted}
            left = [c for c in asked if id(c) not in known]
            hinted = [self._hinted(c) for c in left]
            texts = self.writer.revised(model, hinted, FIRST_HINTED, self.count) if left else []
            more = list(self._best(left, texts, self.writer.scores(left, texts)))
            notes |= {"accepted with a hint": float(len(more))}
            accepted += more
        return accepted, notes | {"best": best}

    def _hinted(self, asked: Conversation) -> Sequence[Message]:
        *before, question = asked.messages[:-1]
        hint = self.hint.replace("{answer}", asked.messages[-1].content)
        return [*before, replace(question, text=question.text + hint)]

    def _best(
        self, asked: Sequence[Conversation], texts: Sequence[Sequence[str]], scores: Sequence[Sequence[float]]
    ) -> Iterator[tuple[Conversation, str]]:
        """Yield (conversation, answer): the best accepted answer to each question that has one."""
        for conversation, row, values in zip(asked, texts, scores, strict=True):
            value, text = max(zip(values, row, strict=True), key=lambda pair: pair[0])
            if value > self.least and text.strip():
                yield conversation, text

    @torch.no_grad()
    def score(
        self, model: LanguageModel, batches: Sequence[dict[str, Tensor]], device: torch.device,
        between: Callable[[int], None],
    ) -> dict[str, float]:  # fmt: skip
        """Scores of task=sft, and the mean reward of greedy answers to held-out questions, without revisions."""
        found = super().score(model, batches, device, between)
        asked, mode = self.questions["validation"][: self.asked], model.training
        texts = self.writer.write(model.eval(), [c.messages[:-1] for c in asked], None)
        model.train(mode)
        scores = [score for row in self.writer.scores(asked, texts) for score in row]
        return {"reward": sum(scores) / len(scores), **found, "answers": len(scores)}


rule(
    when="task.name == 'self_training' and not facts.attention.caches",
    why="task=self_training decodes with the KV cache, which attention={attention.name} does not support",
    fix="attention=mha",
    where="attention",
)
rule(
    when="task.name == 'self_training' and 'next tokens' not in facts.architecture.accepts",
    why="task=self_training writes texts, but architecture={architecture.name} trains on {facts.architecture.accepts}",
    fix="architecture=causal",
    where="architecture",
)
