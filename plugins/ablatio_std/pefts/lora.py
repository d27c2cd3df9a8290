"""LoRA and close variants: a frozen matrix with a low-rank update."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from ablatio import Positive, pefts, rule
from ablatio.errors import UserError
from ablatio.model.parameter_roles import ParameterInfo, with_fixed_decay
from ablatio.model.peft.adapters import (
    LayerPeft,
    Targets,
    adapted,
    is_linear,
    is_stacked,
    shares_weights,
    targets_of,
    weight_of,
    widths,
)
from ablatio.model.quantized import Coded
from ablatio.registry import kinds
from ablatio_std.pefts._common import QUERY_VALUE, Alpha, Dropout, LowRank, LowRankExperts, Rank, ToPeft, as_lora

Stabilized = Annotated[bool, "alpha / sqrt(r) in place of alpha / r (rsLoRA, arXiv:2312.03732)"]
Ratio = Annotated[float, Positive, "learning rate of B / that of A (LoRA+, arXiv:2402.12354: 16)"]
Init = Annotated[
    Literal["kaiming", "gaussian", "pissa", "olora"],
    "initial A with B = 0; or A and B split off from W: pissa (arXiv:2404.02948) its largest singular directions, "
    "olora (arXiv:2406.01775) the first r of its QR factorization",
]
SPLIT_OFF = ("pissa", "olora")


@pefts.register("lora", paper="arXiv:2106.09685")
class LoRA(LayerPeft):
    """y = W x + (alpha / r) B A x: W frozen, A (r, in) random and B (out, r) initialized to 0.

    The low-rank products are accumulated into those with W, so that no further tensor of the layer's width is made.
    targets=[experts] adapts the matrices of the experts of a mixture, each expert with an A and a B of its own.
    """

    tensor_parallel, splits_tokens = True, True

    def __init__(
        self,
        *,
        targets: Targets = QUERY_VALUE,
        rank: Rank = 8,
        alpha: Alpha = 16.0,
        dropout: Dropout = 0.0,
        rank_stabilized: Stabilized = False,
        lr_ratio: Ratio = 1.0,
        init: Init = "kaiming",
    ) -> None:
        super().__init__(targets)
        self.rank, self.dropout, self.init, self.lr_ratio = rank, dropout, init, lr_ratio
        self.scale = alpha / math.sqrt(rank) if rank_stabilized else alpha / rank

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        return is_linear(layer) or is_stacked(layer)

    def apply(self, model: nn.Module, seed: int) -> None:
        if self.init in SPLIT_OFF:
            refuse_shared_or_quantized(self.init, list(targets_of(model, self.targets, self.fits).values()), model)
        super().apply(model, seed)

    def adapter(self, layer: Any, path: str) -> LowRank:
        if is_stacked(layer):
            adapter: LowRank = LowRankExperts(*layer.weight.shape, self.rank, self.scale, self.dropout)
        else:
            adapter = LowRank(*widths(layer), self.rank, self.scale, self.dropout)
        if self.init == "gaussian":
            # As init_lora_weights="gaussian" of peft.
            nn.init.normal_(adapter.lora_A, std=1 / self.rank)
        elif self.init != "kaiming":
            split_off(layer, adapter, self.init)
        return adapter

    def to_peft(self, model: nn.Module) -> ToPeft | None:
        """Export as peft's LoRA; None for experts, which peft does not stack."""
        if any(is_stacked(layer) for _, layer, _ in adapted(model)):
            return None
        pairs = {path: (a.lora_A, a.lora_B) for path, _, a in adapted(model) if isinstance(a, LowRank)}
        return as_lora(pairs, self.scale, lora_dropout=self.dropout)

    @with_fixed_decay
    def rate(self, info: ParameterInfo) -> float:
        return self.lr_ratio if info.name.endswith("lora_B") else 1.0


def refuse_shared_or_quantized(method: str, layers: Sequence[nn.Module], model: nn.Module) -> None:
    """Raise UserError for layers whose W cannot be replaced by W': those that share W, and those that hold codes."""
    if shares_weights(model, layers):
        why, fix = "layers that share their weights have one W' for several B A", "model.distinct_layers=null"
    elif any(type(layer) is Coded for layer in layers):
        why, fix = "a quantized W cannot be replaced by W - s B A", "quantization=none"
    elif any(is_stacked(layer) for layer in layers):
        why, fix = "the experts of a mixture are not split", "peft.targets=[linear]"
    else:
        return
    raise UserError(f"peft.init={method} changes the frozen weights, and {why}\n    try: peft.init=kaiming, or {fix}")


@torch.no_grad()
def split_off(layer: Any, adapter: LowRank, method: str) -> None:
    """Split W = W' + s B A: set A and B by `method` ("pissa" or "olora"), and W' as the layer's frozen weight."""
    weight, rank = weight_of(layer), len(adapter.lora_A)
    if method == "pissa":
        u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
        # Divided by s, so that s B A is the part of W with these singular values; half of each goes to A and half to B.
        root = (s[:rank] / adapter.scale).sqrt()
        b, a = u[:, :rank] * root, root[:, None] * v[:rank]
    else:
        q, r = torch.linalg.qr(weight.float())
        b, a = q[:, :rank], r[:rank]
    adapter.lora_A.data, adapter.lora_B.data = a.contiguous(), b.contiguous()
    # W' + s B A = W at the start, up to rounding.
    weight.sub_(adapter.scale * (b @ a).to(weight.dtype))


