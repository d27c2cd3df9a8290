"""Everything that a config makes before the first step: machine, data, model, task."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from ablatio import kinds
from ablatio.data.batches import TrainBatches, ValidationBatches
from ablatio.data.cache import Corpus, prepare
from ablatio.data.order import DocumentOrder, RowPlan, WindowOrder
from ablatio.data.types import Tokenizer
from ablatio.errors import UserError
from ablatio.model.assembly import Choice, build_model
from ablatio.model.language_model import LanguageModel
from ablatio.paths import cache_root
from ablatio.tasks.evaluate import Score, evaluate
from ablatio.tasks.machine import Machine
from ablatio.tasks.pretrain import Pretrain, Seeds
from ablatio.tasks.tuning import Tuning, tune


@dataclass(slots=True)
class Prepared:
    """A run that is ready to start: everything made from the config, nothing trained yet."""

    config: Mapping[str, Any]
    corpus: Corpus
    tokenizer: Tokenizer
    model: LanguageModel
    task: Pretrain
    machine: Machine
    tuning: Tuning
    length: int = field(init=False)
    plan: RowPlan = field(init=False)

    def __post_init__(self) -> None:
        self.length = int(self.config["data"]["length"] or self.config["model"]["max_len"])
        train = self.config["train"]
        ramps = [part for part in self.task.stabilizers.values() if hasattr(part, "batch_rows")]
        ramp = _Ramp(ramps[0], self.length) if ramps else None
        self.plan = RowPlan(train["batch_size"], train["accumulate"], ramp)

    @property
    def by_document(self) -> bool:
        return bool(self.config["data"]["rows"] == "documents")

    def tokens(self, steps: int) -> int:
        """How many tokens these many steps take."""
        return self.plan.step(steps)[0] * self.length

    def training(self, start: int, skipped: int = 0) -> "DataLoader[dict[str, torch.Tensor]]":
        """Batches from number `start` on, `skipped` batches later in the data; resume needs no other position."""
        train, workers = self.config["train"], self.config["trainer"]["workers"]
        where = len(self.corpus.train), self.length, self.task.seeds.data
        order = DocumentOrder(self.corpus.train_starts, *where) if self.by_document else WindowOrder(*where)
        batches = TrainBatches(
            self.corpus.train,
            order,
            self.plan,
            eos=self.tokenizer.eos,
            document_mask=self.config["data"]["document_mask"],
        )
        sampler = _From(start, train["steps"] * train["accumulate"], skipped)
        return DataLoader(
            batches, batch_size=None, sampler=sampler, num_workers=workers, persistent_workers=workers > 0
        )

    def validation(self, length: int | None = None, tokens: int | None = None) -> ValidationBatches:
        """The fixed held-out windows; rows of `length` tokens, batches of about 4096."""
        length = length or self.length
        cap = tokens if tokens is not None else self.config["data"]["val_tokens"]
        return ValidationBatches(
            self.corpus.validation,
            length,
            max(1, 4096 // length),
            eos=self.tokenizer.eos,
            document_mask=self.config["data"]["document_mask"],
            val_tokens=cap or 0,
            documents=self.corpus.validation_starts if self.by_document else None,
        )

    def ask(self, name: str) -> None:
        """Score what another objective (with its default knobs) asks for; UserError where this model cannot say it."""
        gives = kinds.objectives[name].facts["gives"]
        architecture = self.config["architecture"]["name"]
        takes = kinds.architectures[architecture].facts["takes"]
        if gives not in takes:
            usual = kinds.architectures[architecture].facts["objective"]
            raise UserError(
                f"objective={name} gives {gives}, and architecture={architecture} can say {' or '.join(takes)}\n"
                f"    try: --objective {usual}"
            )
        ids, eos = self.tokenizer.vocab_size, self.tokenizer.eos
        objective = kinds.objectives.build(name, {}, vocab_size=ids, eos=eos, max_len=self.length)
        needed = ids + int(getattr(objective, "extra_tokens", 0))
        if needed > self.model.vocab_size:
            plain = "prefix_lm" if gives == "source and target" else "lm"
            raise UserError(
                f"objective={name} needs {needed - ids} signs beyond the tokenizer's {ids} ids, and this model has "
                f"{self.model.vocab_size - ids}\n    try: --objective {plain}"
            )
        self.task.objective = objective

    def score(self, batches: ValidationBatches, between: Callable[[int], None] = lambda n: None) -> Score:
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.machine.precision == "bf16"):
            return evaluate(
                self.model, self.task.objective, iter(batches), self.tokenizer.token_bytes(), device, between
            )


@dataclass(frozen=True, slots=True)
class _Ramp:
    """A stabilizer's batch size, which counts tokens, as one that counts rows."""

    part: Any
    length: int

    def __call__(self, seen: int, full: int) -> int:
        return int(self.part.batch_rows(seen * self.length, full))


class _From(Sampler[int]):
    """start ... total - 1, each plus `skipped`.  Its length is the total: Lightning counts the whole run's batches."""

    def __init__(self, start: int, total: int, skipped: int) -> None:
        self.start, self.total, self.skipped = start, total, skipped

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start + self.skipped, self.total + self.skipped))

    def __len__(self) -> int:
        return self.total


def build_data(config: Mapping[str, Any]) -> tuple[Corpus, Tokenizer]:
    """The token cache and the (trained) tokenizer of a config."""
    source, tokens = Choice.of(config["source"]), Choice.of(config["tokenizer"])
    tokenizer = kinds.tokenizers.build(tokens.name, tokens.knobs)
    digest = kinds.tokenizers[tokens.name].digest
    key = json.dumps([tokens.name, digest, dict(tokens.knobs)], sort_keys=True)
    corpus = prepare(
        kinds.sources.build(source.name, source.knobs), tokenizer, key, cache_root(), config["data"]["val_fraction"]
    )
    return corpus, tokenizer


def prepare_run(config: Mapping[str, Any]) -> Prepared:
    """Machine, data, model and task of a checked config."""
    machine = Machine.choose(config["trainer"])
    machine.prepare()
    corpus, tokenizer = build_data(config)
    seeds = Seeds(config)
    model = build_model(config, tokenizer.vocab_size, tokenizer.eos, seeds.init)
    tuning = tune(model, config, seeds.init)
    if config["trainer"]["compile"]:
        # The runs of a sweep compile the same layers: they find them here, 38 s of work become 5.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root() / "compiled"))
        model.compile_layers()
    task = Pretrain(config, model, tokenizer.vocab_size, tokenizer.eos, seeds, tuning)
    return Prepared(config, corpus, tokenizer, model, task, machine, tuning)
