"""Valid parts with unusual properties: the contract suites must accept all of them."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import (
    Fraction,
    Positive,
    Range,
    activations,
    attentions,
    inits,
    mlps,
    norms,
    objectives,
    optimizers,
    placements,
    positions,
    schedules,
    stabilizers,
)
from ablatio.data.batches import TrainBatches, ValidationBatches
from ablatio.data.order import WindowOrder
from ablatio.model.attention.kernels import merge_heads, split_heads
from ablatio.model.example import Example, Loss
from ablatio.model.task import Task
from ablatio.registry.kinds import tasks

PAPER = "doi:10.0/0"


@norms.register("nothing", paper=PAPER)
class Nothing(nn.Identity):
    """x: no norm at all.  (..., d_model) -> same."""

    def __init__(self) -> None:
        super().__init__()


@norms.register("tanhnorm", paper=PAPER)
class TanhNorm(nn.Module):
    """g tanh(a x) + b, bounded but not scale invariant (DyT).  (..., d_model) -> same."""

    def __init__(self, d_model: int, *, alpha: Annotated[float, Positive] = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha))
        self.weight, self.bias = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (self.alpha * x).tanh() + self.bias


@activations.register("swish_beta", paper=PAPER)
class SwishBeta(nn.Module):
    """x sigmoid(b x) with a trained b for each feature.  (..., d_ff) -> same."""

    def __init__(self, d_ff: int, *, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.full((d_ff,), beta))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.beta * x).sigmoid()


@placements.register("closed", paper=PAPER)
class Closed(nn.Module):
    """x + a f(norm(x)) with a = 0 at the start (ReZero).  (B, T, D) -> same."""

    gain = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, sublayer: Any, norm: nn.Module) -> Tensor:
        return x + self.alpha * sublayer(norm(x))


@placements.register("two", paper=PAPER)
class Two:
    """x + norm(f(norm(x))), two norms for each sublayer.  (B, T, D) -> same."""

    n_norms, gain = 2, 1.0

    def __call__(self, x: Tensor, sublayer: Any, norm: Any) -> Tensor:
        return x + norm[1](sublayer(norm[0](x)))


@positions.register("keyed", paper=PAPER)
class Keyed(nn.Module):
    """logits += q . r[clip(t - s)]: relative keys, dependent on the query (Shaw et al.)."""

    def __init__(self, d_head: int, *, reach: Annotated[int, Range(1, 64)] = 8) -> None:
        super().__init__()
        self.reach = reach
        self.table = nn.Embedding(2 * reach + 1, d_head)

    def score(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        distance = (q_pos[..., :, None] - k_pos[..., None, :]).clamp(-self.reach, self.reach) + self.reach
        keys = self.table(distance)  # (T, S, d_head) or (B, T, S, d_head)
        keys = keys if keys.dim() == 4 else keys[None]
        return (q.movedim(1, 2) @ keys.transpose(-1, -2)).movedim(2, 1) / math.sqrt(q.shape[-1])


@mlps.register("experts", paper=PAPER)
class Experts(nn.Module):
    """Top-1 of n expert networks per token, and a load balancing loss (Switch).  (B, T, D) -> same."""

    metrics = ("train/balance",)

    def __init__(self, d_model: int, d_ff: int, *, experts: Annotated[int, Range(2, 64)] = 4) -> None:
        super().__init__()
        self.router = nn.Linear(d_model, experts, bias=False)
        self.up_proj = nn.Parameter(torch.randn(experts, d_model, d_ff) * 0.02)
        self.down_proj = nn.Parameter(torch.randn(experts, d_ff, d_model) * 0.02)

    def forward(self, x: Tensor, ctx: Any) -> Tensor:
        share, best = self.router(x).softmax(-1).max(-1)  # (B, T)
        chosen = F.one_hot(best, self.up_proj.shape[0]).to(x.dtype)
        inner = torch.einsum("btd,edf->btef", x, self.up_proj).relu() * chosen[..., None]
        ctx.add_loss("train/balance", 0.01 * share.square().mean())
        return torch.einsum("btef,efd->btd", inner, self.down_proj) * share[..., None]


@attentions.register("kernel", paper=PAPER)
class Kernel(nn.Module):
    """sum_s phi(q_t) . phi(k_s) v_s / sum: no softmax, no cache, no packed documents.  (B, T, D) -> same."""

    caches, takes_bias, takes_segments = False, False, False

    def __init__(self, d_model: int, d_head: int, n_heads: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d_model, n_heads * d_head, bias=False) for _ in "qkv")
        self.o_proj, self.d_head = nn.Linear(n_heads * d_head, d_model, bias=False), d_head

    def forward(self, x: Tensor, ctx: Any) -> Tensor:
        q, k, v = (split_heads(p(x), self.d_head) for p in (self.q_proj, self.k_proj, self.v_proj))
        weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-1, -2)).tril()
        return self.o_proj(merge_heads(weights / weights.sum(-1, keepdim=True) @ v))


@inits.register("closing", paper=PAPER)
def closing(weight: Tensor, info: Any, generator: torch.Generator, *, std: Annotated[float, Positive] = 0.02) -> None:
    """N(0, std^2), and zero for projections into the residual stream."""
    weight.normal_(0, 0.0 if info.residual else std, generator=generator)


@objectives.register("holes", paper=PAPER)
class Holes:
    """Predict a random share of the next tokens, drawn for each batch."""

    def __init__(self, *, share: Annotated[float, Fraction] = 0.5) -> None:
        self.share = share

    def __call__(self, tokens: Tensor, segments: Tensor | None, generator: torch.Generator) -> Example:
        drawn = torch.rand(tokens[:, 1:].shape, generator=generator) < self.share
        return Example(tokens[:, :-1], tokens[:, 1:], drawn.float(), None if segments is None else segments[:, :-1])


class _Sign(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.sub_((group["beta"] * m + (1 - group["beta"]) * p.grad).sign(), alpha=group["lr"])
                m.lerp_(p.grad, 0.01)
        return loss


@optimizers.register("signs", paper=PAPER)
def signs(
    groups: list[Any], *, lr: Annotated[float, Positive] = 1e-3, beta: Annotated[float, Fraction] = 0.9
) -> torch.optim.Optimizer:
    """w <- w - lr sign(beta m + (1 - beta) g), a slow learning rate (Lion)."""
    return _Sign([dict(g) for g in groups], {"lr": lr, "beta": beta})


@schedules.register("shelf", paper=PAPER)
def shelf(step: int, total: int, *, decay: Annotated[float, Fraction] = 0.2) -> float:
    """1, then linear decay to 0 over the last share of the steps (WSD)."""
    last = max(1, round(decay * total))
    return min(1.0, max(0.0, (total - step) / last))


@stabilizers.register("average", paper=PAPER)
class Average:
    """Keeps an average of the weights; logs nothing."""

    def __init__(self, *, decay: Annotated[float, Fraction] = 0.99) -> None:
        self.decay, self.held = decay, Tensor()

    def after_step(self, step: Any) -> dict[str, Tensor]:
        now = torch.cat([p.detach().flatten() for p in step.parameters])
        self.held = torch.lerp(now, self.held, self.decay) if self.held.numel() else now.clone()
        return {}


@dataclass
class Lengths:
    """Rows of tokens (B, T), and the share of bytes up to 32 in each row (B,)."""

    rows: Tensor
    shares: Tensor

    def to(self, device: Any) -> "Lengths":
        return Lengths(self.rows.to(device), self.shares.to(device))


@tasks.register("spaces", paper=PAPER)
class Spaces(Task):
    """(head(h_T) - share of bytes up to 32)^2, less a running mean: no objective, no token metrics, a state."""

    accepts, scores, main, better, metrics = "documents", ("correlation",), "correlation", "higher", ("train/mean",)

    def __init__(self, setup: Any, *, momentum: Annotated[float, Fraction] = 0.9) -> None:
        self.setup, self.momentum, self.mean = setup, momentum, torch.zeros(())
        self.corpus, self.tokenizer = setup.corpus(setup.source())
        self.content = {"fingerprint": self.corpus.fingerprint}

    @property
    def training(self) -> TrainBatches:
        order = WindowOrder(len(self.corpus.train), self.setup.length, self.setup.seeds.data)
        return TrainBatches(self.corpus.train, order, self.setup.plan, eos=self.tokenizer.eos, document_mask=False)

    def validation(self, length: int | None = None, tokens: int | None = None) -> ValidationBatches:
        stream = self.corpus.validation
        return ValidationBatches(stream, length or self.setup.length, 8, eos=self.tokenizer.eos, document_mask=False)

    def tokens(self, steps: int) -> int:
        return self.setup.plan.step(steps)[0] * (self.setup.length + 1)

    def attach(self, model: Any) -> None:
        model.space_head = nn.Linear(model.lm_head.in_features, 1)
        nn.init.zeros_(model.space_head.weight)
        nn.init.zeros_(model.space_head.bias)

    def example(self, batch: Any, generator: torch.Generator) -> Lengths:
        return Lengths(batch["tokens"][:, :-1], (batch["tokens"][:, :-1] <= 32).float().mean(1))

    def _predicted(self, model: Any, example: Lengths) -> Tensor:
        return model.space_head(model.model(example.rows).mean(1))[:, 0]

    def loss(self, model: Any, example: Lengths) -> Loss:
        self.mean = torch.lerp(example.shares.mean(), self.mean, self.momentum)
        error = self._predicted(model, example) - (example.shares - self.mean)
        return Loss(error.square().sum(), torch.tensor(float(len(error))), {"train/mean": self.mean})

    @torch.no_grad()
    def score(self, model: Any, batches: Any, device: Any, between: Any) -> dict[str, float]:
        mode, predicted, true = model.training, [], []
        model.eval()
        for number, batch in enumerate(batches):
            example = self.example(batch, torch.Generator()).to(device)
            predicted.append(self._predicted(model, example))
            true.append(example.shares)
            between(number)
        model.train(mode)
        a, b = torch.cat(predicted), torch.cat(true)
        return {"correlation": float(F.cosine_similarity(a - a.mean(), b - b.mean(), dim=0)), "rows": len(a)}

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mean = state["mean"]
