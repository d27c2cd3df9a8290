"""Scaling vectors and low-rank paths around frozen layers (IA3, GLoRA), and training of the base's own vectors."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import pefts, rule
from ablatio.errors import UserError
from ablatio.model.peft.adapters import (
    LayerPeft,
    MatrixAdapter,
    Targets,
    adapted,
    bias_of,
    freeze,
    matches,
    said,
    weight_of,
    widths,
)
from ablatio_std.pefts._common import Layers, Rank, ToPeft, to_peft

Names = Annotated[tuple[str, ...], "modules by name or path; `*`: all"]


class ScaledFeatures(MatrixAdapter):
    """diag(l) (W x + b), or W diag(l) x + b if at_input.  (..., in) -> (..., out)."""

    def __init__(self, size: int, at_input: bool) -> None:
        super().__init__()
        self.at_input, self.ia3_l = at_input, nn.Parameter(torch.ones(size))

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = said(layer, x * self.ia3_l) if self.at_input else said(layer, x) * self.ia3_l
        return y

    def matrix(self, weight: Tensor) -> Tensor:
        return weight * (self.ia3_l if self.at_input else self.ia3_l[:, None])

    def vector(self, bias: Tensor | None) -> Tensor | None:
        return bias if self.at_input or bias is None else bias * self.ia3_l


@pefts.register("ia3", paper="arXiv:2205.05638")
class IA3(LayerPeft):
    """l * (W x + b) for keys and values, W (l * x) + b for the last layer of the MLP; l is initialized to 1."""

    def __init__(
        self,
        *,
        targets: Targets = ("k_proj", "v_proj", "down_proj"),
        feedforward: Annotated[tuple[str, ...], "targets whose input is scaled, not their output"] = ("down_proj",),
    ) -> None:
        super().__init__(targets)
        self.feedforward = feedforward

    def adapter(self, layer: Any, path: str) -> ScaledFeatures:
        out, width = widths(layer)
        # The input of down_proj is the inner activation of the MLP, which IA3 scales.
        at_input = any(matches(pattern, path) for pattern in self.feedforward)
        return ScaledFeatures(width if at_input else out, at_input)

    def to_peft(self, model: nn.Module) -> ToPeft:
        scaled = {path: a for path, _, a in adapted(model) if isinstance(a, ScaledFeatures)}
        layers = {path: {"ia3_l": a.ia3_l[None] if a.at_input else a.ia3_l[:, None]} for path, a in scaled.items()}
        at_input = [path for path, a in scaled.items() if a.at_input]
        return to_peft("IA3", layers, {"ia3_l"}, feedforward_modules=at_input)


Path = Literal["lora", "vector", "constant", "none"]


class _Path(nn.Module):
    """A matrix that broadcasts to (rows, columns), initialized to 0: of low rank, one column, one number, or none."""

    def __init__(self, kind: str, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        shape = {"lora": (rows, rank), "vector": (rows, 1), "constant": (1, 1), "none": (0, 0)}[kind]
        self.down = nn.Parameter(torch.zeros(shape)) if kind != "none" else None
        self.up = nn.Parameter(torch.empty(rank, columns)) if kind == "lora" else None
        if self.up is not None:
            nn.init.kaiming_uniform_(self.up, a=math.sqrt(5))

    def forward(self) -> Tensor | float:
        if self.down is None:
            return 0.0
        return self.down if self.up is None else self.down @ self.up


class GeneralizedUpdate(MatrixAdapter):
    """(W + W * A + B) x + b + D * b + E + W C, with elementwise products *.  (..., in) -> (..., out)."""

    def __init__(self, out: int, width: int, rank: int, matrix: str, prompt: str, vector: str) -> None:
        super().__init__()
        self.A, self.B = (_Path(matrix, out, width, rank) for _ in "AB")
        self.C = _Path(prompt, width, 1, rank)
        self.D, self.E = (_Path(vector, out, 1, 1) for _ in "DE")

    def matrix(self, weight: Tensor) -> Tensor:
        return weight + weight * self.A() + self.B()

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        return F.linear(x, *self.fold(weight_of(layer), bias_of(layer)))

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        base = weight.new_zeros(len(weight)) if bias is None else bias
        shifted = base[:, None] * (1 + self.D()) + self.E()  # (out, 1)
        prompt = self.C()
        # W (x + C) = W x + W C: a prompt on the input is a bias of the layer.
        shifted = shifted + weight @ prompt if isinstance(prompt, Tensor) else shifted
        # Without anything that shifts the outputs, a layer without bias stays one.
        no_bias = bias is None and not isinstance(prompt, Tensor) and self.E.down is None
        return self.matrix(weight), None if no_bias else shifted[:, 0]


@pefts.register("glora", paper="arXiv:2306.07967")
class GLoRA(LayerPeft):
    """y = (W + W A + B) x + C W + D b + E + b: scales and shifts of weights and bias, and a prompt; initially all 0.

    A and B are of low rank, one number for each row, or one number; likewise C (a prompt added to the layer's input)
    and D, E (bias).  A layer without a bias gets C W + E as its bias.
    """

    def __init__(
        self,
        *,
        targets: Targets = ("q_proj", "v_proj"),
        rank: Rank = 8,
        matrix: Annotated[Path, "form of A and B"] = "lora",
        prompt: Annotated[Literal["lora", "vector", "none"], "form of C"] = "vector",
        shift: Annotated[Literal["vector", "constant", "none"], "form of D and E"] = "vector",
    ) -> None:
        super().__init__(targets)
        self.rank, self.paths = rank, (matrix, prompt, shift)

    def adapter(self, layer: Any, path: str) -> GeneralizedUpdate:
        return GeneralizedUpdate(*widths(layer), self.rank, *self.paths)

    def to_peft(self, model: nn.Module) -> ToPeft | None:
        """Export to peft; None if a layer without a bias has got one, which peft's GLoRA cannot hold."""
        layers: Layers = {}
        for path, layer, adapter in adapted(model):
            layers[path] = {}
            for name, p in adapter.named_parameters():
                letter, factor = name.split(".")
                if letter in "CDE" and layer.bias is None:
                    return None
                low_rank = getattr(adapter.get_submodule(letter), "up", None) is not None
                theirs = {"up": "Xu", "down": "Xd" if low_rank else "X"}[factor]
                layers[path][f"glora_{letter}.{theirs}"] = p.flatten() if letter in "DE" else p
        forms = dict(zip(("config_A_B", "config_C", "config_D_E"), self.paths, strict=True))
        rows = {f"glora_{letter}.{factor}" for letter in "ABDE" for factor in ("X", "Xd")}
        return to_peft("GLORA", layers, rows, r=self.rank, **forms)


class SelectedParameters:
    """Base of methods that train some of the model's own parameters, freeze all others, and add none."""

    what = "parameter"

    def __init__(self, targets: Sequence[str]) -> None:
        self.targets = targets

    def selects(self, path: str, name: str, module: nn.Module) -> bool:
        """True if the method can train the parameter `name` of the module at `path`."""
        raise NotImplementedError

    def apply(self, model: nn.Module, seed: int) -> None:
        candidates = [
            (path, parameter)
            for path, module in model.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
            if self.selects(path, name, module)
        ]
        # Candidates are collected first: freezing does not hide them, but it must come before any is switched on.
        freeze(model)
        for pattern in self.targets or ("",):
            matched = [parameter for path, parameter in candidates if matches(pattern, path)]
            if not matched:
                listed = ", ".join(sorted({path.rpartition(".")[2] for path, _ in candidates})) or "none"
                raise UserError(
                    f"peft.targets: {pattern or 'an empty list'} matches no {self.what} of this model; there are "
                    f"{listed}\n    try: peft.targets=['*']"
                )
            for parameter in matched:
                parameter.requires_grad_(True)


@pefts.register("bitfit", paper="arXiv:2106.10199")
class BitFit(SelectedParameters):
    """W x + b with only b trained: the biases of the model."""

    what = "bias"

    def __init__(self, *, targets: Names = ("*",)) -> None:
        super().__init__(targets)

    def selects(self, path: str, name: str, module: nn.Module) -> bool:
        return name == "bias"


rule(
    when="peft.name == 'bitfit' and not model.bias",
    why="peft=bitfit trains biases, and with model.bias=false the linear layers have none",
    fix="model.bias=true",
    where="model.bias",
)


@pefts.register("lntuning", paper="arXiv:2312.11420")
class NormTuning(SelectedParameters):
    """g * norm(x) + b with only g and b trained: the gains and biases of the model's norms."""

    what = "norm"

    def __init__(self, *, targets: Names = ("*",)) -> None:
        super().__init__(targets)

    def selects(self, path: str, name: str, module: nn.Module) -> bool:
        # By class or by name: foreign norms may be called LlamaRMSNorm, or be a plain module named `norm`.
        return "norm" in type(module).__name__.lower() or "norm" in path.rpartition(".")[2].lower()

    def to_peft(self, model: nn.Module) -> ToPeft:
        trained = [n.rpartition(".") for n, p in model.named_parameters() if p.requires_grad]
        paths = sorted({path for path, _, _ in trained})
        norms = {path: dict(model.get_submodule(path).named_parameters(recurse=False)) for path in paths}
        layers = {path: {f"ln_tuning_layers.{name}": p for name, p in norm.items()} for path, norm in norms.items()}
        return to_peft("LN_TUNING", layers, set())
