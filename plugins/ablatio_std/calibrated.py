"""Four-bit weights chosen by the inputs that the layers read: GPTQ, AWQ and low-rank error repair."""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn

from ablatio import Positive, Range, quantizations, rule
from ablatio.model.bit_codes import GroupedIntegers, above_zero
from ablatio.model.quantized import InputMoments, moments_of_inputs, quantize

Group = Annotated[int, Positive, "weights of a row that share a scale"]
Batches = Annotated[int, Positive, "training batches whose inputs calibrate the codes"]
ALL = slice(None)


class Calibrated:
    """Base: W ~ s c, c in -7 ... 7, s of each group of a row; `encode` uses the moments of the layer's inputs.

    Without calibration, in a run whose quantized weights will be loaded, codes are rounded to the nearest.
    """

    bits = 4

    def __init__(self, group: int, batches: int) -> None:
        self.codes, self.batches, self.moments = GroupedIntegers(4, group), batches, dict[str, InputMoments]()

    def calibrate(self, model: nn.Module, feed: Callable[[int], None]) -> None:
        self.moments = moments_of_inputs(model, lambda: feed(self.batches))

    def apply(self, model: nn.Module) -> None:
        quantize(model, self, moments=self.moments)
        self.moments = {}

    def encode(self, weight: Tensor, moments: InputMoments | None = None) -> dict[str, Tensor]:
        return self.codes.encode(weight)

    def decode(self, held: dict[str, Tensor], width: int, rows: slice = ALL) -> Tensor:
        return self.codes.decode(held, width, rows)

    def read(self, x: Tensor) -> Tensor:
        return x


@quantizations.register("gptq", paper="arXiv:2210.17323")
class Gptq(Calibrated):
    """Codes that minimize |(W - W') X|, X the layer's inputs: column by column, later ones make up for the error.

    For column i: e = (W_i - W'_i) / U_ii and W_j <- W_j - U_ij e for j > i, U the upper Cholesky factor of the inverse
    of X X^T + `damp` mean(diag(X X^T)) I.  W' = s c in 4 bits, s = max |W| / 7 of a group of a row when it is reached.
    """

    def __init__(
        self,
        *,
        group: Group = 64,
        batches: Batches = 8,
        damp: Annotated[float, Range(0, 1, open_low=True), "added to the diagonal, relative to its mean"] = 0.01,
    ) -> None:
        super().__init__(group, batches)
        self.damp = damp

    def encode(self, weight: Tensor, moments: InputMoments | None = None) -> dict[str, Tensor]:
        if moments is None or not moments.tokens:
            return super().encode(weight)
        # float64: the errors of all earlier columns add up in the later ones.
        w, upper, codes, scales = weight.double().clone(), self.factor(moments), torch.empty_like(weight), []
        for i in range(w.shape[1]):
            # The scale of a group is set when it is reached, from weights that already make up for earlier errors.
            if i % self.codes.group == 0:
                scales.append(self.codes.scales(w[:, i : i + self.codes.group])[:, 0])
            scale = above_zero(scales[-1])
            code = (w[:, i] / scale).round().clamp(-self.codes.largest, self.codes.largest)
            codes[:, i] = code
            w[:, i:] -= torch.outer((w[:, i] - code * scale) / upper[i, i], upper[i, i:])
        return self.codes.packed(codes, torch.stack(scales, dim=1).float())

    def factor(self, moments: InputMoments) -> Tensor:
        """Upper Cholesky factor of the inverse of the damped second moment: (in, in)."""
        second = moments.second.double()
        diagonal = above_zero(second.diagonal())  # an input that is always 0
        second = second + torch.diag(diagonal - second.diagonal() + self.damp * diagonal.mean())
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(second))
        return torch.linalg.cholesky(inverse, upper=True)


