"""Activation checkpointing: which activations the forward pass stores for the backward pass."""

from typing import Annotated, Literal

from ablatio import Range, checkpointings, rule
from ablatio.model.activation_checkpointing import offload, recompute, recompute_parts
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
    forward pass.  `ablatio size` counts the recomputed FLOPs; those of summaries are the model's, without them.
    """

    def __init__(self, *, segment: Annotated[int, Range(1), "layers between two stored streams"] = 1) -> None:
        self.segment = segment

    def apply(self, model: LanguageModel) -> None:
        recompute(model, self.segment)


@checkpointings.register("selective", paper="arXiv:2205.05198")
class Selective:
    """Recomputes these parts of each layer, but for the results of the operations in `stored`.

    By default all of attention is recomputed except its products with weights: scores, softmax, dropout, rotation and
    weighted sum, as in Megatron-LM.  That costs the FLOPs of the attention core; what it saves is large where the core
    stores (B, H, T, S) tensors (a trained bias, a softcap, sinks), and little where a fused kernel stores none.
    stored=[] recomputes the parts from their input.  Names are those of torch's ATen operations.
    """

    def __init__(
        self,
        *,
        parts: Annotated[tuple[Literal["attention", "mlp"], ...], "kinds of parts that are recomputed"] = (
            "attention",
        ),
        stored: Annotated[tuple[str, ...], "operations whose results are stored: products with weights"] = (
            "mm",
            "addmm",
        ),
    ) -> None:
        self.parts, self.stored = parts, stored

    def apply(self, model: LanguageModel) -> None:
        recompute_parts(model, self.parts, self.stored)


rule(
    when="checkpointing.name == 'selective' and trainer.compile",
    why="checkpointing=selective chooses among single operations, which torch.compile fuses",
    fix="trainer.compile=false",
    where="checkpointing",
)


@checkpointings.register("offload", paper="arXiv:1602.08124")
class Offload:
    """Stores the activations of the layers in the memory of the CPU and copies them back for the backward pass.

    Nothing is recomputed; the copies are queued beside the computation, over the bus of the GPU.  On a CPU it changes
    nothing.  By torch.autograd.graph's hooks on saved tensors
    """

    def apply(self, model: LanguageModel) -> None:
        offload(model)
