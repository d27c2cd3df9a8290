"""Learning from the best of several answers: as examples to imitate, as pairs, as rankings."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio import NonNegative, Range, alignments
from ablatio.registry.kinds.alignment_inputs import Advantages
from ablatio_std.alignments._common import PAIR_METRICS, Beta, Metrics, pair_metrics
from ablatio_std.alignments._policy import Epochs, Group, Minibatches, best_of
from ablatio_std.alignments.group_relative import Grouped


class _Imitation:
    """Advantages are 1 for the answers that are kept and 0 for the others; L = -log p per token of those kept."""

    data = "prompts"
    metrics = ("train/kept", "train/kept_reward")

    def kept(self, rewards: Tensor) -> Tensor:
        raise NotImplementedError

    def advantages(self, rewards: Tensor) -> Advantages:
        kept = self.kept(rewards)
        mean = (kept * rewards).sum() / kept.sum().clamp(min=1)
        return Advantages(kept, metrics=dict(zip(self.metrics, (kept.mean(), mean), strict=True)))

    def loss(self, logps: Tensor, mask: Tensor, advantages: Tensor) -> tuple[Tensor, Metrics]:
        weight = mask * advantages[:, None]
        return -(weight * logps).sum() / weight.sum().clamp(min=1), {}


@alignments.register("rejection_sampling", paper="arXiv:2307.09288")
class RejectionSampling(_Imitation):
    """The best of `group` answers to each prompt is imitated; KL to the old policy at most ln n - (n - 1) / n.

    With `best_of` n nothing is imitated: the weights stay, and of n answers the best is what the model gives (best-of-n
    sampling, arXiv:2009.01325).
    """

    def __init__(
        self,
        *,
        group: Group = 8,
        best_of: Annotated[int | None, Range(2), "n: the best of n answers is given, nothing is trained"] = None,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.best_of, self.epochs, self.minibatches = group, best_of, epochs, minibatches

    def kept(self, rewards: Tensor) -> Tensor:
        return best_of(rewards, self.group) if self.best_of is None else torch.zeros_like(rewards)


@alignments.register("raft", paper="arXiv:2304.06767")
class RAFT(_Imitation):
    """The answers with the highest rewards, a share of all that were drawn, are imitated for some epochs.  (B,) -> (B,)

    `among`: the share is taken of the answers to each prompt, or of all answers of the rollout whatever their prompt.
    """

    def __init__(
        self,
        *,
        group: Group = 8,
        share: Annotated[float, Range(0, 1, open_low=True), "at least one is kept"] = 0.125,
        among: Literal["prompt", "rollout"] = "prompt",
        epochs: Epochs = 2,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.share, self.among, self.epochs, self.minibatches = group, share, among, epochs, minibatches

    def kept(self, rewards: Tensor) -> Tensor:
        rows = rewards.view(-1, self.group) if self.among == "prompt" else rewards[None]
        count = max(1, round(self.share * rows.shape[1]))
        return torch.zeros_like(rows).scatter(1, rows.topk(count, dim=1).indices, 1.0).flatten()


@alignments.register("online_dpo", paper="arXiv:2402.04792")
class OnlineDPO:
    """DPO on answers of the policy itself: the best and the worst answer to a prompt are the pair, or each two are one.

    L = mean over pairs of -log sigmoid(beta (better's log-ratio - worse's)); two answers of one reward are no pair.
    Advantages say who beats whom: 1 and -1 (the others 0), or an answer's place among its siblings.  (B,), (B, T)
    With writer=reference the answers are those of the model that training began with: DPO as it was published, on pairs
    sampled from the reference and ranked by the reward (arXiv:2305.18290, section 6.1).
    """

    data = "prompts"
    metrics = PAIR_METRICS
    whole_groups = True

    def __init__(
        self,
        *,
        group: Group = 2,
        beta: Beta = 0.1,
        pairs: Annotated[Literal["extremes", "all"], "of the answers to a prompt"] = "extremes",
        writer: Annotated[Literal["policy", "reference"], "whose answers are compared"] = "policy",
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.beta, self.pairs, self.writer = group, beta, pairs, writer
        self.epochs, self.minibatches = epochs, minibatches

    def advantages(self, rewards: Tensor) -> Advantages:
        grouped = rewards.view(-1, self.group)
        if self.pairs == "all":  # how many are worse: equal rewards share a place
            return Advantages((grouped[:, :, None] > grouped[:, None]).to(rewards.dtype).sum(2).flatten())
        differ = (grouped.amax(1) > grouped.amin(1)).repeat_interleave(self.group)
        return Advantages((best_of(rewards, self.group) - best_of(-rewards, self.group)) * differ)

    def loss(self, logps: Tensor, ref_logps: Tensor, mask: Tensor, advantages: Tensor) -> tuple[Tensor, Metrics]:
        ratios = ((logps - ref_logps) * mask).sum(1).view(-1, self.group)
        place = advantages.view(-1, self.group)
        least = 0 if self.pairs == "all" else 1  # of the extremes, 1 beats -1
        prompt, better, worse = (place[:, :, None] - place[:, None] > least).nonzero(as_tuple=True)
        better, worse = self.beta * ratios[prompt, better], self.beta * ratios[prompt, worse]
        if not len(better):
            return 0.0 * ratios.sum(), dict.fromkeys(PAIR_METRICS, logps.new_zeros(()))
        return -F.logsigmoid(better - worse).mean(), pair_metrics(better, worse)


@alignments.register("rpt", paper="arXiv:2506.08007")
class RPT(Grouped):
    """GRPO on plain text: the prompt is a passage, the answer ends with a guess of what follows, the reward is 1 or 0.

    The guess stands behind the last `marker` (all of the answer, if it has none) and is right when it is a prefix of
    what follows and ends where one of its tokens ends.  `guess(answer)` gives it; the task compares.

    Easy places are left out: those where the reference's next token, among its `likeliest`, has less than
    `least_entropy` nats (the paper's proxy is a smaller model, and 16 are looked at).  Held-out prompts are all taken.
    """

    prompts = "text"
    metrics = (*Grouped.metrics, "train/left_out")

    def __init__(
        self,
        *,
        group: Group = 8,
        clip: Annotated[float, Range(0, 1, open_low=True)] = 0.2,
        beta: Annotated[float, Range(0)] = 0.0,
        marker: Annotated[str, "text between the thought and the guess"] = "=>",
        least_entropy: Annotated[float, NonNegative, "nats of the next token; 0: every place of the text"] = 0.0,
        likeliest: Annotated[int, Range(2), "tokens that the entropy is of"] = 16,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.clip, self.clip_high, self.beta = group, clip, clip, beta
        self.marker, self.epochs, self.minibatches = marker, epochs, minibatches
        self.least_entropy, self.likeliest = least_entropy, likeliest

    def hardness(self, logits: Tensor) -> Tensor:
        """The entropy of the likeliest next tokens, in nats: (N, V) -> (N,)."""
        logp = logits.topk(min(self.likeliest, logits.shape[-1])).values.log_softmax(-1)
        return -(logp.exp() * logp).sum(-1)

    def guess(self, answer: str) -> str:
        return answer.rpartition(self.marker)[2] if self.marker else answer

    def correct(self, answer: str, following: str, ends: list[int]) -> float:
        """1.0 when the guess is what follows; ends: the lengths in letters after each token of what follows."""
        guess = self.guess(answer)
        return float(bool(guess) and following.startswith(guess) and len(guess) in ends)
