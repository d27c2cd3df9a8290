from typing import Annotated, Any

import torch

from ablatio import Fraction, Positive, optimizers


@optimizers.register("rmsprop", decays=False)
def rmsprop(
    groups: list[dict[str, Any]],
    *,
    lr: Annotated[float, Positive] = 1e-3,
    alpha: Annotated[float, Fraction, "decay of the mean square"] = 0.99,
    eps: Annotated[float, Positive] = 1e-8,
) -> torch.optim.Optimizer:
    """w <- w - lr g / (sqrt(v) + eps), v the running mean of g^2.

    Source: Tieleman and Hinton 2012, Lecture 6.5.
    """
    return torch.optim.RMSprop([dict(group) for group in groups], lr=lr, alpha=alpha, eps=eps)
