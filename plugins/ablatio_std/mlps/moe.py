"""Mixtures of experts in which each token chooses its experts; causal, as nobody's choice depends on a later token."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Fraction, NonNegative, Range, mlps, rule
from ablatio.model.context import Context

from .dense import MlpWiring, plain
from .experts import Experts, experts_of
from .routing import BalanceBias, Router, balance_loss, capacity, normalised, shares, within, z_loss

METRICS = ("train/moe_balance", "train/moe_z", "train/moe_dropped", "train/moe_load")
Part = TypeVar("Part", bound=Callable[..., nn.Module])


def says(**facts: Any) -> Callable[[Part], Part]:
    """Decorator: the facts of a part that is a function."""

    def add(part: Part) -> Part:
        vars(part).update(facts)
        return part

    return add


class TokenChoice(nn.Module):
    """shared(x) + sum of gate_e(x) * expert_e(x) over the top_k experts of each token.  (B, T, D) -> same.

    In training an expert takes `factor * top_k * T / E` assignments of a row (None: all), first come first served, and
    a token that finds no room passes by.  Outside training there is room for all, so that rows, documents and decoded
    tokens depend on what came before them alone.
    """

    def __init__(
        self,
        experts: Experts,
        router: Router,
        top_k: int,
        *,
        scores: Callable[[Tensor], Tensor],
        normalize: bool,
        factor: float | None,
        weights: tuple[float, float],
        sparse_layers: int,
        dropout: float,
        shared: nn.Module | None = None,
        bias: BalanceBias | None = None,
    ) -> None:
        """weights: of the balance loss and the router's z-loss."""
        super().__init__()
        self.router, self.experts, self.shared, self.balance_bias = router, experts, shared, bias
        self.top_k, self.scores, self.normalize, self.factor = top_k, scores, normalize, factor
        self.weights, self.sparse_layers, self.dropout = weights, sparse_layers, dropout
        self.idle_parameters = (experts.experts - top_k) * experts.expert_parameters

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        logits = self.router(x)  # (B, T, E)
        scores = self.scores(logits)
        wish = scores if self.balance_bias is None else self.balance_bias(scores)
        chosen = wish.topk(self.top_k, dim=-1).indices  # (B, T, k)
        gates = scores.gather(-1, chosen)
        if self.normalize:
            gates = normalised(gates)
        if self.training:
            gates = gates * self._train(logits, scores, chosen, ctx).to(gates.dtype)
        y = self.experts(x.flatten(0, 1), chosen.flatten(0, 1), gates.flatten(0, 1)).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x, ctx)
        return F.dropout(y, self.dropout, self.training) if self.dropout else y

    def _train(self, logits: Tensor, scores: Tensor, chosen: Tensor, ctx: Context) -> Tensor:
        """Losses and measures of a training pass; which assignments find room: (B, T, k)."""
        count, real = self.experts.experts, None if ctx.segments is None else ctx.segments >= 0
        share = shares(chosen, count, real)
        balance, z = self.weights
        if balance:
            ctx.add_loss("train/moe_balance", balance * balance_loss(normalised(scores), share, real))
        if z:
            ctx.add_loss("train/moe_z", z * z_loss(logits, real))
        if self.balance_bias is not None:
            self.balance_bias.follow(share)
        kept = torch.ones_like(chosen, dtype=torch.bool)
        if self.factor is not None:
            kept = within(chosen, count, capacity(chosen.shape[1], self.top_k, count, self.factor), real)
        ctx.measure("train/moe_dropped", (1 - kept.float().mean()) / self.sparse_layers)
        ctx.measure("train/moe_load", share.max() * count / self.sparse_layers)
        return kept


def softmax(logits: Tensor) -> Tensor:
    """Over the experts."""
    return logits.softmax(-1)


