"""Policy gradients without a critic: the baseline comes from the rewards of other answers.

Symbols: k1 = log p_old - log p_ref at a token; r the reward.
"""

from typing import Annotated

import torch
from torch import Tensor

from ablatio import alignments
from ablatio.model.rl.kl import masked_mean, whiten
from ablatio.registry.kinds.alignment_inputs import Advantages
from ablatio_std.alignments._common import Metrics
from ablatio_std.alignments._policy import (
    CLIPPED,
    Answers,
    Clip,
    Epochs,
    Group,
    KLWeight,
    Minibatches,
    clip_metrics,
    clipped_surrogate,
    rewards_to_go,
)


@alignments.register("rloo", paper="arXiv:2402.14740")
class RLOO:
    """REINFORCE leave-one-out: A = r - mean r of the other answers to the prompt; L = -min(ratio A, clip(ratio) A).

    r = reward - beta x sum of k1 over the answer.  The ratio is that of the whole answer, exp(sum of log p - log
    p_old).  Rewards (B,), log-probabilities (B, T).
    """

    data = "prompts"
    metrics = CLIPPED

    def __init__(
        self,
        *,
        group: Group = 4,
        beta: KLWeight = 0.05,
        clip: Clip = 0.2,
        normalize: Annotated[bool, "scale advantages to mean 0 and variance 1 over the rollout"] = False,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.beta, self.clip, self.normalize = group, beta, clip, normalize
        self.epochs, self.minibatches = epochs, minibatches

    def advantages(self, rewards: Tensor, old_logps: Tensor, ref_logps: Tensor, mask: Tensor) -> Advantages:
        # The whole answer is one action, so its KL belongs to its reward, and to the baseline of the other answers.
        rewards = rewards - self.beta * ((old_logps - ref_logps) * mask).sum(1)
        grouped = rewards.view(-1, self.group)
        # The other answers only: an own reward in the baseline would scale the gradient by 1 - 1 / n.
        advantages = grouped - (grouped.sum(1, keepdim=True) - grouped) / (self.group - 1)
        # Exactly 0 for equal rewards: rounding would otherwise leave noise, which `normalize` scales up.
        advantages = advantages.masked_fill((grouped.amax(1) == grouped.amin(1))[:, None], 0.0).flatten()
        return Advantages(
            (advantages - advantages.mean()) / (advantages.std() + 1e-4) if self.normalize else advantages
        )

    def loss(self, logps: Tensor, old_logps: Tensor, mask: Tensor, advantages: Tensor) -> tuple[Tensor, Metrics]:
        # One clip for the whole answer, as one action has one ratio.
        ratio = ((logps - old_logps) * mask).sum(1).exp()  # (B,)
        loss = clipped_surrogate(ratio, advantages, self.clip, self.clip).mean()
        return loss, clip_metrics(ratio, advantages, torch.ones_like(ratio), self.clip, self.clip)


@alignments.register("reinforce_pp", paper="arXiv:2501.03262")
class ReinforcePP:
    """A_t = sum over s >= t of (r_s - beta k1_s), whitened over the whole rollout; L as PPO's, without a critic.

    With several answers per prompt, their mean reward is subtracted first (the variant with a baseline).
    """

    data = "prompts"
    metrics = CLIPPED

    def __init__(
        self,
        *,
        group: Answers = 1,
        beta: KLWeight = 0.01,
        clip: Clip = 0.2,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.beta, self.clip, self.epochs, self.minibatches = group, beta, clip, epochs, minibatches

    def advantages(
        self, rewards: Tensor, token_rewards: Tensor, old_logps: Tensor, ref_logps: Tensor, mask: Tensor
    ) -> Advantages:
        earned = rewards_to_go(token_rewards * mask)
        if self.group > 1:
            earned = earned - rewards.view(-1, self.group).mean(1).repeat_interleave(self.group)[:, None]
        # A token answers for the KL of itself and of what follows, not for what came before it.
        penalty = rewards_to_go(self.beta * (old_logps - ref_logps) * mask)
        return Advantages(whiten((earned - penalty) * mask, mask))

    def loss(self, logps: Tensor, old_logps: Tensor, mask: Tensor, advantages: Tensor) -> tuple[Tensor, Metrics]:
        ratio = (logps - old_logps).exp()
        loss = masked_mean(clipped_surrogate(ratio, advantages, self.clip, self.clip), mask)
        return loss, clip_metrics(ratio, advantages, mask, self.clip, self.clip)


@alignments.register("remax", paper="arXiv:2310.10505")
class ReMax:
    """A_t = reward - reward of the greedy answer - beta x sum over s >= t of k1_s; L = -sum of A log p per answer."""

    data = "prompts"
    metrics = ("train/greedy_reward",)
    epochs = minibatches = 1

    def __init__(self, *, group: Answers = 1, beta: KLWeight = 0.05) -> None:
        self.group, self.beta = group, beta

    def advantages(
        self, rewards: Tensor, greedy_rewards: Tensor, old_logps: Tensor, ref_logps: Tensor, mask: Tensor
    ) -> Advantages:
        penalty = rewards_to_go(self.beta * (old_logps - ref_logps) * mask)
        # The greedy answer's reward does not depend on the sample, so the gradient stays unbiased without a critic.
        advantages = ((rewards - greedy_rewards)[:, None] - penalty) * mask  # (B, T)
        return Advantages(advantages, metrics={"train/greedy_reward": greedy_rewards.mean()})

    def loss(self, logps: Tensor, mask: Tensor, advantages: Tensor) -> tuple[Tensor, Metrics]:
        # A sum per answer: log p of the answer is the sum over its tokens, and a mean would weight short answers more.
        return -(advantages * logps * mask).sum(1).mean(), {}
