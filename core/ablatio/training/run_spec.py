"""Specification of a run: its config and what is derived from it, each computed once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatio.config.schema import cast
from ablatio.registry.value_schedules import ValueSchedule, mentions_schedule, schedules_of, settled
from ablatio.training.run_folder import run_id, with_own_tokenizer
from ablatio.training.timeline import LENGTH, Timeline, with_values

if TYPE_CHECKING:
    from ablatio.data.types import Tokenizer
    from ablatio.model.cost.flops import Cost, Work
    from ablatio.model.cost.memory import MemoryEstimate
    from ablatio.model.cost.parameters import Size
    from ablatio.model.language_model import LanguageModel

MEASURED = 17  # distinct costs that are measured for one run
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSpec:
    """The config of a run and its sizes; each size is computed on first use and kept.

    config  resolved and checked: what the run uses; of a schedule given in it, the largest value is kept here
    public  the config as it may be written to a file, with values from the environment left open; None: same as
            `config`
    ids     number of token ids of the trained tokenizer; None: counted on the untrained one, which has the same number
    schedules  of settings that change during training, by path; None: those in `config`
    """

    config: Mapping[str, Any]
    public: Mapping[str, Any] | None = None
    ids: int | None = None
    schedules: Mapping[str, ValueSchedule] | None = None

    def __post_init__(self) -> None:
        if self.schedules is None:
            # A config that was read from the file of a job has its schedules as text.
            given = cast(self.config) if mentions_schedule(self.config) else self.config
            object.__setattr__(self, "schedules", schedules_of(given))
            object.__setattr__(self, "config", settled(given) if self.schedules else given)

    @property
    def given(self) -> Mapping[str, Any]:
        """The config with its schedules, as it was given."""
        return with_values(self.config, self.schedules or {})

    @property
    def written(self) -> Mapping[str, Any]:
        """The config to write to config.json."""
        return self.given if self.public is None else self.public

    @cached_property
    def timeline(self) -> Timeline:
        """Values of the scheduled settings at each step."""
        return Timeline(self.config, self.schedules or {})

    def at(self, step: int) -> RunSpec:
        """The specification without schedules, with the values that step number `step` (from 0) trains with."""
        return replace(self, config=self.timeline.config_at(step), schedules={})

    @cached_property
    def id(self) -> str:
        """Id of the run in its checkpoints: a hash of the settings that affect its numbers."""
        return run_id(self.given)

    @cached_property
    def vocabulary(self) -> int:
        """Number of token ids, with the template's special tokens if the task writes them."""
        return vocabulary_of(self.config) if self.ids is None else self.ids

    @cached_property
    def length(self) -> int:
        """Tokens per row, the longest if they change."""
        from ablatio.model.cost.parameters import row_length

        return row_length(self.config)

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step, batch_size * accumulate * length; the mean if they change."""
        steps = int(self.config["train"]["steps"])
        return round(self.timeline.plan.tokens(steps, self.length) / steps)

    @cached_property
    def size(self) -> Size:
        """Parameters and forward FLOPs of the model, without modules that the task attaches (a reward head)."""
        from ablatio.model.cost.parameters import measure

        return measure(self.config, self.vocabulary)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters, shared ones counted once; same as `size.parameters`, but much faster."""
        from ablatio.model.cost.parameters import parameters

        return parameters(self.config, self.vocabulary)

    @cached_property
    def trainable(self) -> int:
        """Number of parameters that the optimizer updates."""
        from ablatio.model.cost.parameters import shape_of

        return _trainable(shape_of(self.config), self.vocabulary)

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of the weights as an artifact stores them: quantized ones as codes, the others in 16 bits."""
        from ablatio.model.cost.parameters import shape_of

        node = self.config.get("quantization") or {}
        rounded = {**self.config, "quantization": {**node, "qat": False}} if node.get("qat") else self.config
        return _stored(shape_of(rounded), self.vocabulary)

    def cost(self, row_length: int | None = None) -> Cost:
        """FLOPs per token, given which weights train, in rows of `row_length` tokens; None: `length`."""
        from ablatio.model.cost.flops import cost_of

        return cost_of(self.config, self.vocabulary, row_length)

    @property
    def train_flops(self) -> float:
        """FLOPs of the whole training, forward and backward."""
        return self.flops(int(self.config["train"]["steps"]), self._trained)

    @property
    def full_steps(self) -> float:
        """Number of steps with the largest rows and batches that cost as much as the run: `train.steps` if none change.

        A timed step has the largest values.
        """
        train = self.config["train"]
        if not self.schedules:
            return float(train["steps"])
        full = self.cost().train * float(train["batch_size"] * train["accumulate"] * self.length)
        return self.train_flops / full

    def _trained(self, steps: int) -> Work:
        from ablatio.model.cost.flops import Work

        return Work.trained(self.timeline.plan.tokens(steps, self.length))

    def flops(self, steps: int, work: Callable[[int], Work], row_length: int | None = None) -> float:
        """FLOPs of the first `steps` steps, each at the cost of its own row length, window and the like.

        work        tokens that the first n steps pass through the model
        row_length  tokens per row of the task; None: `length`

        Where more than MEASURED values follow one another (a line), the cost is measured at some and interpolated.
        """
        from ablatio.model.cost.flops import cost_of, interpolated

        stretches = list(self.timeline.stretches(steps))
        if len(stretches) == 1 and not stretches[0][2]:
            return self.cost(row_length).of(work(steps))

        def cost(number: int) -> Cost:
            values = stretches[number][2]
            return cost_of(with_values(self.config, values), self.vocabulary, values.get(LENGTH, row_length))

        costs = interpolated(cost, len(stretches), MEASURED)
        parts = (work(end) + work(first) * -1 for first, end, _ in stretches)
        return sum(c.of(part) for c, part in zip(costs, parts, strict=True))

    @cached_property
    def memory(self) -> MemoryEstimate:
        """Training memory in bytes: gradients and optimizer state for trainable weights only; includes references."""
        from ablatio.model.cost.memory import memory_of
        from ablatio.model.peft.apply import trains_all, tune

        copies = models_beside(self.config)
        method = (lambda model: tune(model, self.config, 0)) if not trains_all(self.config) else None
        try:
            return memory_of(self.config, self.vocabulary, method, copies)
        except Exception as error:  # a peft method may read values of tensors, which the meta device does not have
            _log.warning(
                "memory is estimated without quantization and peft, which cannot be applied on the meta device: %s",
                error,
            )
            return memory_of(self.config, self.vocabulary, None, copies)

    def count_on(self, model: LanguageModel, row_length: int | None = None) -> None:
        """Compute size and cost on this model before tuning, so that no second model is built for counting."""
        from ablatio.model.cost.flops import cost_of
        from ablatio.model.cost.parameters import measure
        from ablatio.model.on_meta import meta_copy
        from ablatio.registry.kinds import checkpointings

        if not checkpointings.is_default(self.config.get("checkpointing") or {"name": checkpointings.default}):
            return  # recomputed activations would be counted twice
        copied = meta_copy(model)
        measure(self.config, self.vocabulary, copied)
        cost_of(self.config, self.vocabulary, row_length, copied)

    def with_ids(self, ids: int) -> RunSpec:
        """Return the specification with the number of token ids of the trained tokenizer."""
        return self if ids == self.vocabulary else replace(self, ids=ids)

    def with_own_tokenizer(self, folder: Path) -> RunSpec:
        """Return the specification with the tokenizer that is stored in `folder`."""
        return replace(self, config=with_own_tokenizer(self.config, folder))


@lru_cache(4096)
def _trainable(shape: str, vocabulary: int) -> int:
    """Count trainable parameters on the meta device; `shape`: the settings that determine them, as JSON."""
    from ablatio.model.cost.parameters import meta_model
    from ablatio.model.on_meta import on_meta
    from ablatio.model.peft.apply import tune

    config = json.loads(shape)
    with on_meta():
        return tune(meta_model(config, vocabulary), config, 0).trainable


@lru_cache(4096)
def _stored(shape: str, vocabulary: int) -> int:
    """Count the bytes of the stored weights on the meta device; `shape` as in `_trainable`."""
    from ablatio.model.cost.artifact import stored_bytes
    from ablatio.model.cost.parameters import meta_model
    from ablatio.model.on_meta import on_meta
    from ablatio.model.peft.apply import tune

    config = json.loads(shape)
    with on_meta():
        tune(model := meta_model(config, vocabulary), config, 0)
    return stored_bytes(model)


def vocabulary_of(config: Mapping[str, Any]) -> int:
    """Number of token ids of a config, with the special tokens that its task writes; trains no tokenizer."""
    return int(untrained_tokenizer(config).vocab_size)


def untrained_tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    """Build the config's tokenizer without training it, with the special tokens that its task writes.

    It has as many ids as the trained one.
    """
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
    """Number of models held in memory beside the trained one: references of the task and the alignment method."""
    from ablatio.registry import kinds

    copies = int(kinds.tasks[config["task"]["name"]].facts["copies"])
    method = (config.get("alignment") or {}).get("name")
    return copies + (method is not None and bool(kinds.alignments[method].facts["moves_reference"]))
