"""Build a model without a run: `ablatio.build_model`."""

from typing import TYPE_CHECKING

from ablatio.api import adapter
from ablatio.api.session import composing, computing
from ablatio.api.settings import words_of

if TYPE_CHECKING:
    from torch import nn


def build_model(*overrides: str) -> "nn.Module":
    """Build the model that `ablatio.train` with these settings begins with: an nn.Module with its initial weights.

        model = ablatio.build_model("preset=llama2", "size=tiny")
        logits = model(tokens)  # tokens: (B, T), integers; logits: (B, T, vocabulary)

    Raises ConfigError with all problems of the settings, and EnvironmentFault if training the model needs more memory
    than this machine has.
    """
    words = words_of("build_model", overrides)
    with composing():
        composed = adapter.composed(words)
    with computing():
        return adapter.built(composed.config)
