"""Actor-critic methods: the advantage of each token is measured against the critic's value estimate.

Symbols: r_t reward and V_t value at token t, both 0 after the answer's end; d_t = r_t + gamma V_{t+1} - V_t the
temporal-difference error; k1 = log p_old - log p_ref.
"""

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ablatio import Fraction, NonNegative, Positive, Schedulable, alignments, rule
from ablatio.model.rl.kl import masked_mean, whiten
from ablatio.registry.kinds.alignment_inputs import Advantages
from ablatio_std.alignments._common import Metrics
from ablatio_std.alignments._policy import (
    CLIPPED,
    Answers,
    Clip,
    Epochs,
    KLWeight,
    Minibatches,
    clip_metrics,
    clipped_surrogate,
)

Gamma = Annotated[float, Fraction, "discount factor per token"]
Lam = Annotated[float, Fraction, "lambda of the advantage estimate: 1 uses earned rewards only, 0 the critic's values"]
ValueWeight = Annotated[float, NonNegative, Schedulable(), "weight of the critic's loss"]
EntropyWeight = Annotated[float, NonNegative, Schedulable(), "weight of the entropy bonus"]


def advantage_estimates(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = d_t + gamma lam A_{t+1}: generalized advantage estimation (1506.02438).  (B, T) each -> (B, T)."""
    values, rewards = values * mask, rewards * mask
    # The value after the last token is 0, for truncated answers too: an answer is the whole episode.
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    errors = (rewards + gamma * next_values - values) * mask  # (B, T): d_t
    advantages, later = torch.zeros_like(values), torch.zeros_like(values[:, 0])
    # A loop over tokens, not a closed form with gamma^-t, which overflows on long answers.
    for t in range(values.shape[1] - 1, -1, -1):
        later = errors[:, t] + gamma * lam * later
        advantages[:, t] = later
    return advantages * mask


@alignments.register("ppo", paper="arXiv:1707.06347")
class PPO:
    """L = -min(ratio A, clip(ratio) A) + vf_coef max((V - R)^2, (V_clipped - R)^2) / 2 - entropy_coef H, token means.

    A: generalized advantage estimates of r_t - kl_coef k1_t, whitened over the rollout; R = A + V, with A before
    whitening; H: entropy; V_clipped: V clipped to within clip_value of the old value.  With kl_target, kl_coef is
    updated after each rollout: kl_coef x (1 + 0.1 clip(KL / kl_target - 1, -0.2, 0.2)) (1909.08593).  The rest of a
    rollout is discarded when the KL from the policy that sampled it exceeds 1.5 stop_kl.  The KL is measured on the
    answers of a step before its update: by k3, and the update is made; or, with stop_by=k1 and stop_drops=true, by
    the mean of log p_old - log p, and it is dropped (as in OpenAI's Spinning Up).  k1 can be negative and has the
    larger variance.
    """

    data = "prompts"
    metrics = (*CLIPPED, "train/value_loss", "train/policy_loss", "train/value_clip_fraction", "train/kl_coef")

    def __init__(
        self,
        *,
        group: Answers = 1,
        clip: Clip = 0.2,
        clip_value: Annotated[float | None, Positive, "largest change of a value that is trained; null: any"] = 0.2,
        gamma: Gamma = 1.0,
        lam: Lam = 0.95,
        kl_coef: KLWeight = 0.05,
        kl_target: Annotated[float | None, Positive, "KL in nats per answer to adapt kl_coef to; null: fixed"] = None,
        stop_kl: Annotated[float | None, Positive, "KL in nats per token; null: no early stopping"] = 0.1,
        stop_by: Annotated[Literal["k1", "k3"], "estimate of the KL that is compared with 1.5 stop_kl"] = "k3",
        stop_drops: Annotated[bool, "drop the update at which it is exceeded, too, not only those after it"] = False,
        vf_coef: ValueWeight = 0.1,
        entropy_coef: EntropyWeight = 0.0,
        whiten: Annotated[bool, "scale advantages to mean 0 and variance 1"] = True,
        epochs: Epochs = 4,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.clip, self.clip_value, self.gamma, self.lam = group, clip, clip_value, gamma, lam
        self.kl_coef, self.kl_target, self.stop_kl = kl_coef, kl_target, stop_kl
        self.stop_by, self.stop_drops = stop_by, stop_drops
        self.vf_coef, self.entropy_coef, self.whiten, self.epochs, self.minibatches = (
            vf_coef,
            entropy_coef,
            whiten,
            epochs,
            minibatches,
        )

    def advantages(
        self, token_rewards: Tensor, old_logps: Tensor, ref_logps: Tensor, old_values: Tensor, mask: Tensor
    ) -> Advantages:
        # The KL is part of the reward (k1 of the sampling policy, no gradient), so the critic learns it too.
        rewards = token_rewards - self.kl_coef * (old_logps - ref_logps)  # (B, T)
        estimates = advantage_estimates(rewards, old_values, mask, self.gamma, self.lam)
        # From the unwhitened advantages: whitened ones are not in units of reward.
        returns = (estimates + old_values) * mask
        # Logged with each rollout, as it moves when kl_target is set.
        coefficient = token_rewards.new_full((), self.kl_coef)
        advantages = whiten(estimates, mask) if self.whiten else estimates
        return Advantages(advantages, returns, {"train/kl_coef": coefficient})

    def loss(
        self,
        logps: Tensor,
        old_logps: Tensor,
        mask: Tensor,
        advantages: Tensor,
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
        entropy: Tensor,
    ) -> tuple[Tensor, Metrics]:
        ratio = (logps - old_logps).exp()
        # Means over all tokens of the batch, as the value loss has, so that vf_coef weighs like with like.
        policy = masked_mean(clipped_surrogate(ratio, advantages, self.clip, self.clip), mask)
        error, clipped_values = (values - returns).square(), values
        if self.clip_value is not None:
            # As for the policy: a value cannot gain by moving further than clip_value in the passes over one rollout.
            clipped_values = old_values + (values - old_values).clamp(-self.clip_value, self.clip_value)
        clipped_error = (clipped_values - returns).square()
        value = masked_mean(torch.max(error, clipped_error), mask) / 2
        metrics = clip_metrics(ratio, advantages, mask, self.clip, self.clip)
        metrics |= {
            "train/value_loss": value.detach(),
            "train/policy_loss": policy.detach(),
            "train/value_clip_fraction": masked_mean((clipped_error > error).to(ratio.dtype), mask),
        }
        return policy + self.vf_coef * value - self.entropy_coef * masked_mean(entropy, mask), metrics

    def observe(self, kl: float) -> None:
        """Adapt kl_coef to the rollout's mean KL to the reference, in nats per answer."""
        if self.kl_target is not None:
            # K_beta = 0.1 and the clip at 0.2 are those of 1909.08593: at most 2 % per rollout.
            self.kl_coef *= 1 + 0.1 * min(0.2, max(-0.2, kl / self.kl_target - 1))

    def stops(self, kl: float) -> bool:
        # The factor 1.5 is that of Spinning Up.
        return self.stop_kl is not None and kl > 1.5 * self.stop_kl

    def state_dict(self) -> dict[str, Any]:
        return {"kl_coef": self.kl_coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kl_coef = float(state["kl_coef"])


@alignments.register("a2c", paper="arXiv:1602.01783")
class A2C:
    """L = -A log p + vf_coef (V - R)^2 / 2 - entropy_coef H, means over tokens; A = R - V, one step for each rollout.

    R: the return, the sum of later r_t - kl_coef k1_t discounted by gamma.  With lam < 1, A is the generalized
    advantage estimate and R = A + V.
    """

    data = "prompts"
    metrics = ("train/value_loss", "train/policy_loss")
    epochs = minibatches = 1

    def __init__(
        self,
        *,
        group: Answers = 1,
        gamma: Gamma = 1.0,
        lam: Lam = 1.0,
        kl_coef: KLWeight = 0.05,
        vf_coef: ValueWeight = 0.5,
        entropy_coef: EntropyWeight = 0.01,
    ) -> None:
        self.group, self.gamma, self.lam, self.kl_coef, self.vf_coef, self.entropy_coef = (
            group,
            gamma,
            lam,
            kl_coef,
            vf_coef,
            entropy_coef,
        )

    def advantages(
        self, token_rewards: Tensor, old_logps: Tensor, ref_logps: Tensor, old_values: Tensor, mask: Tensor
    ) -> Advantages:
        rewards = token_rewards - self.kl_coef * (old_logps - ref_logps)
        # With lam = 1 the temporal differences telescope, and A + V is the discounted return.
        estimates = advantage_estimates(rewards, old_values, mask, self.gamma, self.lam)
        return Advantages(estimates, (estimates + old_values) * mask)

    def loss(
        self, logps: Tensor, mask: Tensor, advantages: Tensor, values: Tensor, returns: Tensor, entropy: Tensor
    ) -> tuple[Tensor, Metrics]:
        policy = -masked_mean(advantages * logps, mask)
        value = masked_mean((values - returns).square(), mask) / 2
        metrics = {"train/value_loss": value.detach(), "train/policy_loss": policy.detach()}
        return policy + self.vf_coef * value - self.entropy_coef * masked_mean(entropy, mask), metrics


rule(
    when="'alignment.kl_coef' in scheduled and alignment.kl_target is not None",
    why="alignment.kl_target adapts alignment.kl_coef to the measured KL, and alignment.kl_coef is a schedule",
    fix="alignment.kl_target=null",
    where="alignment.kl_target",
)
