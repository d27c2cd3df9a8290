"""Architectures: the stacks of a model and the tokens that each token attends to."""

from typing import Annotated

from ablatio import NonNegative, architectures
from ablatio.model.builder import ModelBuilder
from ablatio.model.language_model import Encoder, EncoderDecoder, LanguageModel


@architectures.register("causal", paper="arXiv:1801.10198")
class Causal(LanguageModel):
    """Decoder-only: each token attends to itself and earlier tokens; a source is placed in front of its target."""

    mask, accepts, stacks, objective = "causal", ("next tokens", "source and target"), ("decoder",), "lm"

    def __init__(self, builder: ModelBuilder) -> None:
        super().__init__(builder, "causal")


@architectures.register("prefix", paper="arXiv:1905.03197")
class Prefix(LanguageModel):
    """Decoder-only with bidirectional attention inside the source, causal in the target (UniLM's seq-to-seq mask)."""

    mask, accepts, stacks, objective = (
        "prefix",
        ("source and target", "blanks under masks"),
        ("decoder",),
        "prefix_lm",
    )

    def __init__(self, builder: ModelBuilder) -> None:
        super().__init__(builder, "causal", opens=True)


@architectures.register("encoder_decoder", paper="arXiv:1706.03762")
class EncoderAndDecoder(EncoderDecoder):
    """A bidirectional encoder of the source, and a causal decoder whose layers attend to the encoder's states.

    T5 (arXiv:1910.10683) begins a target with its padding token and ends a source with its end-of-document token.
    """

    mask, accepts, stacks, objective = (
        "encoder_decoder",
        ("source and target",),
        ("encoder", "decoder"),
        "span_corruption",
    )

    def __init__(
        self,
        builder: ModelBuilder,
        *,
        decoder_start: Annotated[
            int | None, NonNegative, "id of the decoder's first input; null: the end-of-document token"
        ] = None,
        source_end: Annotated[bool, "the end-of-document token ends a source, rather than beginning it"] = False,
    ) -> None:
        super().__init__(builder, decoder_start=decoder_start, source_end=source_end)


@architectures.register("encoder", paper="arXiv:1810.04805")
class EncoderAlone(Encoder):
    """Encoder-only: each token attends to all others; predicts masked tokens at their positions."""

    mask, accepts, stacks, objective = "full", ("blanks in place",), ("encoder",), "masked_lm"

    def __init__(self, builder: ModelBuilder) -> None:
        super().__init__(builder, "full", side="encoder")
