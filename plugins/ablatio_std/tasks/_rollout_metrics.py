"""Metrics of a rollout, and detection of a collapsed policy, whose answers all repeat one token or are empty."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ablatio.model.decoding.rollout import Rollout
from ablatio.model.rl.kl import kl_estimates

COLLAPSED = 0.9  # share of the most frequent token, or of empty answers, from which a policy counts as collapsed
OF_POLICY = ("train/reward", "train/reward_std", "train/kl_k1", "train/kl_k2", "train/kl_k3")
MEASURES = (*OF_POLICY, "train/answer_length", "train/ended", "train/top_token", "train/collapsed")
log = logging.getLogger("ablatio")


def rollout_metrics(rollout: Rollout, words: Mapping[str, Any], stop: int) -> dict[str, Tensor]:
    """Metrics of a rollout: rewards, KL to the reference in nats per token, answer lengths and repetition."""
    mask, length = rollout.mask, rollout.mask.sum(1)
    kl = kl_estimates(words["old_logps"], words["ref_logps"], mask)
    last = rollout.tokens.gather(1, (length.long() - 1)[:, None])
    kept = rollout.tokens[mask.bool()]
    values = (
        # Of these answers and not an estimate for others; 0 for a single one, where the sample deviation is NaN.
        words["rewards"].mean(), words["rewards"].std(correction=0), kl.k1, kl.k2, kl.k3, length.mean(),
        (last == stop).float().mean(), kept.bincount().max() / len(kept),
    )  # fmt: skip
    return dict(zip(MEASURES, values, strict=False))  # train/collapsed is added later


class CollapseDetector:
    """Detects a collapsed policy: its answers are one repeated token or empty, and it learns nothing more.

    The run continues, since a policy may recover and its curve so far is a result.  `train/collapsed` is 1 while the
    policy is collapsed, and each collapse is warned about once.
    """

    def __init__(self, stop: int, decode: Callable[[Sequence[int]], str], rate: float) -> None:
        """Watch for collapse.  stop: end-of-answer id; rate: learning rate, of which the warning proposes a tenth."""
        self.stop, self.decode, self.rate, self.now = stop, decode, rate, False

    def __call__(self, rollout: Rollout, top_token: Tensor) -> Tensor:
        """1 if nearly all answers of a rollout repeat one token or are empty, else 0: ()."""
        first, length = rollout.tokens[:, 0], rollout.mask.sum(1)
        empty = float(((first == self.stop) & (length == 1)).float().mean())
        # Of very short answers the most frequent token is often their end, which is no collapse.
        share = float(top_token) if int(length.sum()) >= 2 * len(rollout) else 0.0
        was, self.now = self.now, max(share, empty) >= COLLAPSED
        if self.now and not was:
            self._warn(rollout, share, empty)
        return torch.tensor(float(self.now))

    def _warn(self, rollout: Rollout, share: float, empty: float) -> None:
        if share >= COLLAPSED:
            token = int(rollout.tokens[rollout.mask.bool()].bincount().argmax())
            what = f"{100 * share:.0f} % of the tokens of its last {len(rollout)} answers are {self.decode([token])!r}"
        else:
            what = f"{100 * empty:.0f} % of its last {len(rollout)} answers are empty"
        log.warning(
            "the policy has collapsed: %s\n"
            "    try: optimizer.lr=%g, or a larger weight of the KL to the reference, or another reward", what,
            self.rate / 10,
        )  # fmt: skip
