"""Low rank that is not fixed: pruned while training, or trained at every rank at once."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Fraction, NonNegative, Positive, pefts, rule
from ablatio.model.optimizer_step import OptimizerStep
from ablatio.model.peft.adapters import LayerPeft, MatrixAdapter, Targets, adapted, said, widths
from ablatio.registry.knobs import Range
from ablatio_std.pefts._common import QUERY_VALUE, Alpha, LowRank, Rank, ToPeft, as_lora

Beta = Annotated[float, Range(0, 1, open_high=True)]


class Triplets(MatrixAdapter):
    """W x + b + s B diag(E) A x; and for each entry of A, E and B the running means of |w dL/dw| and of its spread."""

    def __init__(self, out: int, width: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.lora_A = nn.Parameter(0.02 * torch.randn(rank, width))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1))
        self.lora_B = nn.Parameter(0.02 * torch.randn(out, rank))
        self.register_buffer("kept", torch.ones(rank, 1, dtype=torch.bool))
        for name, weight in self.weights():
            for mean in ("sensitivity", "spread"):
                self.register_buffer(f"{mean}_{name}", torch.zeros_like(weight))

    def weights(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, getattr(self, f"lora_{name}")) for name in "AEB"]

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        return said(layer, x) + self.scale * F.linear(F.linear(x, self.lora_A * self.lora_E), self.lora_B)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.lora_B @ (self.lora_A * self.lora_E))

    def observe(self, beta1: float, beta2: float) -> None:
        for name, weight in self.weights():
            now = torch.zeros_like(weight) if weight.grad is None else (weight * weight.grad).abs()
            mean, spread = getattr(self, f"sensitivity_{name}"), getattr(self, f"spread_{name}")
            mean.lerp_(now, 1 - beta1)
            spread.lerp_((now - mean).abs(), 1 - beta2)

    def importance(self) -> Tensor:
        """(r,): of each triplet, that of its E and the means over its rows of A and columns of B."""
        a, e, b = (getattr(self, f"sensitivity_{n}") * getattr(self, f"spread_{n}") for n in "AEB")
        return e[:, 0] + a.mean(1) + b.mean(0)

    def off_orthogonal(self) -> Tensor:
        """|A A^T - I|^2 + |B^T B - I|^2."""
        eye = torch.eye(len(self.lora_E), dtype=self.lora_E.dtype, device=self.lora_E.device)
        a, b = self.lora_A @ self.lora_A.T - eye, self.lora_B.T @ self.lora_B - eye
        return a.square().sum() + b.square().sum()


@pefts.register("adalora", paper="arXiv:2303.10512")
class AdaLoRA(LayerPeft):
    """y = W x + (alpha / r) B diag(E) A x; of all layers' triplets the least important are set to E = 0.

    From `rank` a layer, the budget falls to `target_rank` by (1 - (t - t_i) / (T - t_i - t_f))^3 between a warm-up and
    a last phase in which it is fixed.  Importance: running means of |w dL/dw| times their spread, over a triplet.
    A and B are kept orthogonal by a penalty `orthogonal` (|A A^T - I|^2 + |B^T B - I|^2) on the loss.
    """

    def __init__(
        self,
        *,
        targets: Targets = ("linear",),
        rank: Rank = 12,
        target_rank: Annotated[int, Positive, "of a layer at the end, on average"] = 8,
        alpha: Alpha = 32.0,
        warmup: Annotated[float, Fraction, "share of the steps before the first is pruned"] = 0.1,
        fixed: Annotated[float, Fraction, "share of the steps at the end in which none is"] = 0.3,
        every: Annotated[int, Positive, "steps between two prunings"] = 1,
        betas: Annotated[tuple[float, float], Beta, "of the means of sensitivity and of its spread"] = (0.85, 0.85),
        orthogonal: Annotated[float, NonNegative, "weight of the penalty"] = 0.1,
    ) -> None:
        super().__init__(targets)
        self.rank, self.target_rank, self.scale, self.betas = rank, target_rank, alpha / rank, betas
        self.warmup, self.fixed, self.every, self.orthogonal = warmup, fixed, every, orthogonal

    def adapter(self, layer: Any, path: str) -> Triplets:
        return Triplets(*widths(layer), self.rank, self.scale)

    def to_peft(self, model: nn.Module) -> ToPeft:
        """As a LoRA: E goes into A, and a pruned triplet is zero."""
        return as_lora({path: (t.lora_A * t.lora_E, t.lora_B) for path, t in self._paths(model)}, self.scale)

    @staticmethod
    def _paths(model: nn.Module) -> list[tuple[str, Triplets]]:
        return [(path, adapter) for path, _, adapter in adapted(model) if isinstance(adapter, Triplets)]

    @staticmethod
    def _all(model: nn.Module) -> list[Triplets]:
        return [adapter for _, adapter in AdaLoRA._paths(model)]

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        if self.orthogonal:
            with torch.enable_grad():
                penalty = sum((t.off_orthogonal() for t in self._all(step.model)), torch.zeros(()))
                (self.orthogonal * penalty).backward()
        return {}

    def budget(self, index: int, total: int, layers: int) -> int:
        """How many triplets stay after step `index`, counted from 1."""
        start, end = self.warmup * total, (1 - self.fixed) * total
        left = 1 - (index - start) / max(1.0, end - start)
        full, least = layers * self.rank, layers * min(self.rank, self.target_rank)
        return int((full - least) * min(1.0, max(0.0, left)) ** 3 + least)

    @torch.no_grad()
    def after_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        all_, index = self._all(step.model), step.index + 1
        if index <= (1 - self.fixed) * step.total:
            for triplets in all_:
                triplets.observe(*self.betas)
            if index > self.warmup * step.total and index % self.every == 0:
                self.prune(all_, self.budget(index, step.total, len(all_)))
        for triplets in all_ if index > (1 - self.fixed) * step.total else ():
            triplets.lora_E *= triplets.kept
        return {}

    @staticmethod
    @torch.no_grad()
    def prune(all_: list[Triplets], budget: int) -> None:
        """Keep the `budget` most important triplets of the model."""
        scores = torch.cat([t.importance() for t in all_])
        worst = scores.kthvalue(len(scores) - budget).values if budget < len(scores) else scores.new_tensor(-1.0)
        for triplets in all_:
            triplets.kept = triplets.importance()[:, None] > worst
            triplets.lora_E *= triplets.kept


rule(
    when="peft.name == 'adalora' and peft.target_rank > peft.rank",
    why="peft.rank={peft.rank} falls to peft.target_rank={peft.target_rank}, which is more",
    fix="peft.target_rank={peft.rank}",
    where="peft.target_rank",
)


class Nested(LowRank):
    """The first b rows of A and columns of B, b drawn anew in each pass while it trains."""

    def __init__(self, *low_rank: Any, alpha: float, frozen: bool, used: int | None) -> None:
        super().__init__(*low_rank)
        self.alpha, self.frozen, self.used = alpha, frozen, used or len(self.lora_A)

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        rank = int(torch.randint(1, len(self.lora_A) + 1, ())) if self.training else self.used
        a, b = self.lora_A[:rank], self.lora_B[:, :rank]
        if self.training and self.frozen:  # only what this rank adds to the one before learns
            a = torch.cat([a[:-1].detach(), a[-1:]])
            b = torch.cat([b[:, :-1].detach(), b[:, -1:]], dim=1)
        return said(layer, x) + self.alpha / rank * F.linear(F.linear(x, a), b)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight + self.alpha / self.used * (self.lora_B[:, : self.used] @ self.lora_A[: self.used])


@pefts.register("dylora", paper="arXiv:2210.07558")
class DyLoRA(LayerPeft):
    """y = W x + (alpha / b) B[:, :b] A[:b] x with b uniform in 1 ... r: every rank up to r is trained at once.

    frozen     only row and column b learn in a pass, the ones before stay as they are
    used_rank  b once trained
    """

    batch_dependent = True

    def __init__(
        self,
        *,
        targets: Targets = QUERY_VALUE,
        rank: Rank = 8,
        alpha: Alpha = 16.0,
        frozen: Annotated[bool, "train only what rank b adds to rank b - 1"] = False,
        used_rank: Annotated[int | None, Positive, "rank outside of training, at most peft.rank; null: that"] = None,
    ) -> None:
        super().__init__(targets)
        self.rank, self.alpha, self.frozen, self.used = rank, alpha, frozen, used_rank

    def adapter(self, layer: Any, path: str) -> Nested:
        return Nested(*widths(layer), self.rank, 1.0, alpha=self.alpha, frozen=self.frozen, used=self.used)

    def to_peft(self, model: nn.Module) -> ToPeft:
        """As a LoRA of the rank that is used."""
        used = self.used or self.rank
        nested = [(path, a) for path, _, a in adapted(model) if isinstance(a, Nested)]
        return as_lora({path: (a.lora_A[:used], a.lora_B[:, :used]) for path, a in nested}, self.alpha / used)


rule(
    when="peft.name == 'dylora' and peft.used_rank is not None and peft.used_rank > peft.rank",
    why="peft.used_rank={peft.used_rank} is more than the peft.rank={peft.rank} that is trained",
    fix="peft.used_rank={peft.rank}",
    where="peft.used_rank",
)
