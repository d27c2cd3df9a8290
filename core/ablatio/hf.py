"""`import ablatio.hf` lets transformers' Auto classes load exported folders (ablatio.interop.transformers_model)."""

from ablatio.interop.transformers_config import AblatioConfig
from ablatio.interop.transformers_model import AblatioForCausalLM, load

__all__ = ["AblatioConfig", "AblatioForCausalLM", "load"]