@mlps.register("moe", paper="arXiv:2101.03961")
@says(metrics=METRICS, batch_dependent=True)
def moe(
    *,
    experts: Annotated[int, Range(2, 4096), "in each sparse layer"] = 8,
    top_k: Annotated[int, Range(1, 64), "experts of a token: 1 as in Switch, 2 as in GShard and Mixtral"] = 1,
    capacity_factor: Annotated[float | None, Range(0.01, 1000), "in training; null drops no token"] = 1.25,
    balance: Annotated[float, NonNegative, "weight of the balance loss"] = 0.01,
    z_loss: Annotated[float, NonNegative, "weight of the router's z-loss (ST-MoE, arXiv:2202.08906)"] = 0.001,
    jitter: Annotated[float, Fraction, "noise on the router's input in training"] = 0.01,
    every: Annotated[int, Range(1, 1000), "each n-th layer has experts, the others are dense"] = 1,
    **wiring: Unpack[MlpWiring],
) -> nn.Module:
    """y = sum of p_e(x) expert_e(x) over the top_k experts, p = softmax(x W^T).  (B, T, D) -> same.

    Each expert has the dense part's shape.  top_k = 1 (Switch, Fedus et al. 2021): the gate is the probability itself;
    from 2 on (GShard, arXiv:2006.16668; Mixtral) the chosen ones' are normalised.  In training an expert takes
    capacity_factor * top_k * T / experts assignments of a row, the first ones; the rest pass by through the residual.
    Evaluation drops nothing.  Unlike in GShard, second choices do not wait for the first choices of later tokens.
    The balance loss is E sum_e f_e P_e with the shares f of all assignments: 1 when they are even.
    """
    if (wiring["layer"] + 1) % every:
        return plain(wiring)
    return TokenChoice(
        experts_of(wiring, experts, wiring["d_ff"]),
        Router(wiring["d_model"], experts, jitter),
        top_k,
        scores=softmax,
        normalize=top_k > 1,
        factor=capacity_factor,
        weights=(balance, z_loss),
        sparse_layers=wiring["n_layers"] // every,
        dropout=wiring["dropout"],
    )


@mlps.register("deepseek_moe", paper="arXiv:2401.06066")
@says(metrics=METRICS, batch_dependent=True)
def deepseek_moe(
    *,
    experts: Annotated[int, Range(2, 4096), "that are chosen from, in each sparse layer"] = 15,
    shared: Annotated[int, Range(0, 64), "experts that every token passes through"] = 1,
    top_k: Annotated[int, Range(1, 64), "chosen experts of a token"] = 3,
    granularity: Annotated[int, Range(1, 64), "an expert has d_ff / granularity inner units"] = 4,
    scores: Annotated[Literal["softmax", "sigmoid"], "sigmoid as in DeepSeek-V3 (arXiv:2412.19437)"] = "softmax",
    normalize: Annotated[bool, "the gates of a token add up to 1"] = False,
    bias_rate: Annotated[float, NonNegative, "step of the balancing bias (arXiv:2408.15664: 0.001); 0 for none"] = 0.0,
    balance: Annotated[float, NonNegative, "weight of the balance loss"] = 0.01,
    dense_layers: Annotated[int, Range(0, 1000), "first layers that stay dense"] = 0,
    **wiring: Unpack[MlpWiring],
) -> nn.Module:
    """y = shared(x) + sum of s_e(x) expert_e(x) over the top_k of many narrow experts, s = softmax or sigmoid of x W^T.

    DeepSeekMoE (Dai et al. 2024).  With shared + top_k = granularity a token does the dense part's work.  No token is
    dropped.  bias_rate > 0 balances without a loss (then set balance=0): experts are chosen by s_e + b_e, and b_e
    moves by bias_rate against the sign of the excess load in each training pass; gates keep s_e.  (B, T, D) -> same.
    """
    if wiring["layer"] < dense_layers:
        return plain(wiring)
    width = max(2, round(wiring["d_ff"] / granularity / 2) * 2)  # even: rows that start anywhere have the same bits
    return TokenChoice(
        experts_of(wiring, experts, width),
        Router(wiring["d_model"], experts),
        top_k,
        scores=softmax if scores == "softmax" else torch.sigmoid,
        normalize=normalize,
        factor=None,
        weights=(balance, 0.0),
        sparse_layers=wiring["n_layers"] - dense_layers,
        dropout=wiring["dropout"],
        shared=plain(wiring | {"d_ff": shared * width, "dropout": 0.0}) if shared else None,
        bias=BalanceBias(experts, bias_rate) if bias_rate else None,
    )


rule(
    when="mlp.name in ('moe', 'deepseek_moe') and mlp.top_k > mlp.experts",
    why="a token cannot go to top_k={mlp.top_k} of {mlp.experts} experts",
    fix="mlp.top_k={mlp.experts}",
)
rule(
    when="mlp.name == 'moe' and mlp.every > model.n_layers",
    why="every={mlp.every} leaves no layer of {model.n_layers} with experts",
    fix="mlp.every={model.n_layers}",
)
rule(
    when="mlp.name == 'deepseek_moe' and mlp.dense_layers >= model.n_layers",
    why="dense_layers={mlp.dense_layers} leaves no layer of {model.n_layers} with experts",
    fix="mlp.dense_layers={model.n_layers - 1}",
)
