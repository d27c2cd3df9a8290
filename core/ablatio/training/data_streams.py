"""Token streams of a run: one source, or several that a mixture and a curriculum draw rows from."""

import json
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ablatio.data.batches import TrainBatches, ValidationBatches
from ablatio.data.cache_store import get_or_build, key_of
from ablatio.data.corpus import Corpus
from ablatio.data.filters import Texts
from ablatio.data.mixtures import Draws, MixedBatches, MixedValidation, Pool, Shares, checked_shares, shares_of
from ablatio.data.order import DocumentOrder, EasiestFirst, WindowOrder
from ablatio.data.splits import TrainValSplit
from ablatio.data.tokenizer_measures import SECONDS
from ablatio.data.types import Source, Tokenizer
from ablatio.errors import UserError
from ablatio.model.builder import PartChoice
from ablatio.registry import kinds
from ablatio.registry.registry import REGISTRIES
from ablatio.registry.value_schedules import ValueSchedule
from ablatio.training.proxies import Proxies

if TYPE_CHECKING:
    from ablatio.training.task_context import TaskContext

WEIGHTS = "weights"  # attribute of a mixture that a schedule may change
Batches = TrainBatches | MixedBatches
HeldOut = ValidationBatches | MixedValidation


class DataStreams:
    """The corpora of a run by source, and the rows that are drawn from them.

    Without a mixture there is one corpus, of the whole source, under the name "".  With one, each source has its own
    corpus, its own held-out text and its own order of rows; all have one tokenizer.
    """

    def __init__(self, setup: "TaskContext", source: Source) -> None:
        self.setup, self.config = setup, setup.config
        self.mixed, curriculum = bool(self.config.get("mixture")), self.config.get("curriculum")
        parts = self._parts(source) if self.mixed else {"": source}
        self.corpora: dict[str, Corpus]
        self.documents: dict[str, TrainValSplit]
        self.tokenizer: Tokenizer
        self.corpora, self.documents, self.tokenizer = setup.corpora(source, parts)
        self.fingerprints = {"fingerprint": source.fingerprint()}
        if hasattr(source, "held_out_fingerprint"):
            self.fingerprints["held_out"] = source.held_out_fingerprint()
        self.curriculum = setup.part("curriculum", names=self.names) if curriculum else None
        if self.mixed:
            setup.pipeline["mixture"] = self._described()

    def _parts(self, source: Source) -> dict[str, Source]:
        parts: dict[str, Source] = getattr(source, "parts", dict)()
        if len(parts) < 2:
            name = self.config["source"]["name"]
            raise UserError(
                f"mixture={self.config['mixture']['name']} draws from several sources, and source={name} is one\n"
                "    try: source=several source.of=[sotu,zh_classics]"
            )
        return parts

    @property
    def names(self) -> list[str]:
        """Names of the sources, in order."""
        return [*self.corpora]

    @property
    def by_document(self) -> bool:
        """True if each row begins with a document, False if rows are consecutive windows of the stream."""
        return bool(self.config["data"]["rows"] == "documents")

    @property
    def content(self) -> dict[str, Any]:
        """Description of the data for the manifest; its fingerprints are those of the source, before any filter."""
        if not self.mixed:
            corpus = self.corpora[""]
            return {**self.fingerprints, **_counts(corpus)}
        counts = {name: _counts(corpus) for name, corpus in self.corpora.items()}
        return {**self.fingerprints, "sources": counts, "shares": self._named(self._fixed)}

    def _named(self, shares: Shares) -> dict[str, float]:
        return dict(zip(self.names, shares.tolist(), strict=True))

    # What the mixture says.

    @cached_property
    def _pools(self) -> list[Pool]:
        found = []
        for name, corpus in self.corpora.items():
            read = self.documents[name].documents
            texts, held_out = Texts(partial(read, "train")), Texts(partial(read, "validation"))
            found.append(Pool(name, len(corpus.train), texts, held_out))
        return found

    @cached_property
    def _fixed(self) -> Shares:
        """Shares of the sources, without schedule and curriculum; those that are found by training are kept."""
        if not self.mixed:
            return np.ones(1)
        choice = PartChoice.of(self.config["mixture"])
        part: Any = self.setup.part("mixture", pools=self._pools, proxies=Proxies(self))
        found = part.shares
        if kinds.mixtures[choice.name].facts["trains"]:
            key = key_of("mixture", json.dumps(self._trained_with(choice.name), sort_keys=True))
            folder = self.setup.cache / "mixtures" / key
            found = get_or_build(folder, lambda folder: {"shares": dict(part.shares())})["shares"].copy
        return checked_shares(found(), self.names, f"mixture.{WEIGHTS}")

    def _trained_with(self, name: str) -> Any:
        """What shares that are found by training depend on."""
        unused = ("out", "name", "trainer", "sweep", "train", *(kind for kind, r in REGISTRIES.items() if r.volatile))
        rest = {k: v for k, v in self.config.items() if k not in unused}
        return [kinds.mixtures[name].digest, rest, [corpus.key for corpus in self.corpora.values()]]

    @cached_property
    def _base(self) -> Callable[[int], Shares]:
        schedule = self.setup.schedules.get(f"mixture.{WEIGHTS}")
        if schedule is None:
            return lambda step: self._fixed
        for value in schedule.values:
            shares_of(value, self.names, f"mixture.{WEIGHTS}")
        return lambda step: self._scheduled(schedule, step)

    def _scheduled(self, schedule: ValueSchedule, step: int) -> Shares:
        step = min(step, self._steps - 1)
        tokens = self.setup.plan.tokens(step, self.setup.length) if schedule.unit == "tokens" else 0
        found = np.asarray(schedule.at(step, self._steps, tokens), dtype=np.float64)
        shares: Shares = found / found.sum()
        return shares

    @property
    def _steps(self) -> int:
        return int(self.config["train"]["steps"])

    def progress(self, step: int) -> float:
        """Place of a step in the training: 0 for the first, 1 for the last."""
        return min(1.0, step / max(1, self._steps - 1))

    def shares(self, step: int) -> Shares:
        """Shares of the sources in step number `step`: (S,)."""
        base = self._base(step)
        if self.curriculum is None or not hasattr(self.curriculum, "shares"):
            return base
        found = self.curriculum.shares(self.progress(step), self._named(base))
        return checked_shares(found, self.names, "curriculum")

    # Rows.

    @cached_property
    def draws(self) -> Draws:
        """The source of each training row."""
        return Draws(self.shares, len(self.corpora), self.setup.seeds.data, self.setup.plan, self.setup.length)

    @cached_property
    def training(self) -> Batches:
        """The training batches by number."""
        streams = {name: self.stream(corpus) for name, corpus in self.corpora.items()}
        easy = hasattr(self.curriculum, "easiest")
        if not self.mixed and not easy:
            return streams[""]
        easiest = {name: self._easiest(name) for name in self.corpora} if easy else None
        curriculum: Any = self.curriculum
        share = (lambda step: float(curriculum.easiest(self.progress(step)))) if easy else lambda step: 1.0
        return MixedBatches(streams, self.draws, easiest=easiest, share=share)

    def stream(self, corpus: Corpus) -> TrainBatches:
        """The rows of one source alone, in their own order."""
        where = len(corpus.train), self.setup.length, self.setup.seeds.data
        by = self.config["data"].get("order", "shuffled")  # runs from before the setting have none
        order = DocumentOrder(corpus.train_starts, *where, by) if self.by_document else WindowOrder(*where, by)
        mask = self.config["data"]["document_mask"]
        return TrainBatches(corpus.train, order, self.setup.plan, eos=corpus.eos, document_mask=mask)

    def _easiest(self, name: str) -> EasiestFirst:
        """Rows of a source by the difficulty of their documents, which is kept in the cache."""
        corpus, choice, curriculum = self.corpora[name], PartChoice.of(self.config["curriculum"]), self.curriculum
        assert curriculum is not None
        made = [kinds.curricula[choice.name].digest, dict(choice.knobs), corpus.key]
        folder = self.setup.cache / "difficulty" / key_of("difficulty", json.dumps(made, sort_keys=True))

        def measure(folder: Any) -> dict[str, list[float]]:
            return {"found": [float(curriculum.difficulty(d.text)) for d in self.documents[name].documents("train")]}

        found = np.asarray(get_or_build(folder, measure)["found"], dtype=np.float64)
        return EasiestFirst(corpus.train_starts, found, len(corpus.train), self.setup.seeds.data)

    def validation(self, length: int | None = None, tokens: int | None = None) -> HeldOut:
        """The fixed held-out rows of `length` tokens, in batches of about 4096; as many tokens of each source."""
        length, data = length or self.setup.length, self.config["data"]
        cap = (tokens if tokens is not None else data["val_tokens"]) or 0
        each = -(-cap // len(self.corpora))
        parts = {name: self._held_out(corpus, length, each) for name, corpus in self.corpora.items()}
        return MixedValidation(parts) if self.mixed else parts[""]

    def _held_out(self, corpus: Corpus, length: int, cap: int) -> ValidationBatches:
        return ValidationBatches(
            corpus.validation,
            length,
            max(1, 4096 // length),
            eos=corpus.eos,
            document_mask=self.config["data"]["document_mask"],
            val_tokens=cap,
            documents=corpus.validation_starts if self.by_document else None,
        )

    # What was drawn.

    def _described(self) -> dict[str, Any]:
        sizes = {name: len(corpus.train) for name, corpus in self.corpora.items()}
        return {"shares": self._named(self._fixed), "training_tokens": sizes}

    def drawn(self, steps: int) -> dict[str, dict[str, float]]:
        """What `steps` steps drew from each source, for the summary; empty without a mixture.

        tokens    that were trained on
        share     of all tokens; expected: the mean of the shares that the steps asked for
        error     standard error of `share` over the draws of the rows: sqrt(sum of p (1 - p) n^2) / tokens, n tokens
                  per row
        epochs    tokens over the training tokens of the source
        """
        if not self.mixed or not steps:
            return {}
        tokens, plan = self.draws.tokens(steps), self.setup.plan
        total, expected, variance = max(1, int(tokens.sum())), np.zeros(len(tokens)), np.zeros(len(tokens))
        for step in range(steps):
            rows, length = plan.step(step)[1] * plan.accumulate, plan.row_length(step, self.setup.length)
            shares = self.shares(step)
            expected += rows * length * shares
            variance += rows * length**2 * shares * (1 - shares)
        return {
            name: {
                "tokens": int(tokens[i]), "share": float(tokens[i] / total), "expected": float(expected[i] / total),
                "error": float(np.sqrt(variance[i]) / total), "epochs": float(tokens[i] / len(corpus.train)),
            }
            for i, (name, corpus) in enumerate(self.corpora.items())
        }  # fmt: skip


def _counts(corpus: Corpus) -> dict[str, Any]:
    """What the manifest says of the tokens of a source."""
    seconds = corpus.encoding_seconds
    return {"key": corpus.key, **corpus.counts} | ({SECONDS: round(seconds, 3)} if seconds else {})
