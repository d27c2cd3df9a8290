"""How matrices, embeddings and heads start."""

import math
from typing import Annotated

import torch
from torch import Tensor

from ablatio import Positive, inits
from ablatio.model.roles import ParameterInfo


@inits.register("gpt2", paper="doi:10.5555/3295222.3295349")
def gpt2(
    weight: Tensor,
    info: ParameterInfo,
    generator: torch.Generator,
    *,
    std: Annotated[float, Positive] = 0.02,
    residual_scale: bool = True,
) -> None:
    """N(0, std^2); projections into the residual stream std / sqrt(2 n_layers), as two of them stand in each layer."""
    scale = 1 / math.sqrt(2 * info.n_layers) if info.residual and residual_scale else 1.0
    weight.normal_(0.0, std * scale, generator=generator)
