"""Low-rank updates of adaptive rank: pruned during training, or trained at every rank at once."""

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
    """W x + b + s B diag(E) A x with A (r, in), E (r, 1), B (out, r): r triplets of a row, an entry and a column.

    Buffers hold for each entry of A, E and B the moving averages of its sensitivity |w dL/dw| and of its spread, the
    deviation from that average; `kept` (r, 1) is False for pruned triplets.
    """

    def __init__(self, out: int, width: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        # A and B are random and E is 0: with B = 0, as in LoRA, the entries of E would have no gradient.
        self.lora_A = nn.Parameter(0.02 * torch.randn(rank, width))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1))
        self.lora_B = nn.Parameter(0.02 * torch.randn(out, rank))
        self.register_buffer("kept", torch.ones(rank, 1, dtype=torch.bool))
        for name, weight in self.weights():
            for mean in ("sensitivity", "spread"):
                self.register_buffer(f"{mean}_{name}", torch.zeros_like(weight))

    def weights(self) -> list[tuple[str, nn.Parameter]]:
        """A, E and B with their letters."""
        return [(name, getattr(self, f"lora_{name}")) for name in "AEB"]

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        return said(layer, x) + self.scale * F.linear(F.linear(x, self.lora_A * self.lora_E), self.lora_B)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.lora_B @ (self.lora_A * self.lora_E))

    def observe(self, beta1: float, beta2: float) -> None:
        """Update sensitivity (decay beta1) and spread (decay beta2) from the present gradients."""
        for name, weight in self.weights():
            current = torch.zeros_like(weight) if weight.grad is None else (weight * weight.grad).abs()
            mean, spread = getattr(self, f"sensitivity_{name}"), getattr(self, f"spread_{name}")
            mean.lerp_(current, 1 - beta1)
            # From the average of this step, as in the authors' code.
            spread.lerp_((current - mean).abs(), 1 - beta2)

    def importance(self) -> Tensor:
        """Importance of each triplet, sensitivity times spread: that of E plus the means over A's row and B's column.

        Returns (r,).
        """
        a, e, b = (getattr(self, f"sensitivity_{n}") * getattr(self, f"spread_{n}") for n in "AEB")
        return e[:, 0] + a.mean(1) + b.mean(0)

    def orthogonality_penalty(self) -> Tensor:
        """|A A^T - I|^2 + |B^T B - I|^2: ()."""
        eye = torch.eye(len(self.lora_E), dtype=self.lora_E.dtype, device=self.lora_E.device)
        a, b = self.lora_A @ self.lora_A.T - eye, self.lora_B.T @ self.lora_B - eye
        return a.square().sum() + b.square().sum()


@pefts.register("adalora", paper="arXiv:2303.10512")
class AdaLoRA(LayerPeft):
    """y = W x + (alpha / r) B diag(E) A x; the least important triplets of all layers are pruned by E = 0.

    The budget of triplets falls from `rank` to `target_rank` for each layer as (1 - (t - t_i) / (T - t_i - t_f))^3,
    between a warm-up of t_i steps and t_f last steps in which it is fixed.  The importance of an entry is the moving
    average of |w dL/dw| times that of its spread.  The penalty orthogonal * (|A A^T - I|^2 + |B^T B - I|^2) on the loss
    keeps A and B close to orthogonal.
    """

    reads_gradients = True

    def __init__(
        self,
        *,
        targets: Targets = ("linear",),
        rank: Rank = 12,
        target_rank: Annotated[int, Positive, "mean rank of the layers after pruning"] = 8,
        alpha: Alpha = 32.0,
        warmup: Annotated[float, Fraction, "share of the steps before the first pruning"] = 0.1,
        fixed: Annotated[float, Fraction, "share of the steps after the last pruning"] = 0.3,
        every: Annotated[int, Positive, "steps between prunings"] = 1,
        betas: Annotated[tuple[float, float], Beta, "decays of the averages of sensitivity and spread"] = (0.85, 0.85),
        orthogonal: Annotated[float, NonNegative, "weight of the orthogonality penalty"] = 0.1,
    ) -> None:
        super().__init__(targets)
        self.rank, self.target_rank, self.scale, self.betas = rank, target_rank, alpha / rank, betas
        self.warmup, self.fixed, self.every, self.orthogonal = warmup, fixed, every, orthogonal

    def adapter(self, layer: Any, path: str) -> Triplets:
        return Triplets(*widths(layer), self.rank, self.scale)

    def to_peft(self, model: nn.Module) -> ToPeft:
        """Export as LoRA: E is multiplied into A, so that pruned triplets are zero."""
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
                penalty = sum((t.orthogonality_penalty() for t in self._all(step.model)), torch.zeros(()))
                # Added to .grad before the step instead of to the loss: logged losses stay those of the other methods.
                (self.orthogonal * penalty).backward()
        return {}

    def budget(self, index: int, total: int, layers: int) -> int:
        """Number of triplets kept in `layers` layers after step `index` (from 1) of `total`."""
        start, end = self.warmup * total, (1 - self.fixed) * total
        remaining = 1 - (index - start) / max(1.0, end - start)
        full, final = layers * self.rank, layers * min(self.rank, self.target_rank)
        return int((full - final) * min(1.0, max(0.0, remaining)) ** 3 + final)

    @torch.no_grad()
    def after_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        all_, index = self._all(step.model), step.index + 1
        if index <= (1 - self.fixed) * step.total:
            for triplets in all_:
                triplets.observe(*self.betas)
            if index > self.warmup * step.total and index % self.every == 0:
                self.prune(all_, self.budget(index, step.total, len(all_)))
        for triplets in all_ if index > (1 - self.fixed) * step.total else ():
            triplets.lora_E *= triplets.kept  # the optimizer's momentum must not revive pruned triplets
        return {}

    @staticmethod
    @torch.no_grad()
    def prune(all_: list[Triplets], budget: int) -> None:
        """Set E = 0 for all but the `budget` most important triplets of the model."""
        scores = torch.cat([t.importance() for t in all_])
        # One threshold for the whole model: layers may keep different numbers of triplets.
        threshold = scores.kthvalue(len(scores) - budget).values if budget < len(scores) else scores.new_full((), -1.0)
        for triplets in all_:
            # E alone is set to 0, A and B stay: a pruned triplet can come back while the budget still falls.
            triplets.kept = triplets.importance()[:, None] > threshold
            triplets.lora_E *= triplets.kept


