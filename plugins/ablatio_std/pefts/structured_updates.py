"""Structured updates with few parameters: frozen random matrices, Hadamard and Kronecker products, sparse spectra."""

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Positive, pefts
from ablatio.model.parameter_roles import named_generator, named_seed
from ablatio.model.peft.adapters import LayerPeft, MatrixAdapter, Targets, adapted, said, targets_of, widths
from ablatio_std.pefts._common import QUERY_VALUE, Alpha, Rank, ToPeft, renamed, to_peft


class ScaledRandom(MatrixAdapter):
    """W + diag(b) B diag(d) A; A (r, in) and B (out, r) are frozen and shared by all layers."""

    def __init__(self, a: Tensor, b: Tensor, d_initial: float) -> None:
        super().__init__()
        self.register_buffer("vera_A", a)
        self.register_buffer("vera_B", b)
        self.lambda_d = nn.Parameter(torch.full((len(a),), d_initial))
        self.lambda_b = nn.Parameter(torch.zeros(len(b)))

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        return said(layer, x) + self.lambda_b * F.linear(self.lambda_d * F.linear(x, self.vera_A), self.vera_B)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight + (self.lambda_b[:, None] * self.vera_B) @ (self.lambda_d[:, None] * self.vera_A)


@pefts.register("vera", paper="arXiv:2310.11454")
class VeRA(LayerPeft):
    """y = W x + diag(b) B diag(d) A x: A and B random, frozen and shared by all layers; only b and d are trained."""

    def __init__(
        self,
        *,
        targets: Targets = QUERY_VALUE,
        rank: Rank = 256,
        d_initial: Annotated[float, Positive, "initial value of each entry of d"] = 0.1,
    ) -> None:
        super().__init__(targets)
        self.rank, self.d_initial = rank, d_initial

    def apply(self, model: nn.Module, seed: int) -> None:
        shapes = [widths(layer) for layer in targets_of(model, self.targets).values()]
        out, width = (max(sizes) for sizes in zip(*shapes, strict=True))
        # Made for the widest layer; smaller ones take a slice, as in peft.
        self.a, self.b = torch.empty(self.rank, width), torch.empty(out, self.rank)
        for name, weight in (("A", self.a), ("B", self.b)):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=named_generator(seed, f"vera/{name}"))
        super().apply(model, seed)

    def adapter(self, layer: Any, path: str) -> ScaledRandom:
        out, width = widths(layer)
        return ScaledRandom(self.a[:, :width].clone(), self.b[:out].clone(), self.d_initial)

    def to_peft(self, model: nn.Module) -> ToPeft:
        """Export to peft, with the largest A and B, of which smaller layers use slices."""
        layers = renamed(model, {"vera_lambda_b": "lambda_b", "vera_lambda_d": "lambda_d"})
        adapters = [a for _, _, a in adapted(model) if isinstance(a, ScaledRandom)]
        widest = max((a.vera_A for a in adapters), key=lambda t: t.shape[1])
        tallest = max((a.vera_B for a in adapters), key=len)
        layers[""] = {"base_model.vera_A": widest, "base_model.vera_B": tallest}
        config = {"r": self.rank, "save_projection": True, "projection_prng_key": 0, "vera_dropout": 0.0}
        return to_peft("VERA", layers, None, **config)


class Hadamard(MatrixAdapter):
    """W + s (A1 B1) * (A2 B2), the product * elementwise; A1, A2 (out, r), B1, B2 (r, in)."""

    def __init__(self, out: int, width: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        for i in "12":
            for name, shape in (("a", (out, rank)), ("b", (rank, width))):
                weight = nn.Parameter(torch.zeros(shape))
                # One factor is 0, so that the update is; the three others are random, so that it has a gradient.
                if (name, i) != ("b", "2"):
                    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
                self.register_parameter(f"w{i}_{name}", weight)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)


@pefts.register("loha", paper="arXiv:2108.06098")
class LoHa(LayerPeft):
    """W' = W + (alpha / r) (A1 B1) * (A2 B2), the product * elementwise: an update of rank up to r^2."""

    def __init__(self, *, targets: Targets = QUERY_VALUE, rank: Rank = 8, alpha: Alpha = 8.0) -> None:
        super().__init__(targets)
        self.rank, self.scale = rank, alpha / rank

    def adapter(self, layer: Any, path: str) -> Hadamard:
        return Hadamard(*widths(layer), self.rank, self.scale)

    def to_peft(self, model: nn.Module) -> ToPeft:
        layers = renamed(model, {f"hada_w{i}_{x}": f"w{i}_{x}" for i in "12" for x in "ab"})
        return to_peft("LOHA", layers, {"hada_w1_a", "hada_w2_a"}, r=self.rank, alpha=self.scale * self.rank)


