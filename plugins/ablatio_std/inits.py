"""How matrices, embeddings and heads start; the placement's `gain` is multiplied in afterwards."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, inits, rule
from ablatio.model.parameter_roles import ParameterInfo

Std = Annotated[float, Positive, "standard deviation"]


@inits.register("normal", paper="arXiv:1810.04805")
def normal(weight: Tensor, info: ParameterInfo, generator: torch.Generator, *, std: Std = 0.02) -> None:
    """N(0, std^2) everywhere, as in BERT and LLaMA."""
    weight.normal_(0.0, std, generator=generator)


@inits.register("gpt2", paper="doi:10.5555/3295222.3295349")
def gpt2(
    weight: Tensor, info: ParameterInfo, generator: torch.Generator, *, std: Std = 0.02, residual_scale: bool = True
) -> None:
    """N(0, std^2); projections into the residual stream std / sqrt(2 n_layers), as two of them stand in each layer."""
    scale = 1 / math.sqrt(2 * info.n_layers) if info.residual and residual_scale else 1.0
    weight.normal_(0.0, std * scale, generator=generator)


@inits.register("llama_depth", paper="arXiv:2410.06511")
def llama_depth(weight: Tensor, info: ParameterInfo, generator: torch.Generator, *, std: Std = 0.02) -> None:
    """N(0, std^2); projections into the residual stream std / sqrt(2 (l + 1)) in layer l = 0, 1, ... (TorchTitan).

    So the stream's variance grows alike whatever the depth: a deeper model starts with the shallower one's layers.
    """
    depth = 2 * (info.layer + 1) if info.residual and info.layer is not None else 1
    weight.normal_(0.0, std / math.sqrt(depth), generator=generator)


@inits.register("zero_out", paper="arXiv:1901.09321")
def zero_out(weight: Tensor, info: ParameterInfo, generator: torch.Generator, *, std: Std = 0.02) -> None:
    """N(0, std^2), and projections into the residual stream 0: each sublayer starts silent (Fixup's last layers)."""
    if info.residual:
        weight.zero_()
    else:
        weight.normal_(0.0, std, generator=generator)


@inits.register("small_init", paper="arXiv:1910.05895")
def small_init(weight: Tensor, info: ParameterInfo, generator: torch.Generator) -> None:
    """N(0, 2 / (5 d_model)) everywhere: Xavier's variance of a feed-forward matrix of width 4 d_model."""
    weight.normal_(0.0, math.sqrt(2 / (5 * info.d_model)), generator=generator)


@inits.register("wang", paper="arXiv:2204.06745")
def wang(weight: Tensor, info: ParameterInfo, generator: torch.Generator) -> None:
    """N(0, 2 / (5 d_model)); projections into the residual stream have std 2 / (n_layers sqrt(d_model)): GPT-NeoX."""
    std = 2 / (info.n_layers * math.sqrt(info.d_model)) if info.residual else math.sqrt(2 / (5 * info.d_model))
    weight.normal_(0.0, std, generator=generator)


@inits.register("xavier", paper="https://proceedings.mlr.press/v9/glorot10a.html")
def xavier(
    weight: Tensor, info: ParameterInfo, generator: torch.Generator, *, uniform: bool = False, embedding_std: Std = 0.02
) -> None:
    """N(0, 2 / (fan_in + fan_out)), or U(-a, a) of the same variance; embeddings and head N(0, embedding_std^2).

    With placement=deepnorm value, output and feed-forward matrices get its beta: the paper's own init.
    """
    std = math.sqrt(2 / (info.fan_in + info.fan_out)) if info.role == "matrix" else embedding_std
    if uniform and info.role == "matrix":
        weight.uniform_(-math.sqrt(3) * std, math.sqrt(3) * std, generator=generator)
    else:
        weight.normal_(0.0, std, generator=generator)


@inits.register("deepnorm", paper="arXiv:2203.00555")
def deepnorm(weight: Tensor, info: ParameterInfo, generator: torch.Generator, *, embedding_std: Std = 0.02) -> None:
    """N(0, 2 beta^2 / (fan_in + fan_out)) for value, output and feed-forward matrices, beta = 1 for queries and keys.

    beta comes with placement=deepnorm.  Embeddings and head are N(0, embedding_std^2).
    """
    xavier(weight, info, generator, embedding_std=embedding_std)


rule(
    when="init.name == 'deepnorm' and placement.name != 'deepnorm'",
    why="init=deepnorm takes its beta from placement=deepnorm; beside placement={placement.name} it is init=xavier",
    fix="init=xavier",
)


@inits.register("orthogonal", paper="arXiv:1312.6120")
def orthogonal(
    weight: Tensor,
    info: ParameterInfo,
    generator: torch.Generator,
    *,
    gain: Annotated[float, Positive] = 1.0,
    embedding_std: Std = 0.02,
) -> None:
    """gain Q with orthonormal rows or columns, drawn uniformly; embeddings and head N(0, embedding_std^2)."""
    if info.role != "matrix":
        weight.normal_(0.0, embedding_std, generator=generator)
    else:  # several matrices in one parameter (experts) are drawn one after the other
        for matrix in weight.view(-1, *weight.shape[-2:]):
            nn.init.orthogonal_(matrix, gain, generator=generator)


@inits.register("t5", paper="arXiv:1910.10683")
class T5:
    """N(0, 1 / fan_in) for matrices, N(0, 1) for embedding and head, whose logits are multiplied with d_model^-1/2.

    Tables of relative positions are N(0, 1 / d_model).  With `fold` the factor d_head^-1/2 of the attention logits is
    part of q_proj's start and applied no more, as in T5; PaLM (arXiv:2204.02311, section 5) leaves it in the attention.
    """

    def __init__(self, *, fold: bool = True) -> None:
        self.fold, self.q_scale = fold, 1.0

    def __call__(self, weight: Tensor, info: ParameterInfo, generator: torch.Generator) -> None:
        if info.role == "matrix":
            std = info.fan_in**-0.5 * (self.q_scale if ".q_proj." in info.name else 1.0)
        else:
            std = 1.0 if info.fan_in == info.d_model else info.d_model**-0.5
        weight.normal_(0.0, std, generator=generator)

    def logit_scale(self, d_model: int) -> float:
        return d_model**-0.5

    def attention_scale(self, d_head: int) -> float:
        if not self.fold:
            return d_head**-0.5
        self.q_scale = d_head**-0.5
        return 1.0


@inits.register("mup", paper="arXiv:2203.03466")
class MuP:
    """Maximal update parametrisation for Adam: the best learning rate of a narrow model is that of a wide one.

    With m = d_model / base_width (the paper's table 8):
    embedding, head    N(0, std^2)       learning rate lr        logits / m
    matrices           N(0, std^2 / m)   learning rate lr / m    q k^T sqrt(base_head) / d_head
    vectors            as their part says, learning rate lr

    At d_model = base_width and d_head = base_head it is the init gpt2.  Widen at a fixed d_head, by more heads.
    """

    def __init__(
        self,
        *,
        base_width: Annotated[int, Positive, "d_model of the model whose rate was tuned"] = 128,
        base_head: Annotated[int, Positive, "its d_head"] = 32,
        std: Std = 0.02,
        residual_scale: Annotated[bool, "1 / sqrt(2 n_layers) on projections into the residual stream"] = True,
    ) -> None:
        self.base_width, self.base_head, self.std, self.residual_scale = base_width, base_head, std, residual_scale

    def __call__(self, weight: Tensor, info: ParameterInfo, generator: torch.Generator) -> None:
        scale = 1 / math.sqrt(2 * info.n_layers) if info.residual and self.residual_scale else 1.0
        if info.role == "matrix":
            scale *= math.sqrt(self.base_width / info.d_model)
        weight.normal_(0.0, self.std * scale, generator=generator)

    def rate(self, info: ParameterInfo) -> float:
        """1 / m for what sums over the width: matrices, and readouts of a few numbers that a part calls a vector."""
        sums = info.role == "matrix" or (info.role == "vector" and info.fan_in == info.d_model)
        return self.base_width / info.d_model if sums else 1.0

    def logit_scale(self, d_model: int) -> float:
        return self.base_width / d_model

    def attention_scale(self, d_head: int) -> float:
        return math.sqrt(self.base_head) / d_head


rule(
    when="init.name == 'mup' and not facts.optimizer.entrywise",
    why="muP's rates are for optimizers whose step has the size lr in each weight, whatever the size of its gradient "
    "(Adam, Lion); optimizer={optimizer.name} steps otherwise, and its rate would not transfer",
    fix="optimizer=adamw",
)
