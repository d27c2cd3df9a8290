import torch
from torch import Tensor

from ablatio import inits
from ablatio.model.parameter_roles import ParameterInfo


@inits.register("flat", paper="https://proceedings.mlr.press/v9/glorot10a.html")
def flat(weight: Tensor, info: ParameterInfo, generator: torch.Generator, *, bound: float = 0.04) -> None:
    """w ~ U(-bound, bound), for every matrix."""
    weight.uniform_(-bound, bound, generator=generator)
