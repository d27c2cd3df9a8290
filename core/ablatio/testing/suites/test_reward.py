"""Rewards: answers -> one finite number each, or the steps of each."""

import torch

from ablatio.model.rl.answers import judged, token_rewards
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts

KINDS = ("reward",)


def test_scores_are_finite_numbers(part: PartSpec) -> None:
    answers = sample_parts.answers()
    scores, steps = judged(sample_parts.reward(part), part.name, answers)
    assert scores.shape == (len(answers),), f"{checks.label(part)}: {tuple(scores.shape)} for {len(answers)} answers"
    assert (steps is not None) == part.facts["per_step"], f"{checks.label(part)}: `per_step` is not what it does"


def test_each_answer_is_judged_by_itself(part: PartSpec) -> None:
    """Each answer is scored independently; a reward that compares answers does not depend on their order."""
    reward, answers = sample_parts.reward(part), sample_parts.answers()
    if part.facts["compares"]:
        forward, backward = (judged(reward, part.name, row)[0] for row in (answers, answers[::-1]))
        checks.near(part, forward.double(), backward.flip(0).double(), "answers in the other order", 1e-6)
    else:
        together, _ = judged(reward, part.name, answers)
        alone = torch.cat([judged(reward, part.name, [a])[0] for a in reversed(answers)]).flip(0)
        checks.near(part, together.double(), alone.double(), "answers together and one by one", 1e-6)


def test_rewards_of_tokens_add_up(part: PartSpec) -> None:
    answers = sample_parts.answers()
    scores, steps = judged(sample_parts.reward(part), part.name, answers)
    width = max(len(a.ids) for a in answers) + 2
    mask = (torch.arange(width) < torch.tensor([[len(a.ids)] for a in answers])).float()
    found = token_rewards(scores, steps, mask, answers, lambda ids: bytes(ids).decode(errors="replace"))
    checks.near(
        part, found.sum(1).double(), scores.double(), "rewards of the tokens against those of the answers", 1e-5
    )
