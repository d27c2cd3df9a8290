"""Combinations that are models of transformers' own: found, described in their terms, and renamed both ways."""

from collections.abc import Mapping
from typing import Any

from ablatio.interop.families.base import Family
from ablatio.interop.families.decoders import GPT2, OPT, Bloom, GPTNeoX, Llama, Mistral, Qwen2, Qwen3
from ablatio.interop.families.encoder_decoders import T5

# The first that fits is taken.
FAMILIES: tuple[type[Family], ...] = (Llama, Qwen2, Qwen3, GPT2, OPT, Bloom, GPTNeoX, T5)


def reader_of(model_type: str) -> type[Family]:
    """The family whose weights these are."""
    families: tuple[type[Family], ...] = (*FAMILIES, Mistral)
    return next(family for family in families if family.model_type == model_type)


def family_of(config: Mapping[str, Any], vocab_size: int, eos: int = 0) -> Family | None:
    """The model of theirs that this combination is, if there is one."""
    made = (family(config, vocab_size, eos) for family in FAMILIES)
    return next((family for family in made if not family.misfits()), None)


def incompatibilities(config: Mapping[str, Any], vocab_size: int) -> dict[str, list[str]]:
    """Why each family does not fit."""
    return {family.model_type: family(config, vocab_size).misfits() for family in FAMILIES}
