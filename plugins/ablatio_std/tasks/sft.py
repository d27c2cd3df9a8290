"""Supervised fine-tuning: conversations in a template's form, the loss on what the assistant says."""

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
from ablatio.errors import UserError
from ablatio.model.decoding.generate import Sampling, generate
from ablatio.model.example import Example
from ablatio.model.language_model import LanguageModel, Loss
from ablatio.model.parameter_roles import named_generator
from ablatio.model.task import Task
from ablatio.registry import kinds
from ablatio.registry.kinds import tasks
from ablatio.training.task_context import TaskContext

from ._conversations import OneText, Reading, Row, SourceAndTarget, Talks

SHOWN, LONGEST = 4, 192  # answers in samples.jsonl, and their tokens


@tasks.register("sft", paper="arXiv:2203.02155")
class SupervisedFineTuning(Task):
    """sum -log p(token | the conversation before it) over the tokens that the assistant says, its end sign included.

    Conversations are packed into rows of `data.length` tokens by first fit; tokens see their own conversation alone.
    Where the architecture learns from source and target, what comes before an answer is the source of that answer.
    A share of the rows may be plain text, as in pre-training: of a decoder alone, with the loss on each token.
    """

    accepts, scores, main, better, template = "conversations", ("loss", "accuracy"), "loss", "lower", True

    def __init__(
        self,
        setup: TaskContext,
        *,
        prompts: Annotated[bool, "the loss stands on questions too"] = False,
        packing: Annotated[bool, "several conversations in a row"] = True,
        too_long: Annotated[
            Literal["cut", "drop", "refuse"],
            "a conversation longer than a row: loses its beginning, is left out, or stops the run",
        ] = "cut",
        cap: Annotated[int | None, Positive, "conversations that a source gives to an epoch at most"] = None,
        text: Annotated[str, OptionOf("source"), "of the plain text that is mixed in"] = "sotu",
        share: Annotated[float, Fraction, "of the rows that are plain text"] = 0.0,
    ) -> None:
        self.setup, self.prompts, self.packing, self.too_long = setup, prompts, packing, too_long
        self.share = share
        source = setup.source()
        self.tokenizer, self.form = setup.chat(source)
        self.reading = self._reading()
        talks = Talks(setup, source, self.tokenizer, self.form, self.reading, too_long)
        self.held, self.written, self.content = talks.held, talks.written, talks.content
        order = ExampleOrder([c.group for c in self.held["train"]], setup.seeds.data, cap)
        self.rows = PackedRows(self._sizes(self.written["train"]), order, setup.length if packing else None)
        self.plain = self._plain(text) if share else None

    def _reading(self) -> Reading:
        """How the architecture reads a conversation."""
        facts, eos = kinds.architectures[self.setup.config["architecture"]["name"]].facts, self.tokenizer.eos
        if "next tokens" in facts["accepts"]:
            return OneText(eos, prompts=self.prompts, causal=facts["mask"] == "causal")
        wiring = {"vocab_size": self.tokenizer.vocab_size, "eos": eos, "max_len": self.setup.length}
        return SourceAndTarget(eos, self.setup.part("objective", **wiring))

    def _sizes(self, pieces: Sequence[Written]) -> list[int]:
        """Tokens that each takes in a row."""
        return [len(piece) - self.reading.ahead for piece in pieces]

    def _plain(self, name: str) -> tuple[Windows, WindowOrder]:
        source = sources.build(name)
        key = hashlib.sha256(self.tokenizer.state().encode()).hexdigest()
        corpus = prepare(source, self.tokenizer, key, self.setup.cache, self.setup.config["data"]["val_fraction"])
        order = WindowOrder(len(corpus.train), self.setup.length, self.setup.seeds.data)
        return Windows(corpus.train, self.setup.length), order

    @property
    def training(self) -> "Rows":
        return Rows(self)

    def validation(self, length: int | None = None, tokens: int | None = None) -> list[dict[str, Tensor]]:
        """Held-out conversations packed in their own order; at most `data.val_tokens` tokens."""
        length = length or self.setup.length
        written = [w for w in self.written["validation"] if len(w) <= length + self.reading.ahead]
        if not written:
            raise UserError(
                f"no held-out conversation fits into {length} tokens\n    try: --length {self.setup.length}"
            )
        sizes = np.array(self._sizes(written))
        packed = first_fit(sizes, np.arange(len(sizes)), length) if self.packing else [[i] for i in range(len(sizes))]
        cap = tokens if tokens is not None else self.setup.config["data"]["val_tokens"]
        packed = packed[: max(1, cap // length)] if cap else packed
        at_once = max(1, 4096 // length)
        groups = [packed[i : i + at_once] for i in range(0, len(packed), at_once)]
        return [self._batch([self.reading.row([written[i] for i in row]) for row in group]) for group in groups]

    def tokens(self, steps: int) -> int:
        """Packed rows count as whole; without packing, as many as conversations have on average."""
        rows, sizes = self.setup.plan.step(steps)[0], self._sizes(self.written["train"])
        return rows * self.setup.length if self.packing else round(rows * sum(sizes) / len(sizes))

    def row(self, number: int) -> Row:
        """Row of the run: conversations, or a window of plain text."""
        texts = int(number * self.share)
        if self.plain is None or int((number + 1) * self.share) == texts:
            return self.reading.row([self.written["train"][i] for i in self.rows.row(number - texts)])
        windows, order = self.plain
        tokens = windows(order.starts(np.array([texts])))
        generator = named_generator(self.setup.seeds.data, f"text/{texts}")
        return self.reading.plain(tokens, segments(tokens, self.tokenizer.eos), generator)

    def _batch(self, rows: Sequence[Row]) -> Row:
        """Rows filled up to the longest; packed ones to the same length always, where the form is even."""
        least = self.setup.length if self.packing and self.reading.even else 0
        return {
            name: torch.stack([_filled(row[name], max(least, *(len(r[name]) for r in rows)), value) for row in rows])
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
        """Nats per token of held-out answers, and how often the likeliest token is the right one."""
        mode = model.training
        model.eval()
        nats = hits = count = 0.0
        try:
            for number, batch in enumerate(batches):
                example = self.reading.example(batch).to(device)
                losses, found, weights = model.scored_targets(example)
                weights = weights.double()
                nats += float((losses.double() * weights).sum())
                hits += float((found * weights).sum())
                count += float(weights.sum())
                between(number + 1)
        finally:
            model.train(mode)
        return {"loss": nats / count, "accuracy": hits / count, "tokens": int(count)}

    def samples(self, model: LanguageModel) -> list[dict[str, str]]:
        """The likeliest answers to the first held-out questions, and what was expected."""
        shown = list(dict.fromkeys(self.held["validation"]))[:SHOWN]
        asked = [c.messages[:-1] for c in shown]
        prompts = [w.ids.tolist() for w in write(self.tokenizer, self.form, asked, answering=True)]
        room = [p[-self.setup.length // 2 :] for p in prompts]
        longest = min(LONGEST, self.setup.length - max(map(len, room)))
        mode = model.training
        stop = sign_id(self.tokenizer, self.form.end)
        try:
            found = generate(model.eval(), room, longest, Sampling(temperature=0), stop)
        except UserError:  # a model that cannot decode
            return []
        finally:
            model.train(mode)
        return [
            {"prompt": c.messages[-2].text, "answer": self.tokenizer.decode(answer), "expected": c.messages[-1].text}
            for c, answer in zip(shown, found, strict=True)
        ]


class Rows:
    """Training batches by number."""

    def __init__(self, task: SupervisedFineTuning) -> None:
        self.task = task

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        first, count = self.task.setup.plan.batch(number)
        rows = [self.task.row(g) for g in range(first, first + count)]
        return self.task._batch(rows) | {"number": torch.tensor(number)}


def _filled(row: Tensor, length: int, value: float) -> Tensor:
    return torch.nn.functional.pad(row, (0, length - len(row)), value=value)


rule(
    when="task.name == 'sft' and task.packing and not facts.attention.takes_segments",
    why="attention={attention.name} cannot keep the conversations of a packed row apart",
    fix="task.packing=false",
    where="task.packing",
)
rule(
    when="task.name == 'sft' and 'next tokens' not in facts.architecture.accepts "
    "and 'source and target' not in facts.architecture.accepts",
    why="task=sft teaches a decoder to answer, and architecture={architecture.name} learns from "
    "{facts.architecture.accepts}",
    fix="architecture=causal",
    where="architecture",
)
rule(
    when="task.name == 'sft' and task.prompts and 'next tokens' not in facts.architecture.accepts",
    why="architecture={architecture.name} reads questions and says answers alone: no loss can stand on a question",
    fix="task.prompts=false",
    where="task.prompts",
)