@quantizations.register("awq", paper="arXiv:2306.00978")
class Awq(Calibrated):
    """W' = Q(W diag(t)) diag(t)^-1, Q rounding to 4 bits: inputs that are large on average get finer steps.

    t = mean|x|^a of each input channel, divided by the root of its largest times its smallest value; of `grid` values a
    = 0, 1 / grid, ... the one with the smallest |(W - W') X|.  Q(W) = s c, s = max |W| / 7 of a group of a row.
    """

    def __init__(
        self, *, group: Group = 128, batches: Batches = 8, grid: Annotated[int, Range(1, 1000), "values of a"] = 20
    ) -> None:
        super().__init__(group, batches)
        self.grid = grid

    def encode(self, weight: Tensor, moments: InputMoments | None = None) -> dict[str, Tensor]:
        channels = torch.ones_like(weight[0], dtype=torch.float32)
        if moments is not None and moments.tokens:
            channels = min(self.scalings(moments), key=lambda t: self.error(weight, t, moments))
        return self.codes.encode(weight.float() * channels) | {"channels": channels}

    def scalings(self, moments: InputMoments) -> list[Tensor]:
        """Candidates for t: (in,) each; the first is 1, plain rounding."""
        # A channel that is nearly always 0 would get an enormous scale.
        mean = (moments.absolute / moments.tokens).clamp(min=1e-4)
        powers = [mean ** (i / self.grid) for i in range(self.grid)]
        return [t / (t.max() * t.min()).sqrt() for t in powers]

    def error(self, weight: Tensor, channels: Tensor, moments: InputMoments) -> float:
        """Squared error of the layer's outputs on the calibration inputs."""
        held = self.codes.encode(weight.float() * channels) | {"channels": channels}
        wrong = weight.float() - self.decode(held, weight.shape[1])
        # |E X|^2 = trace(E X X^T E^T): the second moment is enough, the inputs are not kept.
        return float(((wrong @ moments.second) * wrong).sum())

    def decode(self, held: dict[str, Tensor], width: int, rows: slice = ALL) -> Tensor:
        return self.codes.decode(held, width, rows) / held["channels"]


@quantizations.register("lqer", paper="arXiv:2402.02446")
class Lqer(Calibrated):
    """W' = Q(W) + A B, A B diag(t) the best approximation of (W - Q(W)) diag(t) of this `rank` (L2QER).

    t = mean|x| of each input channel, divided by the root of its largest times its smallest value.  Q rounds to 4 bits,
    s c with s = max |W| / 7 of a group of a row; A and B are stored in 16 bits.
    """

    def __init__(
        self,
        *,
        rank: Annotated[int, Range(1, 4096), "rank of the repair"] = 4,
        group: Group = 128,
        batches: Batches = 8,
    ) -> None:
        super().__init__(group, batches)
        self.rank = rank

    def encode(self, weight: Tensor, moments: InputMoments | None = None) -> dict[str, Tensor]:
        held, channels = self.codes.encode(weight), torch.ones_like(weight[0], dtype=torch.float32)
        if moments is not None and moments.tokens:
            mean = (moments.absolute / moments.tokens).clamp(min=1e-4)
            channels = mean / (mean.max() * mean.min()).sqrt()
        error = weight.float() - self.codes.decode(held, weight.shape[1], ALL)
        # Errors at inputs that are large on average count more.
        u, s, v = torch.linalg.svd(error * channels, full_matrices=False)
        root = s[: self.rank].sqrt()
        left, right = u[:, : self.rank] * root, root[:, None] * v[: self.rank] / channels
        return held | {"left": left.half(), "right": right.half()}

    def decode(self, held: dict[str, Tensor], width: int, rows: slice = ALL) -> Tensor:
        coded = self.codes.decode(held, width, rows)
        return coded + held["left"][rows].to(coded.dtype) @ held["right"].to(coded.dtype)


rule(
    when="quantization.name in ('gptq', 'awq', 'lqer') and task.name not in ('pretrain', 'sft')",
    why="quantization={quantization.name} is calibrated on rows of text, and those of task={task.name} are made with "
    "the model",
    fix="quantization=int4",
    where="quantization",
)
