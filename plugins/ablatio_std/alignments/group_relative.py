"""Group-relative methods: GRPO and its variants compare each answer with the other answers to the same prompt.

Symbols: r the reward of an answer, A its advantage, u = log p(token) - log p_old(token), ratio = exp(u); mean and std
over the answers to one prompt.  Rewards and advantages are (B,), log-probabilities and masks (B, T).
"""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from ablatio import NonNegative, Positive, alignments
from ablatio.model.rl.kl import k3, masked_mean
from ablatio.registry.kinds.alignment_inputs import Advantages
from ablatio_std.alignments._common import Metrics
from ablatio_std.alignments._policy import (
    CLIPPED,
    Clip,
    Epochs,
    Group,
    KLWeight,
    Minibatches,
    clip_metrics,
    clipped_surrogate,
    per_token,
)

Scale = Annotated[Literal["group", "batch", "none"], "divide rewards by the standard deviation of the group or batch"]
TINY = 1e-4  # added to the standard deviation: avoids 0/0 for equal rewards


class Grouped:
    """Base of the group-relative methods: A = (r - mean) / std; token loss -min(ratio A, clipped ratio A) + beta k3.

    Variants override `ratio`, `surrogate` (the policy loss of a token) or `average` (over tokens and answers).
    """

    data = "prompts"
    metrics: tuple[str, ...] = ("train/kl_loss", "train/flat_groups", *CLIPPED)
    group: int
    scale: str = "group"
    beta: float = 0.0
    clip: float = 0.2
    clip_high: float = 0.2

    def advantages(self, rewards: Tensor) -> Advantages:
        """Rewards (B,) -> advantages (B,); 0 for a group whose rewards are all equal."""
        grouped = rewards.view(-1, self.group)  # (prompts, group)
        centered = grouped - grouped.mean(1, keepdim=True)
        # The sample standard deviation (n - 1), as in trl.
        spread = grouped.std(1, keepdim=True) if self.scale == "group" else rewards.std()
        scaled = centered if self.scale == "none" else centered / (spread + TINY)
        # Compared directly: the mean of equal numbers can differ from them by rounding.
        flat = grouped.amax(1) == grouped.amin(1)
        metrics = {"train/flat_groups": flat.float().mean()}
        return Advantages(scaled.masked_fill(flat[:, None], 0.0).flatten(), metrics=metrics)

    def loss(
        self,
        logps: Tensor,
        old_logps: Tensor,
        ref_logps: Tensor,
        mask: Tensor,
        advantages: Tensor,
        tokens: Tensor,
        max_length: int,
    ) -> tuple[Tensor, Metrics]:
        advantages, ratio = per_token(advantages), self.ratio(logps - old_logps, mask)
        # In the loss and not in the reward: it does not enter the group's mean and deviation.
        kl = k3(logps, ref_logps)
        each = self.surrogate(ratio, advantages, logps) + self.beta * kl
        # One ratio per answer is counted once, not once per token.
        counted = mask if ratio.shape == mask.shape else mask[:, :1]
        metrics = clip_metrics(ratio, advantages.expand_as(ratio), counted, self.clip, self.clip_high)
        return self.average(each, mask, tokens, max_length), metrics | {"train/kl_loss": masked_mean(kl.detach(), mask)}

    def ratio(self, u: Tensor, mask: Tensor) -> Tensor:
        return u.exp()

    def surrogate(self, ratio: Tensor, advantages: Tensor, logps: Tensor) -> Tensor:
        return clipped_surrogate(ratio, advantages, self.clip, self.clip_high)

    def average(self, each: Tensor, mask: Tensor, tokens: Tensor, max_length: int) -> Tensor:
        """Mean over the tokens of each answer, then over the answers: (B, T) -> ()."""
        return ((each * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


@alignments.register("grpo", paper="arXiv:2402.03300")
class GRPO(Grouped):
    """A = (r - mean) / std; L = -min(ratio A, clipped ratio A) + beta k3, mean over each answer, then over answers."""

    def __init__(
        self,
        *,
        group: Group = 8,
        clip: Clip = 0.2,
        # The paper's weight; its groups have 64 answers.
        beta: KLWeight = 0.04,
        scale: Scale = "group",
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.clip, self.clip_high, self.beta, self.scale = group, clip, clip, beta, scale
        self.epochs, self.minibatches = epochs, minibatches


@alignments.register("dr_grpo", paper="arXiv:2503.20783")
class DrGRPO(Grouped):
    """GRPO without its length and std biases: A = r - mean; L = sum over tokens / (answers x max_length)."""

    scale = "none"

    def __init__(
        self,
        *,
        group: Group = 8,
        clip: Clip = 0.2,
        beta: KLWeight = 0.0,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.clip, self.clip_high, self.beta = group, clip, clip, beta
        self.epochs, self.minibatches = epochs, minibatches

    def average(self, each: Tensor, mask: Tensor, tokens: Tensor, max_length: int) -> Tensor:
        # A constant divisor: dividing by the answer's own length makes long wrong answers cheap.
        return (each * mask).sum() / (len(each) * max_length)


@alignments.register("dapo", paper="arXiv:2503.14476")
class DAPO(Grouped):
    """GRPO clipped at (1 - clip, 1 + clip_high), averaged over all tokens of the step, with a penalty on length.

    Over the last `overlong` tokens before the length limit, the reward falls linearly by 1 (eq. 13).
    Dynamic sampling: prompts whose answers all have advantage 0 are replaced by new ones, in at most `resample` rounds.
    """

    metrics = (*Grouped.metrics, "train/overlong", "train/resampled")

    def __init__(
        self,
        *,
        group: Group = 8,
        clip: Clip = 0.2,
        clip_high: Clip = 0.28,
        beta: KLWeight = 0.0,
        overlong: Annotated[int, NonNegative, "last tokens before the length limit that are penalized"] = 0,
        resample: Annotated[int, NonNegative, "rounds of replacing prompts with advantage 0; 0: none"] = 4,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.clip, self.clip_high, self.beta = group, clip, clip_high, beta
        self.overlong, self.resample, self.epochs, self.minibatches = overlong, resample, epochs, minibatches

    def advantages(self, rewards: Tensor, mask: Tensor, max_length: int) -> Advantages:  # type: ignore[override]
        # Subtracted before the group is centered: the penalty then ranks answers within their group, as a reward does.
        over = (mask.sum(1) - (max_length - self.overlong)).clamp(min=0) / max(1, self.overlong)
        found = super().advantages(rewards - over.to(rewards.dtype))
        return found._replace(metrics={**(found.metrics or {}), "train/overlong": (over > 0).to(rewards.dtype).mean()})

    def average(self, each: Tensor, mask: Tensor, tokens: Tensor, max_length: int) -> Tensor:
        # Tokens of the whole optimizer step: accumulated batches with unequal lengths then add up to the mean over all
        # tokens.
        return (each * mask).sum() / tokens.clamp(min=1)


@alignments.register("bnpo", paper="arXiv:2508.08221")
class BNPO(Grouped):
    """GRPO averaged over all tokens of the batch; by default scaled by the std of the whole batch (Lite PPO)."""

    def __init__(
        self,
        *,
        group: Group = 8,
        clip: Clip = 0.2,
        beta: KLWeight = 0.0,
        scale: Scale = "batch",
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.clip, self.clip_high, self.beta, self.scale = group, clip, clip, beta, scale
        self.epochs, self.minibatches = epochs, minibatches

    def average(self, each: Tensor, mask: Tensor, tokens: Tensor, max_length: int) -> Tensor:
        return masked_mean(each, mask)


@alignments.register("gspo", paper="arXiv:2507.18071")
class GSPO(Grouped):
    """GRPO with one ratio per answer, exp(mean of u over its tokens), clipped as a whole: (B, T) -> (B, 1)."""

    def __init__(
        self,
        *,
        group: Group = 8,
        clip: Clip = 3e-4,
        clip_high: Clip = 4e-4,
        beta: KLWeight = 0.0,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.clip, self.clip_high, self.beta = group, clip, clip_high, beta
        self.epochs, self.minibatches = epochs, minibatches

    def ratio(self, u: Tensor, mask: Tensor) -> Tensor:
        # The geometric mean of the token ratios: it does not grow with the length, so one narrow clip fits all answers.
        return ((u * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).exp()


@alignments.register("luspo", paper="arXiv:2602.05261")
class LUSPO(GSPO):
    """GSPO with each answer's loss multiplied by its length: L = mean over answers of the sum over tokens."""

    def average(self, each: Tensor, mask: Tensor, tokens: Tensor, max_length: int) -> Tensor:
        # The ratio is one number per answer, so the sum over tokens is the length times GSPO's loss of the answer.
        return (each * mask).sum(1).mean()


@alignments.register("cispo", paper="arXiv:2506.13585")
class CISPO(Grouped):
    """L = -stop_gradient(min(ratio, clip_high)) A log p, the mean over all tokens of the step.

    The weight is clipped, not the update, so that every token keeps its gradient: train/clip_fraction is the share of
    tokens with A > 0 whose weight is clipped, as in trl.
    """

    detached = True

    def __init__(
        self,
        *,
        group: Group = 8,
        clip_high: Annotated[float, Positive, "largest ratio used as a weight"] = 5.0,
        beta: KLWeight = 0.0,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        # clip and clip_high serve train/clip_fraction: 1 - clip = 0 clips nothing below, as the paper does.
        self.group, self.most, self.clip_high, self.clip, self.beta = group, clip_high, clip_high - 1, 1.0, beta
        self.epochs, self.minibatches = epochs, minibatches

    def surrogate(self, ratio: Tensor, advantages: Tensor, logps: Tensor) -> Tensor:
        # The gradient of log p, not of the ratio: a detached weight cannot switch it off.
        return -ratio.clamp(max=self.most).detach() * advantages * logps

    def average(self, each: Tensor, mask: Tensor, tokens: Tensor, max_length: int) -> Tensor:
        return (each * mask).sum() / tokens.clamp(min=1)


@alignments.register("sapo", paper="arXiv:2511.20347")
class SAPO(Grouped):
    """L = -(4 / t) sigmoid(t (ratio - 1)) A: a soft gate instead of a clip, with its temperature t by the sign of A."""

    # No ratio is clipped: the gate and the weight fall smoothly, and train/clip_fraction is 0.
    clip = clip_high = math.inf

    def __init__(
        self,
        *,
        group: Group = 8,
        temperature: Annotated[float, Positive, "t of tokens with A > 0"] = 1.0,
        temperature_negative: Annotated[float, Positive, "t of the other tokens; higher: faster decay"] = 1.05,
        beta: KLWeight = 0.0,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.beta, self.epochs, self.minibatches = group, beta, epochs, minibatches
        self.temperatures = (temperature, temperature_negative)

    def surrogate(self, ratio: Tensor, advantages: Tensor, logps: Tensor) -> Tensor:
        t = torch.where(advantages > 0, *self.temperatures)
        # 4 / t makes the slope at ratio = 1 equal to 1 for every t: on-policy this is the plain policy gradient.
        return -torch.sigmoid(t * (ratio - 1)) * 4 / t * advantages


@alignments.register("vespo", paper="arXiv:2602.10693")
class VESPO(Grouped):
    """L = -phi(w) A log p, phi = w^k exp(l (1 - w)) without gradient, w = exp(sum of u); k, l by the sign of A.

    w is one number per answer; the mean is over all tokens of the step.
    """

    detached = True
    clip = clip_high = math.inf  # as in sapo

    def __init__(
        self,
        *,
        group: Group = 8,
        k: Annotated[float, Positive, "k of answers with A >= 0"] = 2.0,
        l: Annotated[float, Positive, "l of answers with A >= 0"] = 3.0,  # noqa: E741  (its paper's lambda)
        k_negative: Annotated[float, Positive, "k of answers with A < 0"] = 3.0,
        l_negative: Annotated[float, Positive, "l of answers with A < 0"] = 2.0,
        beta: KLWeight = 0.0,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.beta, self.epochs, self.minibatches = group, beta, epochs, minibatches
        self.k, self.l = (k, k_negative), (l, l_negative)

    def ratio(self, u: Tensor, mask: Tensor) -> Tensor:
        # Bounded before exp: the sum over a long answer overflows float32 at 88.
        log_w = (u.clamp(-20, 20) * mask).sum(1, keepdim=True).clamp(-18.420680743952367, 20)  # w from 1e-8 to e^20
        return log_w.exp()

    def surrogate(self, ratio: Tensor, advantages: Tensor, logps: Tensor) -> Tensor:
        w = ratio.detach()
        k, rate = torch.where(advantages >= 0, *self.k), torch.where(advantages >= 0, *self.l)
        # One exponent: w^k or exp(l (1 - w)) alone can leave the range of float32 where their product does not.
        phi = (rate + k * w.log() - rate * w).exp()
        return -phi * advantages * logps

    def average(self, each: Tensor, mask: Tensor, tokens: Tensor, max_length: int) -> Tensor:
        return (each * mask).sum() / tokens.clamp(min=1)
