from typing import Annotated

from torch import Tensor

from ablatio import Positive, activations


@activations.register("softsign", paper="https://proceedings.mlr.press/v9/glorot10a.html")
def softsign(x: Tensor, *, width: Annotated[float, Positive, "w"] = 1.0) -> Tensor:
    """y = x / (w + |x|), elementwise."""
    return x / (width + x.abs())