class Kronecker(MatrixAdapter):
    """W + s C (x) (A B), with the Kronecker product (x); a full matrix replaces A B where A B would be no smaller."""

    def __init__(self, out: int, width: int, rank: int, scale: float, factor: int | None) -> None:
        super().__init__()
        (out_1, out_2), (in_1, in_2) = split(out, factor), split(width, factor)
        # From rank = half of the longer side on, A and B have as many numbers as the matrix.
        self.scale, self.whole = scale, rank >= max(out_2, in_2) / 2
        self.w1 = nn.Parameter(torch.zeros(out_1, in_1))
        shapes = {"w2": (out_2, in_2)} if self.whole else {"w2_a": (out_2, rank), "w2_b": (rank, in_2)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
            nn.init.kaiming_uniform_(getattr(self, name), a=math.sqrt(5))

    def matrix(self, weight: Tensor) -> Tensor:
        return weight + self.scale * torch.kron(self.w1, self.w2 if self.whole else self.w2_a @ self.w2_b)


def split(size: int, factor: int | None) -> tuple[int, int]:
    """Factor `size` into (small, large), small <= large: one of them is the largest divisor up to a bound.

    The bound is `factor` if that divides `size`, else the smaller of `factor` and sqrt(size).
    """
    bound = min(factor or size, math.isqrt(size)) if factor is None or size % factor else factor
    first = next(n for n in range(bound, 0, -1) if size % n == 0)
    first = min(first, size // first)
    return first, size // first


@pefts.register("lokr", paper="arXiv:2309.14859")
class LoKr(LayerPeft):
    """W' = W + (alpha / r) C (x) (A B): a Kronecker product of a small matrix, initially 0, and a low-rank one."""

    def __init__(
        self,
        *,
        targets: Targets = QUERY_VALUE,
        rank: Rank = 8,
        alpha: Alpha = 8.0,
        factor: Annotated[int | None, Positive, "rows and columns of C; null: near the roots of the widths"] = None,
    ) -> None:
        super().__init__(targets)
        self.rank, self.scale, self.factor = rank, alpha / rank, factor

    def adapter(self, layer: Any, path: str) -> Kronecker:
        return Kronecker(*widths(layer), self.rank, self.scale, self.factor)

    def to_peft(self, model: nn.Module) -> ToPeft:
        layers = {path: {f"lokr_{name}": p for name, p in a.named_parameters()} for path, _, a in adapted(model)}
        factor = -1 if self.factor is None else self.factor
        return to_peft("LOKR", layers, None, r=self.rank, alpha=self.scale * self.rank, decompose_factor=factor)


class Spectral(MatrixAdapter):
    """W + s Re(ifft2(C)), C (out, in) with n nonzero entries."""

    def __init__(self, out: int, width: int, entries: Tensor, scale: float, gaussian: bool) -> None:
        super().__init__()
        self.scale = scale
        self.spectrum = nn.Parameter(torch.randn(len(entries)) if gaussian else torch.zeros(len(entries)))
        self.register_buffer("entries", entries)

    def matrix(self, weight: Tensor) -> Tensor:
        dense = self.spectrum.new_zeros(weight.numel()).index_put((self.entries,), self.spectrum)
        # The real part: C is not kept symmetric, so its transform is complex.
        return weight + self.scale * torch.fft.ifft2(dense.view(weight.shape)).real


@pefts.register("fourierft", paper="arXiv:2405.03003")
class FourierFT(LayerPeft):
    """W' = W + alpha Re(ifft2(C)): n trained coefficients of C at random frequencies.

    Layers of one shape share the frequencies.  The paper draws C from N(0, 1) (init=gaussian); with init=zeros the
    initial model is exactly the base.
    """

    def __init__(
        self,
        *,
        targets: Targets = QUERY_VALUE,
        n_frequency: Annotated[int, Positive, "coefficients of a layer, at most its number of weights"] = 1000,
        alpha: Annotated[float, Positive, "factor on the update"] = 300.0,
        init: Annotated[Literal["zeros", "gaussian"], "initial values of the coefficients"] = "zeros",
    ) -> None:
        super().__init__(targets)
        self.n_frequency, self.alpha, self.init = n_frequency, alpha, init

    def apply(self, model: nn.Module, seed: int) -> None:
        self.seed = seed
        super().apply(model, seed)

    def adapter(self, layer: Any, path: str) -> Spectral:
        out, width = widths(layer)
        # By the shape, not by the path: layers of one shape share their frequencies, as in the paper.
        generator = named_generator(self.seed, f"fourierft/{out}/{width}")
        entries = torch.randperm(out * width, generator=generator, device="cpu")[: self.n_frequency]
        return Spectral(out, width, entries.to(torch.get_default_device()), self.alpha, self.init == "gaussian")

    def to_peft(self, model: nn.Module) -> ToPeft | None:
        """Export to peft; None for layers of several shapes, since peft draws all frequencies from one seed."""
        shapes = {widths(layer) for _, layer, _ in adapted(model)}
        if len(shapes) > 1:
            return None
        out, width = shapes.pop()
        config = {"n_frequency": self.n_frequency, "scaling": self.alpha}
        config["random_loc_seed"] = named_seed(self.seed, f"fourierft/{out}/{width}")
        return to_peft("FOURIERFT", renamed(model, {"fourierft_spectrum": "spectrum"}), None, **config)
