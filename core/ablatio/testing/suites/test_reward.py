"""Rewards: answers -> one finite number each, or the steps of each."""

import torch

from ablatio.model.answers import judged, token_rewards
from ablatio.registry import Entry
from ablatio.testing import probe, samples

KINDS = ("reward",)


def test_scores_are_finite_numbers(part: Entry) -> None:
    answers = samples.answers()
    scores, steps = judged(samples.reward(part), part.name, answers)
    assert scores.shape == (len(answers),), f"{probe.label(part)}: {tuple(scores.shape)} for {len(answers)} answers"
    assert (steps is not None) == part.facts["per_step"], f"{probe.label(part)}: `per_step` is not what it does"


def test_each_answer_is_judged_by_itself(part: Entry) -> None:
    """Or, where a reward compares, its place in the row does not matter."""
    reward, answers = samples.reward(part), samples.answers()
    if part.facts["compares"]:
        forward, backward = (judged(reward, part.name, row)[0] for row in (answers, answers[::-1]))
        probe.near(part, forward.double(), backward.flip(0).double(), "answers in the other order", 1e-6)
        return
    together, _ = judged(reward, part.name, answers)
    alone = torch.cat([judged(reward, part.name, [a])[0] for a in reversed(answers)]).flip(0)
    probe.near(part, together.double(), alone.double(), "answers together and one by one", 1e-6)


def test_rewards_of_tokens_add_up(part: Entry) -> None:
    answers = samples.answers()
    scores, steps = judged(samples.reward(part), part.name, answers)
    width = max(len(a.ids) for a in answers) + 2
    mask = (torch.arange(width) < torch.tensor([[len(a.ids)] for a in answers])).float()
    found = token_rewards(scores, steps, mask, answers, lambda ids: bytes(ids).decode(errors="replace"))
    probe.near(part, found.sum(1).double(), scores.double(), "rewards of the tokens against those of the answers", 1e-5)