rule(
    when="peft.name == 'adalora' and peft.target_rank > peft.rank",
    why="adalora prunes from peft.rank={peft.rank} down to peft.target_rank={peft.target_rank}, which is larger",
    fix="peft.target_rank={peft.rank}",
    where="peft.target_rank",
)


class Nested(LowRank):
    """W x + (alpha / b) B[:, :b] A[:b] x, with b drawn from 1 ... r in each pass in training, else b = `used`."""

    def __init__(self, *low_rank: Any, alpha: float, frozen: bool, used: int | None) -> None:
        super().__init__(*low_rank)
        self.alpha, self.frozen, self.used = alpha, frozen, used or len(self.lora_A)

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        # Each layer draws its own rank, in every pass.
        rank = int(torch.randint(1, len(self.lora_A) + 1, ())) if self.training else self.used
        a, b = self.lora_A[:rank], self.lora_B[:, :rank]
        if self.training and self.frozen:  # gradients for row and column b only
            a = torch.cat([a[:-1].detach(), a[-1:]])
            b = torch.cat([b[:, :-1].detach(), b[:, -1:]], dim=1)
        return said(layer, x) + self.alpha / rank * F.linear(F.linear(x, a), b)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight + self.alpha / self.used * (self.lora_B[:, : self.used] @ self.lora_A[: self.used])


@pefts.register("dylora", paper="arXiv:2210.07558")
class DyLoRA(LayerPeft):
    """y = W x + (alpha / b) B[:, :b] A[:b] x with b uniform in 1 ... r: trains every rank up to r at once.

    frozen     a pass trains only row and column b, not those before
    used_rank  b outside of training
    """

    batch_dependent = True

    def __init__(
        self,
        *,
        targets: Targets = QUERY_VALUE,
        rank: Rank = 8,
        alpha: Alpha = 16.0,
        frozen: Annotated[bool, "train only row and column b in each pass"] = False,
        used_rank: Annotated[int | None, Positive, "rank outside of training; null: peft.rank, its maximum"] = None,
    ) -> None:
        super().__init__(targets)
        self.rank, self.alpha, self.frozen, self.used = rank, alpha, frozen, used_rank

    def adapter(self, layer: Any, path: str) -> Nested:
        return Nested(*widths(layer), self.rank, 1.0, alpha=self.alpha, frozen=self.frozen, used=self.used)

    def to_peft(self, model: nn.Module) -> ToPeft:
        """Export as LoRA of rank `used_rank`."""
        used = self.used or self.rank
        nested = [(path, a) for path, _, a in adapted(model) if isinstance(a, Nested)]
        return as_lora({path: (a.lora_A[:used], a.lora_B[:, :used]) for path, a in nested}, self.alpha / used)


rule(
    when="peft.name == 'dylora' and peft.used_rank is not None and peft.used_rank > peft.rank",
    why="peft.used_rank={peft.used_rank} is larger than the trained peft.rank={peft.rank}",
    fix="peft.used_rank={peft.rank}",
    where="peft.used_rank",
)
