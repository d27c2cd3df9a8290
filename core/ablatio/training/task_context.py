"""What a task is made from: the config, the seeds, which rows each batch has, and how its tokenizer learns."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ablatio.data.chat import Template, with_special_tokens
from ablatio.data.corpus import Corpus, prepare, train_or_load_tokenizer
from ablatio.data.order import RowPlan
from ablatio.data.types import Source, Tokenizer
from ablatio.model.builder import PartChoice
from ablatio.model.cost.parameters import row_length
from ablatio.model.rl.answers import Answer
from ablatio.registry import kinds
from ablatio.registry.registry import REGISTRIES
from ablatio.storage.paths import cache_root

OpenReward = Callable[[str, Tokenizer], Callable[[Sequence[Answer]], Tensor]]


class Seeds:
    """Independent streams of chance: init, data, dropout; each is `seed` unless it was set."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        def pick(name: str) -> int:
            value = config["seeds"][name]
            return int(config["seed"] if value is None else value)

        self.init, self.data, self.dropout = pick("init"), pick("data"), pick("dropout")


@dataclass(frozen=True, slots=True)
class TaskContext:
    """config: of the run, resolved and checked; length: tokens of a row; plan: which rows each batch has.

    open_reward  turns the folder of a run of task=reward into a function of answers; None outside a run
    """

    config: Mapping[str, Any]
    plan: RowPlan
    open_reward: OpenReward | None = None
    length: int = field(init=False)
    seeds: Seeds = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", row_length(self.config))
        object.__setattr__(self, "seeds", Seeds(self.config))

    @property
    def cache(self) -> Path:
        """The folder for what is made once and used by many runs."""
        return cache_root()

    def part(self, kind: str, **wiring: Any) -> Any:
        """The config's option of a kind, made."""
        choice = PartChoice.of(self.config[kind])
        return REGISTRIES[kind].build(choice.name, choice.knobs, **wiring)

    def source(self) -> Source:
        made: Source = self.part("source")
        return made

    def corpus(self, source: Source) -> tuple[Corpus, Tokenizer]:
        """The source as streams of tokens, and the tokenizer, which learned on its training documents."""
        tokenizer, key = self._tokenizer()
        return prepare(source, tokenizer, key, self.cache, self.config["data"]["val_fraction"]), tokenizer

    def tokenizer(self, source: Source) -> Tokenizer:
        """The tokenizer alone."""
        tokenizer, key = self._tokenizer()
        train_or_load_tokenizer(source, tokenizer, key, self.cache, self.config["data"]["val_fraction"])
        return tokenizer

    @property
    def template(self) -> Template:
        """The form of the conversations."""
        made: Template = self.part("template")
        return made

    def chat(self, source: Source) -> tuple[Tokenizer, Template]:
        """The tokenizer with the signs of the template, and the template."""
        template = self.template
        return with_special_tokens(self.tokenizer(source), template), template

    def _tokenizer(self) -> tuple[Tokenizer, str]:
        """Untrained, and what names it with its knobs and version."""
        choice = PartChoice.of(self.config["tokenizer"])
        digest = kinds.tokenizers[choice.name].digest
        made = kinds.tokenizers.build(choice.name, choice.knobs)
        return made, json.dumps([choice.name, digest, dict(choice.knobs)], sort_keys=True)
