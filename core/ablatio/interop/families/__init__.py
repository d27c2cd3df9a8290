"""Combinations of parts that equal a transformers model class: detection, config.json, weights in both directions."""

from collections.abc import Mapping
from typing import Any

from ablatio.interop.families.base import Family
from ablatio.interop.families.decoders import GPT2, OPT, Bloom, GPTNeoX, Llama, Qwen2
from ablatio.interop.families.encoder_decoders import T5
from ablatio.interop.families.layered import Gemma3, Mistral, Qwen3, SmolLM3

# In order of preference: the first family that fits is used.
FAMILIES: tuple[type[Family], ...] = (
    Llama, Qwen2, Qwen3, Mistral, SmolLM3, Gemma3, GPT2, OPT, Bloom, GPTNeoX, T5,
)  # fmt: skip


def reader_of(model_type: str) -> type[Family]:
    """Return the family that reads weights of this transformers `model_type`."""
    return next(family for family in FAMILIES if family.model_type == model_type)


def family_of(config: Mapping[str, Any], vocab_size: int, eos: int = 0) -> Family | None:
    """Return the transformers family that computes exactly this combination, or None."""
    families = (family(config, vocab_size, eos) for family in FAMILIES)
    return next((family for family in families if not family.incompatibilities()), None)


def incompatibilities(config: Mapping[str, Any], vocab_size: int) -> dict[str, list[str]]:
    """Return the settings that each family does not support, by its model type."""
    return {family.model_type: family(config, vocab_size).incompatibilities() for family in FAMILIES}
