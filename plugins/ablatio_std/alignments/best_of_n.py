"""Learning from the best of several sampled answers: by imitation, as preference pairs, or as rankings."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ablatio import NonNegative, Range, alignments
from ablatio.model.rl.kl import masked_mean
from ablatio.registry.kinds.alignment_inputs import Advantages
from ablatio_std.alignments._common import PAIR_METRICS, Beta, Metrics, pair_metrics
from ablatio_std.alignments._policy import Epochs, Group, Minibatches, best_of
from ablatio_std.alignments.group_relative import Grouped


class _Imitation:
    """Imitates the answers that `kept` selects: advantages 1 and 0; L = -log p, the mean over their tokens."""

    data = "prompts"
    metrics = ("train/kept", "train/kept_reward")

    def kept(self, rewards: Tensor) -> Tensor:
        raise NotImplementedError

    def advantages(self, rewards: Tensor) -> Advantages:
        kept = self.kept(rewards)
        mean = (kept * rewards).sum() / kept.sum().clamp(min=1)
        return Advantages(kept, metrics=dict(zip(self.metrics, (kept.mean(), mean), strict=True)))

    def loss(self, logps: Tensor, mask: Tensor, advantages: Tensor) -> tuple[Tensor, Metrics]:
        # The mean over kept tokens; a batch that keeps no answer has the loss 0 and a gradient of zeros, not NaN.
        weight = mask * advantages[:, None]
        return -(weight * logps).sum() / weight.sum().clamp(min=1), {}


@alignments.register("rejection_sampling", paper="arXiv:2307.09288")
class RejectionSampling(_Imitation):
    """Imitates the best of `group` answers to each prompt; KL to the old policy at most ln n - (n - 1) / n, n = group.

    With `best_of` n nothing is trained: the model's answer is the best of n samples (best-of-n sampling,
    arXiv:2009.01325).
    """

    def __init__(
        self,
        *,
        group: Group = 8,
        best_of: Annotated[int | None, Range(2), "n of best-of-n sampling, without training; null: train"] = None,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.best_of, self.epochs, self.minibatches = group, best_of, epochs, minibatches

    def kept(self, rewards: Tensor) -> Tensor:
        # No answer is kept: the loss is 0 and no weight moves.
        return best_of(rewards, self.group) if self.best_of is None else torch.zeros_like(rewards)


@alignments.register("raft", paper="arXiv:2304.06767")
class RAFT(_Imitation):
    """Imitates a share of the sampled answers, those with the highest rewards, for `epochs` passes.

    `among`: the share is taken of the answers to each prompt, or of all answers of the rollout.
    """

    def __init__(
        self,
        *,
        group: Group = 8,
        share: Annotated[float, Range(0, 1, open_low=True), "share of answers imitated; at least one is"] = 0.125,
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
    """DPO on sampled answers: L = mean over pairs of -log sigmoid(beta (better's log-ratio - worse's)).

    pairs=extremes pairs the best answer to a prompt with the worst, pairs=all every two; answers with equal rewards
    form no pair.  The advantages (B,) encode the order: 1 for the best, -1 for the worst and 0 for the others, or the
    number of answers to the prompt that are worse.  With writer=reference the answers are sampled from the initial
    model: DPO as published, on pairs from the reference ranked by the reward (arXiv:2305.18290, section 6.1).
    """

    data = "prompts"
    metrics = PAIR_METRICS
    whole_groups = True

    def __init__(
        self,
        *,
        group: Group = 2,
        beta: Beta = 0.1,
        pairs: Annotated[Literal["extremes", "all"], "which answers to a prompt are paired"] = "extremes",
        writer: Annotated[Literal["policy", "reference"], "model that samples the answers"] = "policy",
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.beta, self.pairs, self.writer = group, beta, pairs, writer
        self.epochs, self.minibatches = epochs, minibatches

    def advantages(self, rewards: Tensor) -> Advantages:
        grouped = rewards.view(-1, self.group)
        if self.pairs == "all":  # number of worse answers: equal rewards get equal ranks
            return Advantages((grouped[:, :, None] > grouped[:, None]).to(rewards.dtype).sum(2).flatten())
        # Ties would pair an answer with itself: argmax takes the first both times.
        differ = (grouped.amax(1) > grouped.amin(1)).repeat_interleave(self.group)
        # The first of the worst, too: with ties one pair is made and not several.
        return Advantages((best_of(rewards, self.group) - best_of(-rewards, self.group)) * differ)

    def loss(self, logps: Tensor, ref_logps: Tensor, mask: Tensor, advantages: Tensor) -> tuple[Tensor, Metrics]:
        ratios = ((logps - ref_logps) * mask).sum(1).view(-1, self.group)  # (prompts, group)
        rank = advantages.view(-1, self.group)
        least = 0 if self.pairs == "all" else 1  # extremes: only 1 against -1 differs by more than 1
        # A mask and not the indices of the pairs, whose number a GPU would have to be waited for.
        paired = (rank[:, :, None] - rank[:, None] > least).to(ratios.dtype)  # (prompts, better, worse)
        better, worse = (self.beta * x.expand_as(paired) for x in (ratios[:, :, None], ratios[:, None]))
        return masked_mean(-F.logsigmoid(better - worse), paired), pair_metrics(better, worse, paired)


@alignments.register("rpt", paper="arXiv:2506.08007")
class RPT(Grouped):
    """GRPO on plain text: the prompt is a passage, the answer ends with a guess of what follows, the reward is 1 or 0.

    The guess is the text after the last `marker`, or the whole answer if it has none.  It is correct if it is a
    non-empty prefix of the following text that ends at a token boundary.

    Easy training prompts are left out: those for which the reference's next-token distribution over its `likeliest`
    tokens has an entropy below `least_entropy` nats.  The paper uses a smaller model and 16 tokens for this.  Held-out
    prompts are never left out.
    """

    prompts = "text"
    metrics = (*Grouped.metrics, "train/left_out")

    def __init__(
        self,
        *,
        group: Group = 8,
        clip: Annotated[float, Range(0, 1, open_low=True)] = 0.2,
        beta: Annotated[float, Range(0)] = 0.0,
        marker: Annotated[str, "text between the reasoning and the guess"] = "=>",
        least_entropy: Annotated[float, NonNegative, "least entropy of the next token in nats; 0: any"] = 0.0,
        likeliest: Annotated[int, Range(2), "number of likeliest tokens in the entropy"] = 16,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
    ) -> None:
        self.group, self.clip, self.clip_high, self.beta = group, clip, clip, beta
        self.marker, self.epochs, self.minibatches = marker, epochs, minibatches
        self.least_entropy, self.likeliest = least_entropy, likeliest

    def hardness(self, logits: Tensor) -> Tensor:
        """Entropy of the next token among the `likeliest` ones, in nats: (N, V) -> (N,)."""
        # Normalized over these tokens, so that the entropy is that of a distribution.
        logp = logits.topk(min(self.likeliest, logits.shape[-1])).values.log_softmax(-1)
        return -(logp.exp() * logp).sum(-1)

    def guess(self, answer: str) -> str:
        return answer.rpartition(self.marker)[2] if self.marker else answer

    def correct(self, answer: str, following: str, ends: list[int]) -> float:
        """1.0 if the guess is correct, else 0.0; ends: length in characters of `following` up to each token's end."""
        guess = self.guess(answer)
        return float(bool(guess) and following.startswith(guess) and len(guess) in ends)
