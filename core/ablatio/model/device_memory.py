"""Memory that the training of a run takes on one of its devices."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory in bytes that a run takes on one device; `Strategy.memory` computes it for each strategy.

    weights      of the model, in 32 bits
    gradients    of the trainable weights: as many bytes as these
    optimizer    state of the optimizer
    beside       weights of further models, such as a reference
    activations  stored for the backward pass of the rows of a batch
    layer        weights of the largest layer, a part of `weights`
    outside      weights outside of layers (embedding, head), a part of `weights`
    layers       weights of each layer, in order; (): not known
    rows         rows of a batch that the activations are of; 0: not known
    buffers      copies that a strategy makes: what it sends, and weights that are whole for a while
    host         memory of the host
    """

    weights: int
    gradients: int
    optimizer: int
    beside: int
    activations: int
    layer: int
    outside: int
    layers: tuple[int, ...] = ()
    rows: int = 0
    buffers: int = 0
    host: int = 0

    @property
    def lasting(self) -> int:
        """Memory held throughout training: without activations and buffers."""
        return self.weights + self.gradients + self.optimizer + self.beside

    @property
    def total(self) -> int:
        """All memory of the device at its peak."""
        return self.lasting + self.activations + self.buffers
