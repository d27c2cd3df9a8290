"""Activation checkpointing: which activations the forward pass stores for the backward pass."""

from typing import Annotated

from ablatio import Range, checkpointings
from ablatio.model.activation_checkpointing import recompute
from ablatio.model.language_model import LanguageModel


@checkpointings.register("none")
class Everything:
    """Stores all activations and recomputes nothing.  Source: plain backpropagation."""

    def apply(self, model: LanguageModel) -> None:
        pass


@checkpointings.register("full", paper="arXiv:1604.06174")
class Full:
    """Stores the residual stream (B, T, D) before each `segment` of layers, and recomputes the rest.

    L layers in segments of s need the memory of L / s streams and of the activations of s layers.  It is least near
    s = sqrt(L / r), if a layer's activations take the memory of r streams, about 20 to 40.  The time increases by one
    forward pass; FLOPs in summaries do not count recomputation.
    """

    def __init__(self, *, segment: Annotated[int, Range(1), "layers between two stored streams"] = 1) -> None:
        self.segment = segment

    def apply(self, model: LanguageModel) -> None:
        recompute(model, self.segment)
