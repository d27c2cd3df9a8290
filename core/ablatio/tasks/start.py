"""Where a task's model gets its initial weights."""

from collections.abc import Mapping
from typing import Any

from ablatio.data.types import Tokenizer
from ablatio.model.assembly import build_model
from ablatio.model.language_model import LanguageModel


def start_model(config: Mapping[str, Any], tokenizer: Tokenizer, seed: int) -> LanguageModel:
    """The model of a config before its task's first step; the one place that decides on its weights.

    They are drawn anew: those of a part depend on its name and the seed alone.
    """
    return build_model(config, tokenizer.vocab_size, tokenizer.eos, seed)
