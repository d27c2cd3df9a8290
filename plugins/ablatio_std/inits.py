"""Initialization of matrices, embeddings and heads; the placement's `gain` multiplies the result afterwards."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, inits, rule
from ablatio.model.parameter_roles import ParameterInfo

Std = Annotated[float, Positive, "standard deviation"]


@inits.register("normal", paper="arXiv:1810.04805")
def normal(weight: Tensor, info: ParameterInfo, generator: torch.Generator, *, std: Std = 0.02) -> None:
    """N(0, std^2) for all matrices, as in BERT and LLaMA."""
    weight.normal_(0.0, std, generator=generator)


@inits.register("gpt2", paper="https://openai.com/index/better-language-models/")
def gpt2(
    weight: Tensor, info: ParameterInfo, generator: torch.Generator, *, std: Std = 0.02, residual_scale: bool = True
) -> None:
    """N(0, std^2); std / sqrt(2 n_layers) for projections into the residual stream, of which each layer has two."""
    # The sum of 2 n_layers branches then has the variance of one.
    scale = 1 / math.sqrt(2 * info.n_layers) if info.residual and residual_scale else 1.0
    weight.normal_(0.0, std * scale, generator=generator)


@inits.register("llama_depth", paper="arXiv:2410.06511")
def llama_depth(weight: Tensor, info: ParameterInfo, generator: torch.Generator, *, std: Std = 0.02) -> None:
    """N(0, std^2); std / sqrt(2 (l + 1)) for projections into the residual stream in layer l = 0, 1, ... (TorchTitan).

    The growth of the stream's variance does not depend on the number of layers: the first layers of a deep model start
    as those of a shallow one.
    """
    depth = 2 * (info.layer + 1) if info.residual and info.layer is not None else 1
    weight.normal_(0.0, std / math.sqrt(depth), generator=generator)


@inits.register("zero_out", paper="arXiv:1901.09321")
def zero_out(weight: Tensor, info: ParameterInfo, generator: torch.Generator, *, std: Std = 0.02) -> None:
    """N(0, std^2), and 0 for projections into the residual stream: each sublayer starts with the output 0 (Fixup)."""
    if info.residual:
        weight.zero_()
    else:
        weight.normal_(0.0, std, generator=generator)


@inits.register("mimetic", paper="arXiv:2305.09828")
def mimetic(
    weight: Tensor,
    info: ParameterInfo,
    generator: torch.Generator,
    *,
    beta: Annotated[float, Positive, "size of the identity in the product of values and output"] = 0.05,
    noise: Annotated[float, Positive, "standard deviation of the noise on both"] = 0.01,
    std: Std = 0.02,
) -> None:
    """sqrt(beta) I + noise for values and -sqrt(beta) I + noise for the output of attention; else as zero_out.

    Their product is about -beta I, as in trained models: attention begins by taking away the mean of what it sees.
    The form of the NanoGPT speedrun (https://github.com/KellerJordan/modded-nanogpt/pull/214); the paper factorizes the
    product for each head, and initializes queries and keys likewise, for models whose positions are learned.
    """
    module = info.name.split(".")[-2]
    if module not in ("v_proj", "o_proj"):
        return zero_out(weight, info, generator, std=std)
    weight.normal_(0.0, noise, generator=generator)
    weight.diagonal().add_(math.sqrt(beta) if module == "v_proj" else -math.sqrt(beta))
    return None


OwnStd = Annotated[float | None, Positive, "standard deviation; null: `std`"]


@inits.register("by_matrix", paper="https://github.com/KellerJordan/modded-nanogpt/pull/267")
def by_matrix(
    weight: Tensor,
    info: ParameterInfo,
    generator: torch.Generator,
    *,
    std: Annotated[float, Positive, "standard deviation of all that has none of its own"] = 0.02,
    attention_out: OwnStd = 0.026,
    mlp_in: OwnStd = 0.031,
    mlp_out: OwnStd = 0.031,
    table: Annotated[float | None, Positive, "of embeddings and head; null: `std`"] = None,
) -> None:
    """N(0, s^2) with a standard deviation s for each kind of matrix.

    mlp_in is that of gate and up, attention_out and mlp_out those of o and down.  The defaults are those of the records
    of MuonH and AdamH on the optimizer track of the NanoGPT speedrun.
    """
    module = info.name.split(".")[-2] if "." in info.name else ""
    of_module = {"o_proj": attention_out, "gate_proj": mlp_in, "up_proj": mlp_in, "down_proj": mlp_out}
    own = table if info.role in ("embedding", "head") else of_module.get(module)
    weight.normal_(0.0, std if own is None else own, generator=generator)


@inits.register("small_init", paper="arXiv:1910.05895")
def small_init(weight: Tensor, info: ParameterInfo, generator: torch.Generator) -> None:
    """N(0, 2 / (5 d_model)) for all matrices: Xavier's variance of a feed-forward matrix of width 4 d_model."""
    weight.normal_(0.0, math.sqrt(2 / (5 * info.d_model)), generator=generator)


@inits.register("wang", paper="arXiv:2204.06745")
def wang(weight: Tensor, info: ParameterInfo, generator: torch.Generator) -> None:
    """N(0, 2 / (5 d_model)); std 2 / (n_layers sqrt(d_model)) for projections into the residual stream (GPT-NeoX)."""
    std = 2 / (info.n_layers * math.sqrt(info.d_model)) if info.residual else math.sqrt(2 / (5 * info.d_model))
    weight.normal_(0.0, std, generator=generator)


@inits.register("xavier", paper="https://proceedings.mlr.press/v9/glorot10a.html")
def xavier(
    weight: Tensor, info: ParameterInfo, generator: torch.Generator, *, uniform: bool = False, embedding_std: Std = 0.02
) -> None:
    """N(0, 2 / (fan_in + fan_out)), or U(-a, a) of the same variance; embeddings and head N(0, embedding_std^2).

    With placement=deepnorm, whose gain beta multiplies value, output and feed-forward matrices, it is DeepNorm's init.
    """
    std = math.sqrt(2 / (info.fan_in + info.fan_out)) if info.role == "matrix" else embedding_std
    if uniform and info.role == "matrix":
        # U(-a, a) has the variance a^2 / 3.
        weight.uniform_(-math.sqrt(3) * std, math.sqrt(3) * std, generator=generator)
    else:
        weight.normal_(0.0, std, generator=generator)


@inits.register("deepnorm", paper="arXiv:2203.00555")
def deepnorm(weight: Tensor, info: ParameterInfo, generator: torch.Generator, *, embedding_std: Std = 0.02) -> None:
    """N(0, 2 beta^2 / (fan_in + fan_out)) for value, output and feed-forward matrices, beta = 1 for queries and keys.

    beta is the gain of placement=deepnorm.  Embeddings and head are N(0, embedding_std^2).
    """
    xavier(weight, info, generator, embedding_std=embedding_std)


rule(
    when="init.name == 'deepnorm' and placement.name != 'deepnorm'",
    why="init=deepnorm needs the beta of placement=deepnorm; with placement={placement.name} it equals init=xavier",
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
    """gain Q, Q uniformly random with orthonormal rows or columns; embeddings and head N(0, embedding_std^2)."""
    if info.role != "matrix":
        weight.normal_(0.0, embedding_std, generator=generator)
    else:  # a parameter that stacks several matrices (experts): each is orthogonal by itself
        for matrix in weight.view(-1, *weight.shape[-2:]):
            nn.init.orthogonal_(matrix, gain, generator=generator)


@inits.register("t5", paper="arXiv:1910.10683")
class T5:
    """N(0, 1 / fan_in) for matrices, N(0, 1) for embedding and head, whose logits are multiplied with d_model^-1/2.

    Tables of relative positions are N(0, 1 / d_model).  With `fold` the factor d_head^-1/2 of the attention logits is
    folded into the initial q_proj and not applied in the attention, as in T5; without, it stays in the attention, as in
    PaLM (arXiv:2204.02311, section 5), and so it does where the attention normalizes its queries (qk_norm).
    """

    def __init__(self, *, fold: Annotated[bool, "fold the factor d_head^-1/2 into the initial q_proj"] = True) -> None:
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
        # Kept for __call__: the model asks for the scale of the attention before it initializes the weights.
        self.q_scale = d_head**-0.5
        return 1.0


@inits.register("mup", paper="arXiv:2203.03466")
class MuP:
    """Maximal update parametrization for Adam: the best learning rate of a narrow model is also that of a wide one.

    With m = d_model / base_width (the paper's table 8):
    embedding, head    N(0, std^2)       learning rate lr        logits / m
    matrices           N(0, std^2 / m)   learning rate lr / m    attention logits q k^T sqrt(base_head) / d_head
    vectors            initialized by their part, learning rate lr

    At d_model = base_width and d_head = base_head it equals init=gpt2.  Widen a model by more heads at a fixed d_head.
    """

    def __init__(
        self,
        *,
        base_width: Annotated[int, Positive, "d_model of the model whose learning rate was tuned"] = 128,
        base_head: Annotated[int, Positive, "d_head of that model"] = 32,
        std: Std = 0.02,
        residual_scale: Annotated[bool, "divide projections into the residual stream by sqrt(2 n_layers)"] = True,
    ) -> None:
        self.base_width, self.base_head, self.std, self.residual_scale = base_width, base_head, std, residual_scale

    def __call__(self, weight: Tensor, info: ParameterInfo, generator: torch.Generator) -> None:
        scale = 1 / math.sqrt(2 * info.n_layers) if info.residual and self.residual_scale else 1.0
        if info.role == "matrix":
            # The variance 1 / m makes the outputs independent of the width at the start.
            scale *= math.sqrt(self.base_width / info.d_model)
        weight.normal_(0.0, self.std * scale, generator=generator)

    def rate(self, info: ParameterInfo) -> float:
        """1 / m for parameters that sum over the width: matrices, and vectors with d_model inputs (small readouts)."""
        # Adam moves each weight by lr: a sum over m times as many inputs moves m times as far.
        sums = info.role == "matrix" or (info.role == "vector" and info.fan_in == info.d_model)
        return self.base_width / info.d_model if sums else 1.0

    def logit_scale(self, d_model: int) -> float:
        # Logits sum over d_model features that training aligns: they would grow as the width, not as its root.
        return self.base_width / d_model

    def attention_scale(self, d_head: int) -> float:
        # 1 / d_head instead of 1 / sqrt(d_head), for the same reason; equal to it at d_head = base_head.
        return math.sqrt(self.base_head) / d_head


rule(
    when="init.name == 'mup' and not facts.optimizer.entrywise",
    why="muP's learning rates hold for optimizers whose step in each weight has the size lr, whatever the size of the "
    "gradient (Adam, Lion); with optimizer={optimizer.name} the learning rate would not transfer",
    fix="optimizer=adamw",
)
