"""What a task is built from: config, seeds, rows per batch, corpus and tokenizer."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ablatio.data.chat import Template, with_special_tokens
from ablatio.data.corpus import Corpus, split_of, tokenized, train_or_load_tokenizer
from ablatio.data.filters import Pipeline
from ablatio.data.order import RowPlan
from ablatio.data.shards import Resources
from ablatio.data.splits import TrainValSplit
from ablatio.data.types import Source, Tokenizer
from ablatio.errors import UserError
from ablatio.model.builder import PartChoice
from ablatio.model.cost.parameters import row_length
from ablatio.model.rl.answers import Answer
from ablatio.registry import kinds
from ablatio.registry.registry import REGISTRIES
from ablatio.registry.value_schedules import ValueSchedule
from ablatio.storage.paths import cache_root

OpenReward = Callable[[str, Tokenizer], Callable[[Sequence[Answer]], Tensor]]  # a TrainedReward of reward_model
OpenModel = Callable[[str, str], Any]  # -> ablatio.training.frozen_model.FrozenModel, which is built on this module


class Seeds:
    """Seeds of the independent random streams init, data and dropout; each is `seed` unless set in `seeds`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        def pick(name: str) -> int:
            value = config["seeds"][name]
            return int(config["seed"] if value is None else value)

        self.init, self.data, self.dropout = pick("init"), pick("data"), pick("dropout")


@dataclass(frozen=True, slots=True)
class TaskContext:
    """Config and derived values that a task is built from.

    config       of the run, resolved and checked
    plan         number of rows of each batch
    open_reward  open_reward(folder, tokenizer) returns the reward model of a run as a function; None outside training
    open_model   open_model(folder, key) returns the FrozenModel of a run, key: the setting for errors; None outside
    schedules    of settings that change during training, by path
    whole_weights  context in which the task may call the trained model outside of `loss`, also on several devices; all
                 ranks enter it together.  The hooks that score or prepare are called in it
    length       tokens per row, the longest if they change
    seeds        seeds of the random streams
    built        parts built so far, by kind
    pipeline     what was done to the data, for data.json: of filters, the documents that were dropped
    """

    config: Mapping[str, Any]
    plan: RowPlan
    open_reward: OpenReward | None = None
    open_model: OpenModel | None = None
    schedules: Mapping[str, ValueSchedule] = field(default_factory=dict)
    whole_weights: Callable[[], AbstractContextManager[None]] = nullcontext
    length: int = field(init=False)
    seeds: Seeds = field(init=False)
    built: dict[str, list[Any]] = field(init=False, default_factory=dict)
    pipeline: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", row_length(self.config))
        object.__setattr__(self, "seeds", Seeds(self.config))

    @property
    def cache(self) -> Path:
        """Folder of files that many runs share: tokenizers, tokenized corpora."""
        return cache_root()

    def part(self, kind: str, **wiring: Any) -> Any:
        """Build the config's part of a kind; `wiring` are the arguments that the model or task supplies."""
        choice = PartChoice.of(self.config[kind])
        made = REGISTRIES[kind].build(choice.name, choice.knobs, **wiring)
        self.built.setdefault(kind, []).append(made)
        return made

    def source(self) -> Source:
        """Build the config's source."""
        source: Source = self.part("source", open_run=self._open_run if self.open_model else None)
        return source

    def _open_run(self, path: str) -> Any:
        """The run that a source names, as a model that writes."""
        assert self.open_model is not None
        return self.open_model(path, "source.run")

    def corpus(self, source: Source) -> tuple[Corpus, Tokenizer]:
        """Return the source as token streams, after the config's filters, and the tokenizer."""
        corpora, _, tokenizer = self.corpora(source, {"": source})
        return corpora[""], tokenizer

    def corpora(
        self, source: Source, parts: Mapping[str, Source]
    ) -> tuple[dict[str, Corpus], dict[str, TrainValSplit], Tokenizer]:
        """Return the token streams and the documents of each part of a source, after the config's filters.

        parts  {name: source}; {"": source} for the whole

        The tokenizer is trained on the training documents of the whole source, before they are filtered, so that runs
        with other filters or another mixture share it.
        """
        tokenizer, key = self._tokenizer()
        fraction = self.config["data"]["val_fraction"]
        whole = train_or_load_tokenizer(source, tokenizer, key, self.cache, fraction)
        corpora, documents = dict[str, Corpus](), dict[str, TrainValSplit]()
        for name, part in parts.items():
            with told_of(name):
                split = whole if part is source else split_of(part, fraction)
                if filters := self._filters:
                    filtered = filters.over(part, [other for other in parts.values() if other is not part])
                    self.pipeline.setdefault("filters", {})[name] = filtered.record
                    split = split_of(filtered, fraction)
                corpora[name], documents[name] = tokenized(split, tokenizer, self.cache, self.resources), split[0]
        return corpora, documents, tokenizer

    @property
    def resources(self) -> Resources:
        """Processes and memory for tokenizing."""
        trainer = self.config["trainer"]
        return Resources(trainer["data_workers"], trainer["data_memory"])

    @property
    def _filters(self) -> Pipeline | None:
        """The config's filters; None if it has none."""
        machine, choices = self.config["trainer"], self.config.get("filter") or {}
        where = self.cache, self.config["data"]["val_fraction"]
        return Pipeline(choices, *where, machine["data_workers"], machine["data_engine"]) if choices else None

    def tokenizer(self, source: Source) -> Tokenizer:
        """Return the trained tokenizer alone, without the corpus."""
        tokenizer, key = self._tokenizer()
        train_or_load_tokenizer(source, tokenizer, key, self.cache, self.config["data"]["val_fraction"])
        return tokenizer

    @property
    def template(self) -> Template:
        """The config's conversation template."""
        template: Template = self.part("template")
        return template

    def chat(self, source: Source) -> tuple[Tokenizer, Template]:
        """Return the trained tokenizer with the template's special tokens, and the template."""
        template = self.template
        return with_special_tokens(self.tokenizer(source), template), template

    def _tokenizer(self) -> tuple[Tokenizer, str]:
        """Return the untrained tokenizer and its cache key: name, source digest and knobs."""
        choice = PartChoice.of(self.config["tokenizer"])
        digest = kinds.tokenizers[choice.name].digest
        tokenizer = kinds.tokenizers.build(choice.name, choice.knobs)
        return tokenizer, json.dumps([choice.name, digest, dict(choice.knobs)], sort_keys=True)


@contextmanager
def told_of(name: str) -> Iterator[None]:
    """Begin the message of a UserError with the name of the source of a mixture that it is about."""
    try:
        yield
    except UserError as error:
        if not name:
            raise
        raise UserError(f"source {name}: {error}") from error