@pefts.register("qlora", paper="arXiv:2305.14314")
class QLoRA(LoRA):
    """y = dequantized(W) x + (alpha / r) B A x: W in 4-bit NormalFloat, by default in all linear layers."""

    tensor_parallel = False

    def __init__(
        self,
        *,
        targets: Targets = ("linear",),
        rank: Rank = 64,
        alpha: Alpha = 16.0,
        dropout: Dropout = 0.1,
        rank_stabilized: Stabilized = False,
        lr_ratio: Ratio = 1.0,
        group: Annotated[int, Positive, "number of weights with one scale"] = 64,
    ) -> None:
        super().__init__(
            targets=targets,
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            rank_stabilized=rank_stabilized,
            lr_ratio=lr_ratio,
        )
        self.base = kinds.quantizations.build("int4", {"code": "nf4", "group": group, "double": True})

    def prepare(self, model: nn.Module) -> None:
        self.base.apply(model)


rule(
    when="peft.name == 'qlora' and quantization.name != 'none'",
    why="peft=qlora quantizes the base to 4 bits itself, and quantization={quantization.name} would quantize it again",
    fix="quantization=none",
    where="quantization",
)


class MagnitudeDirection(LowRank):
    """m V / |V|, V = W + s B A, with m learned and |.| the norms of V's rows (m: (out,)) or of its columns (m: (in,)).

    detached  True if the norm gets no gradient (section 4.3)
    """

    def __init__(self, weight: Tensor, *low_rank: Any, rows: bool = True, detached: bool = True) -> None:
        super().__init__(*low_rank)
        self.rows, self.detached = rows, detached
        self.magnitude = nn.Parameter(self._norm(weight.detach()))

    def _norm(self, weight: Tensor) -> Tensor:
        return torch.linalg.vector_norm(super().matrix(weight), dim=1 if self.rows else 0)

    def _factor(self, weight: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detached):
            norm = self._norm(weight)
        return self.magnitude / norm  # exactly 1 initially, so that the model is exactly the base

    def forward(self, layer: Any, x: Tensor) -> Tensor:
        factor = self._factor(weight_of(layer))
        # A norm for each input scales x; one for each output scales y.
        if not self.rows:
            return super().forward(layer, x * factor.to(x.dtype))
        bias, y = layer.bias, super().forward(layer, x)
        # y + (factor - 1) (y - bias) instead of factor (y - bias) + bias: exactly y where the factor is 1.
        excess = factor - 1
        return y + excess * (y if bias is None else y - bias)

    def matrix(self, weight: Tensor) -> Tensor:
        factor = self._factor(weight)
        return (factor[:, None] if self.rows else factor) * super().matrix(weight)


@pefts.register("dora", paper="arXiv:2402.09353")
class DoRA(LoRA):
    """y = m (W + s B A) x / |W + s B A|: trains the norms m separately from the directions.

    norm=rows: |.| is the norm of each row of W (out, in), one for each output, as in the library peft; norm=columns:
    that of each column, one for each input, as section 4.1 writes it.  `detach`: no gradient flows through the norm,
    which saves memory (section 4.3).
    """

    tensor_parallel = False  # its norms are those of whole rows and columns

    def __init__(
        self,
        *,
        targets: Targets = QUERY_VALUE,
        rank: Rank = 8,
        alpha: Alpha = 16.0,
        dropout: Dropout = 0.0,
        rank_stabilized: Stabilized = False,
        lr_ratio: Ratio = 1.0,
        init: Init = "kaiming",
        norm: Annotated[Literal["rows", "columns"], "which norms of the matrix are trained"] = "rows",
        detach: Annotated[bool, "treat the norm as a constant in the backward pass"] = True,
    ) -> None:
        super().__init__(
            targets=targets,
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            rank_stabilized=rank_stabilized,
            lr_ratio=lr_ratio,
            init=init,
        )
        self.rows, self.detached = norm == "rows", detach

    fits = staticmethod(is_linear)

    def adapter(self, layer: Any, path: str) -> LowRank:
        lora = super().adapter(layer, path)
        low_rank = *widths(layer), self.rank, self.scale, self.dropout
        adapter = MagnitudeDirection(weight_of(layer), *low_rank, rows=self.rows, detached=self.detached)
        # After the split of W, whose norms are those of the whole W' + s B A.
        adapter.lora_A.data, adapter.lora_B.data = lora.lora_A.data, lora.lora_B.data
        adapter.magnitude.data = adapter._norm(weight_of(layer).detach())
        return adapter

    def to_peft(self, model: nn.Module) -> ToPeft | None:
        """Export with peft's magnitude vector, which is of rows: None for columns."""
        exported = super().to_peft(model)
        if exported is None or not self.rows:
            return None
        config, layers, by_row = exported
        for path, _, adapter in adapted(model):
            layers[path]["lora_magnitude_vector"] = adapter.get_parameter("magnitude")
        return config | {"use_dora": True}, layers, {*(by_row or ()), "lora_magnitude_vector"}


for _shared, _why, _fix in (
    (
        "model.distinct_layers is not None and model.distinct_layers < model.n_layers",
        "layers that share their weights (model.distinct_layers={model.distinct_layers}) have one W' for several B A",
        "model.distinct_layers=null",
    ),
    (
        "quantization.name != 'none' and not quantization.qat",
        "a quantized W (quantization={quantization.name}) cannot be replaced by W - s B A",
        "quantization=none",
    ),
):
    rule(
        when=f"(peft.init == 'pissa' or peft.init == 'olora') and {_shared}",
        why=f"peft.init={{peft.init}} changes the frozen weights, and {_why}",
        fix=_fix,
        where="peft.init",
    )
