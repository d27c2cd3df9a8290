"""Evaluation of a policy: answers to held-out prompts, scored by the reward and by an independent gold reward."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ablatio.model.decoding.rollout import Rollout
from ablatio.model.language_model import LanguageModel
from ablatio.model.rl.answers import judged
from ablatio.model.rl.policy_outputs import policy_outputs

from ._prompts import Prompt
from ._rollouts import RolloutSampler, rule_of

SHOWN = 4  # answers in samples.jsonl


class HeldOutEvaluation:
    """Scores a policy on held-out prompts.

    best_of  number of answers sampled per prompt, of which the best is scored
    gold     name of a reward rule that also scores the answers; None: the reward itself
    """

    def __init__(self, asking: RolloutSampler, best_of: int, gold: str | None) -> None:
        self.asking, self.best_of = asking, best_of
        self.gold = (rule_of(gold), gold) if gold is not None else None

    @torch.no_grad()
    def score(
        self,
        model: LanguageModel,
        reference: LanguageModel,
        batches: Sequence[Mapping[str, Any]],
        between: Callable[[int], None],
    ) -> dict[str, float]:
        """Means over the answers: reward, gold, KL to the reference in nats per answer, entropy in nats per token.

        KL(best of n, reference) = ln n - (n - 1) / n + mean of log policy / reference over the best answers; this is an
        upper bound if answers have equal rewards.
        """
        mode, found = model.training, []
        model.eval()
        try:
            for done, batch in enumerate(batches):
                prompts = self.asking.prompts(range(batch["first"], batch["first"] + batch["count"]), "validation")
                rollout, scores, gold = self._best(model, prompts, -1 - batch["first"])
                own, other = (
                    policy_outputs(m, rollout, temperature=self.asking.temperature) for m in (model, reference)
                )
                kl = ((own.logps - other.logps) * rollout.mask).sum(1)
                row = scores, gold, kl.cpu(), own.entropy.sum(1).cpu(), rollout.mask.sum(1).cpu()
                found.append(torch.stack([x.double() for x in row]))
                between(done + 1)
        finally:
            model.train(mode)
        each = torch.cat(found, 1)
        reward, gold, kl, entropy, length = each.mean(1).tolist()
        chosen = math.log(self.best_of) - (self.best_of - 1) / self.best_of
        return {
            "reward": reward, "gold": gold, "kl": kl + chosen, "entropy": entropy / max(length, 1 / each.shape[1]),
            "answer_length": length, "answers": each.shape[1],
        }  # fmt: skip

    def _best(self, model: LanguageModel, prompts: Sequence[Prompt], stream: int) -> tuple[Rollout, Tensor, Tensor]:
        """Answer to each prompt with the highest reward of n, its reward and its gold reward."""
        drawn = self.asking(model, prompts, stream, group=self.best_of)
        best = drawn.scores.view(-1, self.best_of).argmax(1) + self.best_of * torch.arange(len(prompts))
        scores, texts = drawn.scores[best], [drawn.texts[i] for i in best.tolist()]
        gold = judged(*self.gold, texts)[0] if self.gold is not None else scores
        return drawn.rollout[best.to(drawn.rollout.mask.device)], scores, gold

    def samples(self, model: LanguageModel) -> list[dict[str, str]]:
        """Sample answers to the first held-out prompts, each with its reward."""
        prompts = self.asking.prompts(range(SHOWN), "validation")
        mode = model.training
        drawn = self.asking(model.eval(), prompts, -1)
        model.train(mode)
        return [
            {"prompt": a.prompt, "answer": a.text, "reward": f"{s:.3f}"}
            for a, s in zip(drawn.texts, drawn.scores.tolist(), strict=True)
        ]
