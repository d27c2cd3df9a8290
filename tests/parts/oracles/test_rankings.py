"""Comparative rewards: places against a loop, Elo ratings against scipy's optimizer, and policies trained on them."""

import math

import numpy as np
import pytest
import torch
from helpers.policies import made, step
from scipy.optimize import minimize
from scipy.special import expit

from ablatio.errors import UserError
from ablatio.model.rl.answers import Answer
from ablatio.registry.kinds import alignments, rewards
from ablatio_std.rewards.rankings import elo


def answers(*texts, prompt="q", truth=None):
    return [Answer(prompt, text, (1,), tuple(text.encode()), truth) for text in texts]


@pytest.fixture
def longer():
    """A comparison of two answers, registered as a plugin would."""

    @rewards.register("longer_wins", paper="arXiv:2204.05862")
    def longer_wins(answer: Answer, other: Answer) -> float:
        """1 if the first answer is longer, 0.5 if both are equally long, else 0."""
        return 0.5 if len(answer.text) == len(other.text) else float(len(answer.text) > len(other.text))

    yield "longer_wins"
    del rewards.entries["longer_wins"], rewards._targets["longer_wins"]


@pytest.mark.oracle("reward=ranking", "a loop over pairs")
def test_places_are_the_share_of_beaten_answers():
    found = rewards.build("ranking", {"truth": False})(answers("a", "abc", "ab", "abc"))
    lengths, expected = [1, 3, 2, 3], []
    for i, a in enumerate(lengths):
        others = [b for j, b in enumerate(lengths) if j != i]
        expected.append(sum(1.0 if a > b else 0.5 if a == b else 0.0 for b in others) / 3)
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.oracle("reward=ranking", "scipy.optimize on the likelihood of the games")
@pytest.mark.parametrize("anchored", [False, True])
def test_elo_ratings_maximize_the_likelihood(anchored):
    generator = torch.Generator().manual_seed(3)
    results = torch.rand(5, 5, generator=generator, dtype=torch.float64).round(decimals=1).triu(1)
    results = results + (1 - results.T).tril(-1)

    def negative_log_likelihood(ratings):
        ratings = np.append(ratings, 0.0) if anchored else ratings
        total = 0.0
        for i in range(5):
            for j in range(i):
                p = expit((ratings[i] - ratings[j]) * math.log(10) / 400)
                total -= results[i, j].item() * math.log(p) + results[j, i].item() * math.log(1 - p)
            p = expit(ratings[i] * math.log(10) / 400)
            total -= 0.5 * math.log(p) + 0.5 * math.log(1 - p)
        return total

    best = minimize(lambda r: negative_log_likelihood(400 * r), np.zeros(5 - anchored), tol=1e-10).x * 400
    found = elo(results, anchored)
    assert found[: len(best)].tolist() == pytest.approx(best.tolist(), abs=0.05)
    assert not anchored or found[-1] == 0


def test_elo_ratings_are_finite_for_a_total_order():
    found = rewards.build("ranking", {"truth": False, "scale": "elo"})(answers("a", "ab", "abc", "abcd"))
    assert torch.isfinite(found).all() and found.tolist() == sorted(found.tolist())
    assert found.tolist() == pytest.approx((-found).flip(0).tolist(), abs=1e-5)


def test_each_prompt_is_ranked_separately_and_against_the_truth():
    reward = rewards.build("ranking", {})
    rows = answers("a", "abc", prompt="one") + answers("abcd", prompt="two") + answers("x", prompt="three", truth="xy")
    assert reward(rows).tolist() == [0.0, 1.0, 0.5, 0.0]
    anchored = rewards.build("ranking", {"scale": "elo"})
    alone = anchored(answers("abc", prompt="three", truth="xy"))
    assert alone.item() > 0 > anchored(answers("x", prompt="three", truth="xy")).item()


def test_ranking_with_a_function_of_two_answers(longer):
    found = rewards.build("ranking", {"function": longer, "truth": False})(answers("abc", "a", "ab"))
    assert found.tolist() == [1.0, 0.0, 0.5]
    with pytest.raises(UserError, match=r"try: reward=ranking reward.function=longer_wins"):
        made("grpo", longer)
    with pytest.raises(UserError, match="takes a function of one or two answers, and model is not one"):
        rewards.build("ranking", {"function": "model"})


@pytest.mark.parametrize(
    "method, knobs", [("rejection_sampling", {"group": 4}), ("online_dpo", {"group": 4, "pairs": "all"})]
)
@pytest.mark.parametrize("scale", ["places", "elo"])
def test_policies_can_be_trained_on_rankings(method, knobs, scale):
    task, model = made(method, "ranking", method_knobs=knobs, reward_knobs={"scale": scale}, answer_tokens=12)
    for number in range(2):
        loss, measures = step(task, model, number)
        assert math.isfinite(loss) and all(torch.isfinite(v).all() for v in measures.values())


@pytest.mark.oracle("alignment=online_dpo", "alignment=dpo on each two answers of a group, in a loop")
def test_online_dpo_on_all_pairs_is_dpo_on_each_pair():
    generator = torch.Generator().manual_seed(0)
    method, dpo = (
        alignments.build("online_dpo", {"group": 4, "pairs": "all", "beta": 0.3}),
        alignments.build("dpo", {"beta": 0.3}),
    )
    logps, ref = (-torch.rand(8, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    rewards_of = torch.tensor(
        [1.0, 3.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64
    )  # the second group has equal rewards
    mask, losses = torch.ones(8, 5, dtype=torch.float64), []
    for i in range(4):
        for j in range(4):
            if rewards_of[i] > rewards_of[j]:
                words = [x.sum().view(1) for x in (logps[i], logps[j], ref[i], ref[j])]
                losses.append(
                    dpo.loss(**dict(zip(("chosen", "rejected", "ref_chosen", "ref_rejected"), words, strict=True)))[0]
                )
    assert len(losses) == 5
    found, _ = method.loss(logps, ref, mask, method.advantages(rewards_of).advantages)
    assert float(found) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-12)
