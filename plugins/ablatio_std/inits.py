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


@inits.register("t5", paper="arXiv:1910.10683")
class T5Init:
    """N(0, 1 / fan_in), so that every product has the variance of its input; the embedding of tokens is N(0, 1).

    The head, which is the embedding, divides by sqrt(d_model).  With `fold` the factor d_head^-1/2 of the attention
    logits is part of q_proj's start and applied no more, as in T5; PaLM (arXiv:2204.02311, section 5) leaves it there.
    """

    def __init__(self, *, fold: bool = True) -> None:
        self.fold, self.q_scale = fold, 1.0

    def __call__(self, weight: Tensor, info: ParameterInfo, generator: torch.Generator) -> None:
        std = 1.0 if info.name.endswith("embed_tokens.weight") else info.fan_in**-0.5
        weight.normal_(0.0, std * (self.q_scale if ".q_proj." in info.name else 1.0), generator=generator)

    def logit_scale(self, d_model: int) -> float:
        return d_model**-0.5

    def attention_scale(self, d_head: int) -> float:
        if not self.fold:
            return d_head**-0.5
        self.q_scale = d_head**-0.5
        return 1.0
