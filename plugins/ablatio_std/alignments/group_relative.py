"""Several answers to one prompt, each judged against its siblings: GRPO and what others made of it.

Symbols: r the reward of an answer, A its advantage, u = log p(token) - log p_old(token), ratio = exp(u), mean and std
over the answers to one prompt.  The loss takes rewards (B,) as advantages (B,), log-probabilities (B, T) and a mask.
"""

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
    column,
)

Scale = Annotated[Literal["group", "batch", "none"], "whose standard deviation rewards are divided by"]
TINY = 1e-4  # rewards that are all equal are divided by this


class Grouped:
    """A = (r - mean) / std; the loss of a token is -min(ratio A, clipped ratio A) + beta k3."""

    data = "prompts"
    metrics: tuple[str, ...] = ("train/kl_loss", "train/flat_groups", *CLIPPED)
    group: int
    scale: str = "group"
    beta: float = 0.0
    clip: float = 0.2
    clip_high: float = 0.2

    def advantages(self, rewards: Tensor) -> Advantages:
        """(B,) -> (B,): equal rewards teach nothing."""
        grouped = rewards.view(-1, self.group)
        centred = grouped - grouped.mean(1, keepdim=True)
        spread = grouped.std(1, keepdim=True) if self.scale == "group" else rewards.std()
        found = centred if self.scale == "none" else centred / (spread + TINY)
        flat = grouped.amax(1) == grouped.amin(1)  # a mean of equal numbers may miss them by a rounding
        metrics = {"train/flat_groups": flat.float().mean()}
        return Advantages(found.masked_fill(flat[:, None], 0.0).flatten(), metrics=metrics)

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
        advantages, ratio = column(advantages), self.ratio(logps - old_logps, mask)
        kl = k3(logps, ref_logps)
        each = self.surrogate(ratio, advantages, logps) + self.beta * kl
        counted = mask if ratio.shape == mask.shape else mask[:, :1]
        metrics = clip_metrics(ratio, advantages.expand_as(ratio), counted, self.clip, self.clip_high)
        return self.average(each, mask, tokens, max_length), metrics | {"train/kl_loss": masked_mean(kl.detach(), mask)}

    def ratio(self, u: Tensor, mask: Tensor) -> Tensor:
        return u.exp()

    def surrogate(self, ratio: Tensor, advantages: Tensor, logps: Tensor) -> Tensor:
        return clipped_surrogate(ratio, advantages, self.clip, self.clip_high)

    def average(self, each: Tensor, mask: Tensor, tokens: Tensor, max_length: int) -> Tensor:
        """Over the tokens of each answer, then over the answers."""
        return ((each * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


@alignments.register("grpo", paper="arXiv:2402.03300")
class GRPO(Grouped):
    """A = (r - mean) / std of the group; L = mean over answers, then tokens, of clipped -ratio A + beta k3."""

    def __init__(
        self,
        *,
        group: Group = 8,
        clip: Clip = 0.2,
        beta: KLWeight = 0.04,
        scale: Scale = "group",
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.clip, self.clip_high, self.beta, self.scale = group, clip, clip, beta, scale
        self.epochs, self.minibatches = epochs, minibatches


@alignments.register("dr_grpo", paper="arXiv:2503.20783")
class DrGRPO(Grouped):
    """A = r - mean; L = sum over tokens / (answers x max_length): neither length nor spread biases what is learnt."""

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
        return (each * mask).sum() / (len(each) * max_length)


@alignments.register("dapo", paper="arXiv:2503.14476")
class DAPO(Grouped):
    """GRPO clipped at (1 - clip, 1 + clip_high) and averaged over the step's tokens, with a price on length.

    Within the last `overlong` of the tokens that an answer may have, the reward falls linearly by 1 (eq. 13).
    Dynamic sampling: prompts whose answers all have the advantage 0 are replaced, in `resample` rounds at most.
    """

    metrics = (*Grouped.metrics, "train/overlong", "train/resampled")

    def __init__(
        self,
        *,
        group: Group = 8,
        clip: Clip = 0.2,
        clip_high: Clip = 0.28,
        beta: KLWeight = 0.0,
        overlong: Annotated[int, NonNegative, "tokens before the longest length in which the reward falls"] = 0,
        resample: Annotated[int, NonNegative, "rounds of other prompts for those that teach nothing; 0: none"] = 4,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.clip, self.clip_high, self.beta = group, clip, clip_high, beta
        self.overlong, self.resample, self.epochs, self.minibatches = overlong, resample, epochs, minibatches

    def advantages(self, rewards: Tensor, mask: Tensor, max_length: int) -> Advantages:  # type: ignore[override]
        over = (mask.sum(1) - (max_length - self.overlong)).clamp(min=0) / max(1, self.overlong)
        found = super().advantages(rewards - over.to(rewards.dtype))
        return found._replace(metrics={**(found.metrics or {}), "train/overlong": (over > 0).to(rewards.dtype).mean()})

    def average(self, each: Tensor, mask: Tensor, tokens: Tensor, max_length: int) -> Tensor:
        return (each * mask).sum() / tokens.clamp(min=1)


@alignments.register("bnpo", paper="arXiv:2508.08221")
class BNPO(Grouped):
    """GRPO averaged over all tokens of the batch at hand; by default with the spread of the whole batch (Lite PPO)."""

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
    """GRPO whose ratio is that of the whole answer, per token: exp(mean of u); clipped as a whole.  (B, T) -> (B, 1)"""

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
        return ((u * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).exp()


@alignments.register("luspo", paper="arXiv:2602.05261")
class LUSPO(GSPO):
    """GSPO with each answer's loss multiplied by its length: L = mean over answers of the sum over tokens."""

    def average(self, each: Tensor, mask: Tensor, tokens: Tensor, max_length: int) -> Tensor:
        return (each * mask).sum(1).mean()


@alignments.register("cispo", paper="arXiv:2506.13585")
class CISPO(Grouped):
    """L = -min(ratio, clip_high) A log p, the ratio without gradient: tokens far off still teach.  Over all tokens."""

    detached = True

    def __init__(
        self,
        *,
        group: Group = 8,
        clip_high: Annotated[float, Positive, "largest ratio that counts"] = 5.0,
        beta: KLWeight = 0.0,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.most, self.clip_high, self.clip, self.beta = group, clip_high, clip_high - 1, 1.0, beta
        self.epochs, self.minibatches = epochs, minibatches

    def surrogate(self, ratio: Tensor, advantages: Tensor, logps: Tensor) -> Tensor:
        return -ratio.clamp(max=self.most).detach() * advantages * logps

    def average(self, each: Tensor, mask: Tensor, tokens: Tensor, max_length: int) -> Tensor:
        return (each * mask).sum() / tokens.clamp(min=1)


@alignments.register("sapo", paper="arXiv:2511.20347")
class SAPO(Grouped):
    """L = -(4 / t) sigmoid(t (ratio - 1)) A, t by the sign of A: a soft gate instead of a clip."""

    def __init__(
        self,
        *,
        group: Group = 8,
        temperature: Annotated[float, Positive, "t of tokens with A > 0"] = 1.0,
        temperature_negative: Annotated[float, Positive, "t of the others: higher, so they fade sooner"] = 1.05,
        beta: KLWeight = 0.0,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.beta, self.epochs, self.minibatches = group, beta, epochs, minibatches
        self.temperatures = (temperature, temperature_negative)

    def surrogate(self, ratio: Tensor, advantages: Tensor, logps: Tensor) -> Tensor:
        t = torch.where(advantages > 0, *self.temperatures)
        return -torch.sigmoid(t * (ratio - 1)) * 4 / t * advantages


@alignments.register("vespo", paper="arXiv:2602.10693")
class VESPO(Grouped):
    """L = -phi(w) A log p, phi = w^k exp(l (1 - w)) without gradient, w = exp(sum of u); k, l by the sign of A."""

    detached = True

    def __init__(
        self,
        *,
        group: Group = 8,
        k: Annotated[float, Positive, "of answers with A >= 0"] = 2.0,
        l: Annotated[float, Positive, "of answers with A >= 0"] = 3.0,  # noqa: E741  (its paper's lambda)
        k_negative: Annotated[float, Positive] = 3.0,
        l_negative: Annotated[float, Positive] = 2.0,
        beta: KLWeight = 0.0,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.beta, self.epochs, self.minibatches = group, beta, epochs, minibatches
        self.k, self.l = (k, k_negative), (l, l_negative)

    def ratio(self, u: Tensor, mask: Tensor) -> Tensor:
        log_w = (u.clamp(-20, 20) * mask).sum(1, keepdim=True).clamp(-18.420680743952367, 20)  # log 1e-8 ... 20
        return log_w.exp()

    def surrogate(self, ratio: Tensor, advantages: Tensor, logps: Tensor) -> Tensor:
        w = ratio.detach()
        k, rate = torch.where(advantages >= 0, *self.k), torch.where(advantages >= 0, *self.l)
        phi = (rate + k * w.log() - rate * w).exp()
        return -phi * advantages * logps

    def average(self, each: Tensor, mask: Tensor, tokens: Tensor, max_length: int) -> Tensor:
        return (each * mask).sum() / tokens.clamp(min=1)
