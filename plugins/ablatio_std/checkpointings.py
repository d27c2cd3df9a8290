"""What a forward pass keeps for the backward pass: everything, or the stream between layers alone."""

from typing import Annotated

from ablatio import Range, checkpointings
from ablatio.model.activation_checkpointing import recompute
from ablatio.model.language_model import LanguageModel


@checkpointings.register("none")
class Everything:
    """All activations are kept: nothing is computed twice.  Source: plain backpropagation."""

    def apply(self, model: LanguageModel) -> None:
        pass


@checkpointings.register("full", paper="arXiv:1604.06174")
class Full:
    """Of each `segment` of layers only the stream before it is kept, (B, T, D); the rest is computed once more.

    L layers in segments of s take L / s streams and the activations of s layers: least near s = sqrt(L / r), where
    those of a layer are r streams, some 20 to 40.  The time is that of one more forward pass; FLOPs in summaries count
    no work twice.
    """

    def __init__(self, *, segment: Annotated[int, Range(1), "layers between two streams that are kept"] = 1) -> None:
        self.segment = segment

    def apply(self, model: LanguageModel) -> None:
        recompute(model, self.segment)
