from ablatio import architectures
from ablatio.model.builder import ModelBuilder
from ablatio.model.language_model import LanguageModel


@architectures.register("decoder", paper="arXiv:1801.10198")
class Decoder(LanguageModel):
    """One causal stack that learns from next tokens alone: each token sees itself and what came before it."""

    mask, accepts, stacks, objective = "causal", ("next tokens",), ("decoder",), "lm"

    def __init__(self, builder: ModelBuilder) -> None:
        super().__init__(builder, "causal")
