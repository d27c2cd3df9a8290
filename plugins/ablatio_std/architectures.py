"""Which stacks there are and what each token may see."""

from ablatio import architectures
from ablatio.model.build import ModelBuilder
from ablatio.model.language_model import Encoder, EncoderDecoder, LanguageModel


@architectures.register("causal", paper="arXiv:1801.10198")
class Causal(LanguageModel):
    """A decoder alone: each token sees itself and what came before it; a source stands in front of its target."""

    mask, accepts, stacks, objective = "causal", ("next tokens", "source and target"), ("decoder",), "lm"

    def __init__(self, builder: ModelBuilder) -> None:
        super().__init__(builder, "causal")


@architectures.register("prefix", paper="arXiv:1905.03197")
class Prefix(LanguageModel):
    """A decoder alone that sees a source in both directions and its target causally (UniLM's seq-to-seq mask)."""

    mask, accepts, stacks, objective = "prefix", ("source and target",), ("decoder",), "prefix_lm"

    def __init__(self, builder: ModelBuilder) -> None:
        super().__init__(builder, "causal", opens=True)


@architectures.register("encoder_decoder", paper="arXiv:1706.03762")
class EncoderAndDecoder(EncoderDecoder):
    """An encoder that reads the source in both directions; a causal decoder attends to its states in each layer."""

    mask, accepts, stacks, objective = (
        "encoder_decoder",
        ("source and target",),
        ("encoder", "decoder"),
        "span_corruption",
    )

    def __init__(self, builder: ModelBuilder) -> None:
        super().__init__(builder)


@architectures.register("encoder", paper="arXiv:1810.04805")
class EncoderAlone(Encoder):
    """One stack in which each token sees all others; it fills blanks."""

    mask, accepts, stacks, objective = "full", ("blanks in place",), ("encoder",), "masked_lm"

    def __init__(self, builder: ModelBuilder) -> None:
        super().__init__(builder, "full", side="encoder")
