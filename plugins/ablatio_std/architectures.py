"""Which stacks there are and what each token may see."""

from ablatio import architectures
from ablatio.model.assembly import Assembly
from ablatio.model.language_model import LanguageModel


@architectures.register("causal", paper="arXiv:1801.10198")
def causal(assembly: Assembly) -> LanguageModel:
    """A decoder alone: each token sees itself and what came before it."""
    return LanguageModel(assembly, mask="causal")
