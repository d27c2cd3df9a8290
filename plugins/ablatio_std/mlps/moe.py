"""Mixtures of experts in which each token chooses its experts: causal, as no choice depends on a later token."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import Fraction, NonNegative, Range, Schedulable, mlps, rule
from ablatio.model.context import Context

from .dense import MlpWiring, build_dense
from .experts import READS_LOADS, Experts, build_experts
from .routing import (
    BalanceBias,
    Router,
    balance_loss,
    capacity,
    fits_capacity,
    load_shares,
    normalize_gates,
    z_loss,
)

Balance = Annotated[float, NonNegative, Schedulable(), "weight of the balance loss"]
METRICS = ("train/moe_balance", "train/moe_z", "train/moe_dropped", "train/moe_load")
Part = TypeVar("Part", bound=Callable[..., nn.Module])


def with_facts(**facts: Any) -> Callable[[Part], Part]:
    """Decorate a part that is a function with its facts, which a class declares as attributes."""

    def decorate(part: Part) -> Part:
        vars(part).update(facts)
        return part

    return decorate


class TokenChoice(nn.Module):
    """shared(x) + sum of gate_e(x) * expert_e(x) over the top_k experts e of each token.  (B, T, D) -> same.

    In training an expert accepts the first `factor * top_k * T / E` assignments of a row (factor=None: all), in the
    order of the tokens; further assignments are dropped, and the residual stream alone carries those tokens.  Outside
    training nothing is dropped, so that rows, documents and decoded tokens depend only on earlier tokens.
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
        """Set up the layer from its router and experts.

        Args:
            experts: the routed experts.
            router: gives the logits (B, T, E).
            top_k: number of experts for each token.
            scores: maps logits to scores, of which the gates are made.
            normalize: True if the gates of a token are divided by their sum.
            factor: capacity factor in training; None drops no assignment.
            weights: weights of the balance loss and of the router's z-loss.
            sparse_layers: number of layers with experts; logged measures are means over them.
            dropout: dropout probability of the output.
            shared: expert for all tokens, or None.
            bias: balancing bias on the scores by which experts are chosen, or None.
        """
        super().__init__()
        self.router, self.experts, self.shared, self.balance_bias = router, experts, shared, bias
        self.top_k, self.scores, self.normalize, self.factor = top_k, scores, normalize, factor
        self.balance, self.z_loss = weights
        self.sparse_layers, self.dropout = sparse_layers, dropout
        self.idle_parameters = (experts.experts - top_k) * experts.expert_parameters

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        logits = self.router(x)  # (B, T, E)
        scores = self.scores(logits)
        ranking = scores if self.balance_bias is None else self.balance_bias(scores)
        chosen = ranking.topk(self.top_k, dim=-1).indices  # (B, T, k)
        # From the scores without the bias: it balances the choice and must not change the outputs.
        gates = scores.gather(-1, chosen)  # (B, T, k)
        if self.normalize:
            gates = normalize_gates(gates)
        if self.training:
            # A dropped assignment has the gate 0: its expert still computes it, which keeps shapes independent of the
            # loads.
            gates = gates * self._training_step(logits, scores, chosen, ctx).to(gates.dtype)
        y = self.experts(x.flatten(0, 1), chosen.flatten(0, 1), gates.flatten(0, 1)).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x, ctx)
        return F.dropout(y, self.dropout, self.training) if self.dropout else y

    def _training_step(self, logits: Tensor, scores: Tensor, chosen: Tensor, ctx: Context) -> Tensor:
        """Record losses and measures of a training pass; return which assignments are kept: (B, T, k) bool."""
        count, real = self.experts.experts, None if ctx.segments is None else ctx.segments >= 0
        # Of what was asked for, not of what was kept: a full expert would else seem balanced.
        share = load_shares(chosen, count, real)
        if self.balance:
            # Scores are normalized for it, as sigmoid scores do not sum to 1.
            ctx.add_loss("train/moe_balance", self.balance * balance_loss(normalize_gates(scores), share, real))
        if self.z_loss:
            ctx.add_loss("train/moe_z", self.z_loss * z_loss(logits, real))
        if self.balance_bias is not None:
            self.balance_bias.update(share)
        kept = torch.ones_like(chosen, dtype=torch.bool)
        if self.factor is not None:
            limit = capacity(chosen.shape[1], self.top_k, count, self.factor)
            kept = fits_capacity(chosen, count, limit, real)
        ctx.measure("train/moe_dropped", (1 - kept.float().mean()) / self.sparse_layers)
        ctx.measure("train/moe_load", share.max() * count / self.sparse_layers)
        return kept


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the experts.  (..., E) -> same."""
    return logits.softmax(-1)


@mlps.register("moe", paper="arXiv:2101.03961")
@with_facts(metrics=METRICS, batch_dependent=True, waits=READS_LOADS)
def moe(
    *,
    experts: Annotated[int, Range(2, 4096), "number of experts in each sparse layer"] = 8,
    top_k: Annotated[int, Range(1, 64), "experts for each token: 1 as in Switch, 2 as in GShard and Mixtral"] = 1,
    capacity_factor: Annotated[
        float | None, Range(0.01, 1000), "an expert's capacity in training / mean load; null drops no token"
    ] = 1.25,
    balance: Balance = 0.01,
    z_loss: Annotated[
        float, NonNegative, Schedulable(), "weight of the router's z-loss (ST-MoE, arXiv:2202.08906)"
    ] = 0.001,
    jitter: Annotated[float, Fraction, "relative noise on the router's input in training"] = 0.01,
    every: Annotated[int, Range(1, 1000), "every n-th layer has experts; the others are dense"] = 1,
    **wiring: Unpack[MlpWiring],
) -> nn.Module:
    """y = sum of p_e(x) expert_e(x) over the top_k experts e, p = softmax(x W^T).  (B, T, D) -> same.

    Each expert has the dense layer's width.  With top_k = 1 (Switch, Fedus et al. 2021) the gate is the probability
    itself; with top_k >= 2 (GShard, arXiv:2006.16668; Mixtral) the probabilities of the chosen experts are normalized.
    In training an expert accepts the first capacity_factor * top_k * T / experts assignments of a row; for the others
    the residual stream alone carries the token.  Evaluation drops nothing.  Unlike in GShard, second choices do not
    wait for the first choices of later tokens.  The balance loss is E sum_e f_e P_e, with f_e the share of expert e in
    all assignments and P_e its mean probability: 1 for even loads.
    """
    if (wiring["layer"] + 1) % every:
        return build_dense(wiring)
    return TokenChoice(
        build_experts(wiring, experts, wiring["d_ff"]),
        Router(wiring["d_model"], experts, jitter),
        top_k,
        scores=softmax,
        # With one expert the normalized gate would be 1, and the router would have no gradient.
        normalize=top_k > 1,
        factor=capacity_factor,
        weights=(balance, z_loss),
        sparse_layers=wiring["n_layers"] // every,
        dropout=wiring["dropout"],
    )


@mlps.register("deepseek_moe", paper="arXiv:2401.06066")
@with_facts(metrics=METRICS, batch_dependent=True, waits=READS_LOADS)
def deepseek_moe(
    *,
    experts: Annotated[int, Range(2, 4096), "number of routed experts in each sparse layer"] = 15,
    shared: Annotated[int, Range(0, 64), "number of shared experts, which process every token"] = 1,
    top_k: Annotated[int, Range(1, 64), "routed experts for each token"] = 3,
    granularity: Annotated[int, Range(1, 64), "an expert has d_ff / granularity inner units"] = 4,
    scores: Annotated[Literal["softmax", "sigmoid"], "sigmoid as in DeepSeek-V3 (arXiv:2412.19437)"] = "softmax",
    normalize: Annotated[bool, "divide the gates of a token by their sum"] = False,
    bias_rate: Annotated[float, NonNegative, "step of the balancing bias (arXiv:2408.15664: 0.001); 0: no bias"] = 0.0,
    balance: Balance = 0.01,
    dense_layers: Annotated[int, Range(0, 1000), "number of dense layers before the first sparse one"] = 0,
    **wiring: Unpack[MlpWiring],
) -> nn.Module:
    """y = shared(x) + sum of s_e(x) expert_e(x) over the top_k of many narrow experts, s = softmax or sigmoid of x W^T.

    DeepSeekMoE (Dai et al. 2024).  With shared + top_k = granularity a token costs the same as in the dense layer.
    No token is dropped.  bias_rate > 0 balances without a loss (set balance=0 with it): experts are chosen by s_e +
    b_e, each training pass moves b_e by bias_rate against the sign of the excess load, and gates remain s_e.
    (B, T, D) -> same.
    """
    if wiring["layer"] < dense_layers:
        return build_dense(wiring)
    width = max(2, round(wiring["d_ff"] / granularity / 2) * 2)  # even: a row's bits do not depend on where it starts
    return TokenChoice(
        build_experts(wiring, experts, width),
        Router(wiring["d_model"], experts),
        top_k,
        scores=softmax if scores == "softmax" else torch.sigmoid,
        normalize=normalize,
        factor=None,
        weights=(balance, 0.0),
        sparse_layers=wiring["n_layers"] - dense_layers,
        dropout=wiring["dropout"],
        # Shared experts are one dense layer of their joint width: the same function in one product. Dropout acts on the
        # sum.
        shared=build_dense(wiring | {"d_ff": shared * width, "dropout": 0.0}) if shared else None,
        bias=BalanceBias(experts, bias_rate) if bias_rate else None,
    )


rule(
    when="mlp.name in ('moe', 'deepseek_moe') and mlp.top_k > mlp.experts",
    why="a token cannot choose mlp.top_k={mlp.top_k} of mlp.experts={mlp.experts} experts",
    fix="mlp.top_k={mlp.experts}",
)
rule(
    when="mlp.name == 'moe' and mlp.every > model.n_layers",
    why="mlp.every={mlp.every} leaves none of the model.n_layers={model.n_layers} layers with experts",
    fix="mlp.every={model.n_layers}",
)
rule(
    when="mlp.name == 'deepseek_moe' and mlp.dense_layers >= model.n_layers",
    why="mlp.dense_layers={mlp.dense_layers} leaves none of the model.n_layers={model.n_layers} layers with experts",
    fix="mlp.dense_layers={model.n_layers - 1}",
)
