"""Supervised fine-tuning: conversations in a template's form, the loss on what the assistant says."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ablatio import Fraction, OptionOf, Positive, rule, sources
from ablatio.data.batches import Windows, segments
from ablatio.data.cache import prepare
from ablatio.data.chat import Written, fitted, sign_id, write
from ablatio.data.order import WindowOrder
from ablatio.data.rows import ExampleOrder, PackedRows, first_fit
from ablatio.data.splits import hash_split
from ablatio.data.types import Conversation
from ablatio.errors import UserError
from ablatio.generate import Sampling, generate
from ablatio.kinds import tasks
from ablatio.model.example import PADDING, Example
from ablatio.model.language_model import LanguageModel, Loss
from ablatio.tasks.setup import Setup

SHOWN, LONGEST = 4, 192  # answers in samples.jsonl, and their tokens
log = logging.getLogger("ablatio")


@tasks.register("sft", paper="arXiv:2203.02155")
class SupervisedFineTuning:
    """sum -log p(token | the conversation before it) over the tokens that the assistant says, its end sign included.

    Conversations are packed into rows of `data.length` tokens by first fit; tokens see their own conversation alone.
    A share of the rows may be plain text, as in pre-training, with the loss on each token.
    """

    takes, scores, main, better, template = "conversations", ("loss", "accuracy"), "loss", "lower", True

    def __init__(
        self,
        setup: Setup,
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
        every = list(source.conversations())  # type: ignore[attr-defined]  (a rule asks for it)
        self.held = {split: [c for c in every if self._split(c) == split] for split in ("train", "validation")}
        self.content: dict[str, Any] = {"fingerprint": source.fingerprint()}
        self.written = {split: self._write(split) for split in self.held}
        groups = [c.group for c in self.held["train"]]
        sizes = [len(w) - 1 for w in self.written["train"]]
        order = ExampleOrder(groups, setup.seeds.data, cap)
        self.rows = PackedRows(sizes, order, setup.length if packing else None)
        self.plain = self._plain(text) if share else None

    def _split(self, conversation: Conversation) -> str:
        """By the hash of the first question, so that one question never stands on both sides."""
        if conversation.split:
            return conversation.split
        asked = next(m.text for m in conversation.messages if m.role == "user")
        return hash_split(hashlib.sha256(asked.encode()).digest(), self.setup.config["data"]["val_fraction"])

    def _write(self, split: str) -> list[Written]:
        """The conversations that fit, as tokens; `held` keeps those alone."""
        conversations, kept, count = self.held[split], [], Counter[str]()
        found: list[Written] = []
        whole = write(self.tokenizer, self.form, [c.messages for c in conversations])
        for conversation, written in zip(conversations, whole, strict=True):
            fits = fitted(written, self.setup.length, self.too_long, conversation.id)
            count["cut"] += fits is not None and fits is not written
            count["dropped"] += fits is None
            if fits is not None:
                found.append(fits)
                kept.append(conversation)
        count |= {"conversations": len(found), "tokens": sum(map(len, found))}
        self.held[split], self.content[split] = kept, dict(count)
        if not found:
            raise UserError(
                f"the {split} split is empty: {len(conversations)} conversations came, and {count['dropped']} of them "
                f"do not fit into {self.setup.length} tokens\n    try: data.val_fraction=0.2, or a larger model.max_len"
            )
        if count["cut"] or count["dropped"]:
            log.warning(
                "%s: %d of %d conversations lost their beginning, %d were left out: they are longer than %d tokens",
                split, count["cut"], len(conversations), count["dropped"], self.setup.length,
            )  # fmt: skip
        return found

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
        written = [w for w in self.written["validation"] if len(w) <= length + 1]
        if not written:
            raise UserError(
                f"no held-out conversation fits into {length} tokens\n    try: --length {self.setup.length}"
            )
        sizes = np.array([len(w) - 1 for w in written])
        packed = first_fit(sizes, np.arange(len(sizes)), length) if self.packing else [[i] for i in range(len(sizes))]
        cap = tokens if tokens is not None else self.setup.config["data"]["val_tokens"]
        packed = packed[: max(1, cap // length)] if cap else packed
        at_once = max(1, 4096 // length)
        groups = [packed[i : i + at_once] for i in range(0, len(packed), at_once)]
        return [self._batch([self._row(written, row, length) for row in group]) for group in groups]

    def tokens(self, steps: int) -> int:
        """Packed rows count as whole; without packing, as many as conversations have on average."""
        rows = self.setup.plan.step(steps)[0]
        mean = sum(len(w) - 1 for w in self.written["train"]) / len(self.written["train"])
        return rows * self.setup.length if self.packing else round(rows * mean)

    def row(self, number: int) -> dict[str, Tensor]:
        """Row of the run: conversations, or a window of plain text."""
        texts = int(number * self.share)
        if self.plain is None or int((number + 1) * self.share) == texts:
            return self._row(self.written["train"], self.rows.row(number - texts), self.setup.length)
        windows, order = self.plain
        tokens = windows(order.starts(np.array([texts])))
        documents = segments(tokens, self.tokenizer.eos)
        numbers = torch.zeros_like(tokens) if documents is None else documents.long()
        return {
            "inputs": tokens[0, :-1], "targets": tokens[0, 1:], "weights": torch.ones(self.setup.length),
            "segments": numbers[0, :-1],
        }  # fmt: skip

    def _row(self, written: Sequence[Written], members: Sequence[int], length: int) -> dict[str, Tensor]:
        """Conversations side by side; each begins anew, and what its last token would say is no target."""
        held = [written[i] for i in members]
        ids = [w.ids.astype(np.int64) for w in held]
        said = [np.ones(len(w), dtype=bool) if self.prompts else w.said for w in held]
        row = {
            "inputs": np.concatenate([i[:-1] for i in ids]),
            "targets": np.concatenate([i[1:] for i in ids]),
            "weights": np.concatenate([s[1:] for s in said]).astype(np.float32),
            "segments": np.concatenate([np.full(len(i) - 1, n) for n, i in enumerate(ids)]),
        }
        return {name: torch.from_numpy(values) for name, values in row.items()}

    def _batch(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Rows filled up to the longest; packed ones to the same length always, which compiled code likes."""
        longest = self.setup.length if self.packing else 0
        longest = max([longest, *(len(row["inputs"]) for row in rows)])
        filled = {"inputs": self.tokenizer.eos, "targets": self.tokenizer.eos, "weights": 0.0, "segments": PADDING}
        return {
            name: torch.stack([_filled(row[name], longest, value) for row in rows]) for name, value in filled.items()
        }

    def example(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Example:
        return self._example(batch)

    def _example(self, batch: Mapping[str, Tensor]) -> Example:
        """A row of one conversation needs no segments: what fills it up stands behind all that is said."""
        numbers: Tensor | None = batch["segments"]
        assert numbers is not None
        if self.setup.config["architecture"]["name"] == "causal" and not bool((numbers > 0).any()):
            numbers = None
        return Example(batch["inputs"], batch["targets"], batch["weights"], numbers)

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
                example = self._example(batch).to(device)
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
        asked = [c.messages[:-1] for c in self.held["validation"][:SHOWN]]
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
        expected = [c.messages[-1].text for c in self.held["validation"]]
        return [
            {"prompt": messages[-1].text, "answer": self.tokenizer.decode(answer), "expected": right}
            for messages, answer, right in zip(asked, found, expected, strict=False)
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
    when="task.name == 'sft' and 'next tokens' not in facts.architecture.takes",
    why="task=sft teaches a decoder what follows, and architecture={architecture.name} learns from "
    "{facts.architecture.takes}",
    fix="architecture=causal",
    where="architecture",
)
