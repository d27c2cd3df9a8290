"""The knob `offload` of strategies."""

from typing import Annotated, Literal

Offload = Annotated[Literal["none", "cpu"], "where the optimizer has its state and updates weights: device or host"]
