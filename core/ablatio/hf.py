"""`import ablatio.hf` lets transformers' Auto classes load exported folders (ablatio.interop.transformers_model)."""

from ablatio.interop.transformers_model import AblatioConfig, AblatioForCausalLM, load

__all__ = ["AblatioConfig", "AblatioForCausalLM", "load"]
