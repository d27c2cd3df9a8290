"""Vectors and small paths around a frozen map: IA3, GLoRA, and what of the base itself may learn."""

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


class Stretched(MatrixAdapter):
    """diag(l) (W x + b), or W diag(l) x + b where the input is stretched."""

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
    """l * (W x + b) for keys and values, W (l * x) + b for the last map of the feed-forward part; l starts at 1."""

    def __init__(
        self,
        *,
        targets: Targets = ("k_proj", "v_proj", "down_proj"),
        feedforward: Annotated[tuple[str, ...], "those of the targets whose input is stretched"] = ("down_proj",),
    ) -> None:
        super().__init__(targets)
        self.feedforward = feedforward

    def adapter(self, layer: Any, path: str) -> Stretched:
        out, width = widths(layer)
        at_input = any(matches(pattern, path) for pattern in self.feedforward)
        return Stretched(width if at_input else out, at_input)

    def to_peft(self, model: nn.Module) -> ToPeft:
        held = {path: a for path, _, a in adapted(model) if isinstance(a, Stretched)}
        layers = {path: {"ia3_l": a.ia3_l[None] if a.at_input else a.ia3_l[:, None]} for path, a in held.items()}
        return to_peft("IA3", layers, {"ia3_l"}, feedforward_modules=[path for path, a in held.items() if a.at_input])


Path = Literal["lora", "vector", "constant", "none"]


class _Path(nn.Module):
    """(out, in) or what broadcasts to it, zero at the start."""

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


class Generalised(MatrixAdapter):
    """(W + W A + B) x + b + D b + E + W c, products with A and D entry by entry."""

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
        moved = base[:, None] * (1 + self.D()) + self.E()  # (out, 1)
        prompt = self.C()
        moved = moved + weight @ prompt if isinstance(prompt, Tensor) else moved
        unmoved = bias is None and not isinstance(prompt, Tensor) and self.E.down is None
        return self.matrix(weight), None if unmoved else moved[:, 0]


@pefts.register("glora", paper="arXiv:2306.07967")
class GLoRA(LayerPeft):
    """y = (W + W A + B) x + C W + D b + E + b: scaled and shifted weights, prompts and biases; all zero at the start.

    A and B of low rank, or one number a row, or one in all; C (a prompt of the layer's input) and D, E (bias) likewise;
    a layer without a bias gets C W + E as one.
    """

    def __init__(
        self,
        *,
        targets: Targets = ("q_proj", "v_proj"),
        rank: Rank = 8,
        matrix: Annotated[Path, "what A and B are"] = "lora",
        prompt: Annotated[Literal["lora", "vector", "none"], "what C is"] = "vector",
        shift: Annotated[Literal["vector", "constant", "none"], "what D and E are"] = "vector",
    ) -> None:
        super().__init__(targets)
        self.rank, self.paths = rank, (matrix, prompt, shift)

    def adapter(self, layer: Any, path: str) -> Generalised:
        return Generalised(*widths(layer), self.rank, *self.paths)

    def to_peft(self, model: nn.Module) -> ToPeft | None:
        """None where a layer without a bias gets one, which peft's does not."""
        layers: Layers = {}
        for path, layer, adapter in adapted(model):
            layers[path] = {}
            for name, p in adapter.named_parameters():
                letter, way = name.split(".")
                if letter in "CDE" and layer.bias is None:
                    return None
                thin = getattr(adapter.get_submodule(letter), "up", None) is not None
                theirs = {"up": "Xu", "down": "Xd" if thin else "X"}[way]
                layers[path][f"glora_{letter}.{theirs}"] = p.flatten() if letter in "DE" else p
        kinds = dict(zip(("config_A_B", "config_C", "config_D_E"), self.paths, strict=True))
        rows = {f"glora_{letter}.{way}" for letter in "ABDE" for way in ("X", "Xd")}
        return to_peft("GLORA", layers, rows, r=self.rank, **kinds)


class OwnVectors:
    """Some of the base's own parameters learn, all others are frozen; nothing is added."""

    what = "parameter"

    def __init__(self, targets: Sequence[str]) -> None:
        self.targets = targets

    def wanted(self, path: str, name: str, module: nn.Module) -> bool:
        raise NotImplementedError

    def apply(self, model: nn.Module, seed: int) -> None:
        there = [
            (path, parameter)
            for path, module in model.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
            if self.wanted(path, name, module)
        ]
        freeze(model)
        for pattern in self.targets or ("",):
            met = [parameter for path, parameter in there if matches(pattern, path)]
            if not met:
                listed = ", ".join(sorted({path.rpartition(".")[2] for path, _ in there})) or "none"
                raise UserError(
                    f"peft.targets: {pattern or 'an empty list'} matches no {self.what} here; there are {listed}"
                    "\n    try: peft.targets=['*']"
                )
            for parameter in met:
                parameter.requires_grad_(True)


@pefts.register("bitfit", paper="arXiv:2106.10199")
class BitFit(OwnVectors):
    """W x + b where only b learns: the biases of the base, and nothing else."""

    what = "bias"

    def __init__(self, *, targets: Names = ("*",)) -> None:
        super().__init__(targets)

    def wanted(self, path: str, name: str, module: nn.Module) -> bool:
        return name == "bias"


rule(
    when="peft.name == 'bitfit' and not model.bias",
    why="peft=bitfit trains biases, and model.bias=false leaves the linear maps without any",
    fix="model.bias=true",
    where="model.bias",
)


@pefts.register("lntuning", paper="arXiv:2312.11420")
class NormTuning(OwnVectors):
    """g * norm(x) + b where only g and b learn: the gains and biases of the base's norms."""

    what = "norm"

    def __init__(self, *, targets: Names = ("*",)) -> None:
        super().__init__(targets)

    def wanted(self, path: str, name: str, module: nn.Module) -> bool:
        return "norm" in type(module).__name__.lower() or "norm" in path.rpartition(".")[2].lower()

    def to_peft(self, model: nn.Module) -> ToPeft:
        learned = [n.rpartition(".") for n, p in model.named_parameters() if p.requires_grad]
        paths = sorted({path for path, _, _ in learned})
        layers = {path: dict(model.get_submodule(path).named_parameters(recurse=False)) for path in paths}
        told = {path: {f"ln_tuning_layers.{name}": p for name, p in held.items()} for path, held in layers.items()}
        return to_peft("LN_TUNING", told, set())
