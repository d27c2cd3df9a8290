"""Build a language model from a config."""

from collections.abc import Mapping
from typing import Any

from ablatio.errors import UserError
from ablatio.model.builder import ModelBuilder
from ablatio.model.language_model import LanguageModel


def build_model(config: Mapping[str, Any], vocab_size: int, eos: int = 0, seed: int = 0) -> LanguageModel:
    """Build a model from a resolved config and the number of its tokenizer's ids."""
    builder = ModelBuilder(config, vocab_size, eos, seed)
    if builder.dims.d_model % builder.dims.n_heads and builder.dims.d_head is None:
        raise UserError(
            f"model.n_heads={builder.dims.n_heads} does not divide model.d_model={builder.dims.d_model}\n"
            f"    try: model.n_heads=1, or set model.d_head"
        )
    model: LanguageModel = builder.model()
    return model
