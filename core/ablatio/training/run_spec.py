"""Specification of a run: what follows from its config, worked out once and handed on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatio.training.run_folder import run_id, with_own_tokenizer

if TYPE_CHECKING:
    from ablatio.data.types import Tokenizer
    from ablatio.model.cost.flops import Cost
    from ablatio.model.cost.memory import MemoryEstimate
    from ablatio.model.cost.parameters import Size
    from ablatio.model.language_model import LanguageModel


@dataclass(frozen=True)
class RunSpec:
    """The config of a run and its sizes; each is computed when it is first asked for, and then kept.

    config   resolved and checked: what the run uses
    public   the config as it may be written down, with values from the environment left open; None: as `config`
    ids      of the tokenizer that the run has made; None: counted on the untrained one, which has as many
    """

    config: Mapping[str, Any]
    public: Mapping[str, Any] | None = None
    ids: int | None = None

    @property
    def written(self) -> Mapping[str, Any]:
        """The config for config.json."""
        return self.config if self.public is None else self.public

    @cached_property
    def id(self) -> str:
        """Name of the run in its checkpoints: a hash of the settings that make its numbers."""
        return run_id(self.config)

    @cached_property
    def vocabulary(self) -> int:
        """Ids of the tokenizer, with the template's special tokens where the task writes them."""
        return vocabulary_of(self.config) if self.ids is None else self.ids

    @cached_property
    def length(self) -> int:
        """Tokens of a row."""
        from ablatio.model.cost.parameters import row_length

        return row_length(self.config)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of the rows of one optimizer step."""
        train = self.config["train"]
        return int(train["batch_size"] * train["accumulate"]) * self.length

    @cached_property
    def size(self) -> Size:
        """Parameters and forward FLOPs of the model; modules that a task attaches (a reward head) are not counted."""
        from ablatio.model.cost.parameters import measure

        return measure(self.config, self.vocabulary)

    @cached_property
    def parameters(self) -> int:
        """Parameters of the model, each counted once: `size.parameters`, in a fraction of its time."""
        from ablatio.model.cost.parameters import parameters

        return parameters(self.config, self.vocabulary)

    @cached_property
    def trainable(self) -> int:
        """Parameters that the optimizer gets."""
        from ablatio.model.cost.parameters import shape_of

        return _trainable(shape_of(self.config), self.vocabulary)

    def cost(self, row_length: int | None = None) -> Cost:
        """FLOPs of a token, with the weights that train, in rows of this length; None: `length`."""
        from ablatio.model.cost.flops import cost_of

        return cost_of(self.config, self.vocabulary, row_length)

    @property
    def train_flops(self) -> float:
        """FLOPs of all steps, forward and backward."""
        return self.cost().train * self.tokens_per_step * int(self.config["train"]["steps"])

    @cached_property
    def memory(self) -> MemoryEstimate:
        """Bytes of the training: with the weights that train alone, and with a reference where there is one."""
        from ablatio.model.cost.memory import memory_of
        from ablatio.model.peft.apply import is_tuned, tune

        copies = models_beside(self.config)
        method = (lambda model: tune(model, self.config, 0)) if is_tuned(self.config) else None
        try:
            return memory_of(self.config, self.vocabulary, method, copies)
        except Exception:  # a method may ask for the numbers in its tensors, which shapes do not have
            return memory_of(self.config, self.vocabulary, None, copies)

    def count_on(self, model: LanguageModel, row_length: int | None = None) -> None:
        """Compute size and cost on this model, untuned, so that none is built on shapes for them."""
        from ablatio.model.cost.flops import cost_of
        from ablatio.model.cost.parameters import measure
        from ablatio.model.meta_copy import meta_copy
        from ablatio.registry.kinds import checkpointings

        if not checkpointings.is_default(self.config.get("checkpointing") or {"name": checkpointings.default}):
            return  # what is computed a second time would be counted
        copied = meta_copy(model)
        measure(self.config, self.vocabulary, copied)
        cost_of(self.config, self.vocabulary, row_length, copied)

    def with_ids(self, ids: int) -> RunSpec:
        """The specification with the ids of the tokenizer that its task has made."""
        return self if ids == self.vocabulary else replace(self, ids=ids)

    def with_own_tokenizer(self, folder: Path) -> RunSpec:
        """The specification of the run in `folder`, with the tokenizer that lies there."""
        return replace(self, config=with_own_tokenizer(self.config, folder))


@lru_cache(4096)
def _trainable(shape: str, vocabulary: int) -> int:
    import torch

    from ablatio.model.cost.parameters import meta_model
    from ablatio.model.peft.apply import tune

    config = json.loads(shape)
    with torch.device("meta"):
        return tune(meta_model(config, vocabulary), config, 0).trainable


def vocabulary_of(config: Mapping[str, Any]) -> int:
    """Ids of the config's tokenizer and of the special tokens that its task writes; the tokenizer is not trained."""
    return int(untrained_tokenizer(config).vocab_size)


def untrained_tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    """The config's tokenizer with the special tokens that its task writes; it has the ids of the trained one."""
    from ablatio.data.chat import with_special_tokens
    from ablatio.registry import kinds

    def part(kind: str) -> Any:
        node = config[kind]
        registry = kinds.tokenizers if kind == "tokenizer" else kinds.templates
        return registry.build(node["name"], {k: v for k, v in node.items() if k != "name"})

    task: Any = kinds.tasks.target(config["task"]["name"])
    tokenizer: Tokenizer = part("tokenizer")
    if task.uses_template(config):
        tokenizer = with_special_tokens(tokenizer, part("template"))
    return tokenizer


def models_beside(config: Mapping[str, Any]) -> int:
    """Models that a run holds beside the one that trains: references of its task and of its alignment method."""
    from ablatio.registry import kinds

    copies = int(kinds.tasks[config["task"]["name"]].facts["copies"])
    method = (config.get("alignment") or {}).get("name")
    return copies + (method is not None and bool(kinds.alignments[method].facts["moves_reference"]))
