"""Supervised fine-tuning on conversations, written with a chat template, with the loss on the assistant's turns."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from ablatio import Fraction, OptionOf, Positive, rule, sources
from ablatio.data.batches import Windows, segments
from ablatio.data.chat import Written, sign_id, write
from ablatio.data.corpus import prepare
from ablatio.data.order import WindowOrder
from ablatio.data.packing import ExampleOrder, PackedRows, first_fit
from ablatio.data.types import start_id
from ablatio.errors import UserError
from ablatio.model.decoding.generate import Sampling, generate
from ablatio.model.example import Example, Loss
from ablatio.model.language_model import LanguageModel
from ablatio.model.parameter_roles import named_generator
from ablatio.model.task import Task
from ablatio.registry import kinds
from ablatio.registry.kinds import tasks
from ablatio.training.task_context import TaskContext

from ._conversations import ConversationFormat, Row, SourceTargetFormat, TextFormat, TokenizedConversations

SHOWN, LONGEST = 4, 192  # answers in samples.jsonl, and their largest number of tokens


@tasks.register("sft", paper="arXiv:2203.02155")
class SupervisedFineTuning(Task):
    """sum -log p(token | the conversation before it) over the assistant's tokens, with the end-of-answer token.

    Conversations are packed into rows of `data.length` tokens by first fit; tokens attend to their own conversation
    only.  If the architecture trains on source and target, the text before an answer is the source of that answer.
    A share of the rows can be plain text as in pre-training, on which a decoder has the loss on every token.
    """

    accepts, scores, main, better, template = "conversations", ("loss", "accuracy"), "loss", "lower", True
    splits_tokens, splits_layers = True, True

    def __init__(
        self,
        setup: TaskContext,
        *,
        prompts: Annotated[bool, "put the loss on the questions too"] = False,
        packing: Annotated[bool, "pack several conversations into a row"] = True,
        too_long: Annotated[
            Literal["cut", "drop", "refuse"],
            "a conversation longer than a row: cut its beginning, leave it out, or stop the run",
        ] = "cut",
        cap: Annotated[int | None, Positive, "largest number of conversations per source and epoch"] = None,
        text: Annotated[str, OptionOf("source"), "source of the plain text that is mixed in"] = "sotu",
        share: Annotated[float, Fraction, "share of the rows that are plain text"] = 0.0,
    ) -> None:
        self.setup, self.prompts, self.packing, self.too_long = setup, prompts, packing, too_long
        self.share = share
        source = setup.source()
        self.tokenizer, self.form = setup.chat(source)
        self.reading = self._reading()
        conversations = TokenizedConversations(setup, source, self.tokenizer, self.form, self.reading, too_long)
        self.held, self.written, self.content = conversations.held, conversations.written, conversations.content
        order = ExampleOrder([c.group for c in self.held["train"]], setup.seeds.data, cap)
        self.rows = PackedRows(self._sizes(self.written["train"]), order, setup.length if packing else None)
        self.plain = self._text_windows(text) if share else None

    def _reading(self) -> ConversationFormat:
        """Choose how conversations become rows, by what the architecture trains on."""
        facts, eos = kinds.architectures[self.setup.config["architecture"]["name"]].facts, self.tokenizer.eos
        if "next tokens" in facts["accepts"]:
            return TextFormat(eos, prompts=self.prompts, causal=facts["mask"] == "causal")
        wiring = {"vocab_size": self.tokenizer.vocab_size, "eos": eos, "max_len": self.setup.length}
        return SourceTargetFormat(eos, self.setup.part("objective", **wiring))

    def _sizes(self, pieces: Sequence[Written]) -> list[int]:
        """Tokens that each piece takes in a row."""
        return [len(piece) - self.reading.ahead for piece in pieces]

    def _text_windows(self, name: str) -> tuple[Windows, WindowOrder]:
        source = sources.build(name)
        key = hashlib.sha256(self.tokenizer.state().encode()).hexdigest()
        corpus = prepare(source, self.tokenizer, key, self.setup.cache, self.setup.config["data"]["val_fraction"])
        order = WindowOrder(len(corpus.train), self.setup.length, self.setup.seeds.data)
        return Windows(corpus.train, self.setup.length), order

    @property
    def training(self) -> "RowBatches":
        return RowBatches(self)

    def validation(self, length: int | None = None, tokens: int | None = None) -> list[dict[str, Tensor]]:
        """Held-out conversations, packed in their own order; at most `data.val_tokens` tokens."""
        length = length or self.setup.length
        # Left out and not cut: losses at several lengths are then of whole conversations.
        written = [w for w in self.written["validation"] if len(w) <= length + self.reading.ahead]
        if not written:
            raise UserError(
                f"no held-out conversation fits into {length} tokens\n    try: --length {self.setup.length}"
            )
        sizes = np.array(self._sizes(written))
        packed = first_fit(sizes, np.arange(len(sizes)), length) if self.packing else [[i] for i in range(len(sizes))]
        cap = tokens if tokens is not None else self.setup.config["data"]["val_tokens"]
        packed = packed[: max(1, cap // length)] if cap else packed
        # About 4096 tokens a batch, as held-out text has.
        at_once = max(1, 4096 // length)
        groups = [packed[i : i + at_once] for i in range(0, len(packed), at_once)]
        return [self._batch([self.reading.row([written[i] for i in row]) for row in group]) for group in groups]

    def tokens(self, steps: int) -> int:
        """Tokens of whole rows if packed, else the average tokens of a conversation times the rows."""
        rows, sizes = self.setup.plan.step(steps)[0], self._sizes(self.written["train"])
        return rows * self.setup.length if self.packing else round(rows * sum(sizes) / len(sizes))

    def row(self, number: int) -> Row:
        """Row `number` of the run: packed conversations, or a window of plain text."""
        # The share is exact in every stretch of rows, without a random draw: row n is text where n share passes an
        # integer.
        texts = int(number * self.share)  # rows of plain text before this one
        if self.plain is None or int((number + 1) * self.share) == texts:
            return self.reading.row([self.written["train"][i] for i in self.rows.row(number - texts)])
        windows, order = self.plain
        tokens = windows(order.starts(np.array([texts])))
        generator = named_generator(self.setup.seeds.data, f"text/{texts}")
        return self.reading.plain(tokens, segments(tokens, start_id(self.tokenizer)), generator)

    def _batch(self, rows: Sequence[Row]) -> Row:
        """Stack rows, padded to the longest, or to `data.length` if packed and `reading.even`."""
        least = self.setup.length if self.packing and self.reading.even else 0
        return {
            name: torch.stack([_padded(row[name], max(least, *(len(r[name]) for r in rows)), value) for row in rows])
            for name, value in self.reading.fill.items()
        }

    def example(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Example:
        return self.reading.example(batch)

    def loss(self, model: LanguageModel, example: Example) -> Loss:
        return model.loss(example)

    def redrawn(self, model: LanguageModel, example: Example, generator: torch.Generator) -> Example:
        return model.redrawn(example, generator)

    @torch.no_grad()
    def score(
        self,
        model: LanguageModel,
        batches: Sequence[dict[str, Tensor]],
        device: torch.device,
        between: Callable[[int], None],
    ) -> dict[str, float]:
        """Loss in nats per token of held-out answers, and the share of tokens predicted correctly."""
        mode = model.training
        model.eval()
        nats = hits = count = 0.0
        try:
            for number, batch in enumerate(batches):
                example = self.reading.example(batch).to(device)
                losses, found, weights = model.scored_targets(example)
                weights = weights.double()
                # float64: sums over all held-out tokens, whose differences between arms are small.
                nats += float((losses.double() * weights).sum())
                hits += float((found * weights).sum())
                count += float(weights.sum())
                between(number + 1)
        finally:
            model.train(mode)
        return {"loss": nats / count, "accuracy": hits / count, "tokens": int(count)}

    def samples(self, model: LanguageModel) -> list[dict[str, str]]:
        """Greedy answers to the first held-out questions, with the expected answers."""
        # Each conversation once: with source and target it stands there once for each answer.
        shown = list(dict.fromkeys(self.held["validation"]))[:SHOWN]
        questions = [c.messages[:-1] for c in shown]
        prompts = [w.ids.tolist() for w in write(self.tokenizer, self.form, questions, answering=True)]
        # At most half of the row, so that half is left for the answer.
        room = [p[-self.setup.length // 2 :] for p in prompts]
        longest = min(LONGEST, self.setup.length - max(map(len, room)))
        mode = model.training
        stop = sign_id(self.tokenizer, self.form.end)
        try:
            found = generate(model.eval(), room, longest, Sampling(temperature=0), stop)
        except UserError:  # a model that cannot decode has no samples
            return []
        finally:
            model.train(mode)
        return [
            {"prompt": c.messages[-2].text, "answer": self.tokenizer.decode(answer), "expected": c.messages[-1].text}
            for c, answer in zip(shown, found, strict=True)
        ]


class RowBatches:
    """Training batches by number."""

    def __init__(self, task: SupervisedFineTuning) -> None:
        self.task = task

    @property
    def epoch_rows(self) -> int:
        """Rows in which every conversation occurs once, with their share of plain text."""
        # All rows are text: an epoch is one pass over it, and 1 / (1 - share) has no value.
        if self.task.share == 1 and self.task.plain:
            return self.task.plain[1].windows
        return round(self.task.rows.epoch_rows / (1 - self.task.share))

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        first, count = self.task.setup.plan.batch(number)
        rows = [self.task.row(g) for g in range(first, first + count)]
        return self.task._batch(rows) | {"number": torch.tensor(number)}


def _padded(row: Tensor, length: int, value: float) -> Tensor:
    return torch.nn.functional.pad(row, (0, length - len(row)), value=value)


rule(
    when="task.name in ('sft', 'self_training') and task.packing and not facts.attention.takes_segments",
    why="attention={attention.name} cannot keep the conversations of a packed row apart",
    fix="task.packing=false",
    where="task.packing",
)
rule(
    when="task.name == 'sft' and 'next tokens' not in facts.architecture.accepts "
    "and 'source and target' not in facts.architecture.accepts",
    why="task=sft trains a decoder to answer, but architecture={architecture.name} trains on "
    "{facts.architecture.accepts}",
    fix="architecture=causal",
    where="architecture",
)
rule(
    when="task.name == 'sft' and task.prompts and 'next tokens' not in facts.architecture.accepts",
    why="architecture={architecture.name} encodes questions and predicts only answers: questions cannot have a loss",
    fix="task.prompts=false",
    where="task.prompts",
)
