"""Policy methods that learn from chosen answers: closed forms, sorted lists, and the losses that they are built on."""

import math

import pytest
import torch
from helpers.policy_losses import advantages, loss, made

from ablatio.registry.kinds import alignments
from ablatio.testing import sample_alignments as batches


@pytest.mark.oracle("alignment=rejection_sampling", "closed form: KL of the best of n is ln n - (n - 1) / n")
@pytest.mark.parametrize("n", [2, 4, 16])
def test_kl_of_best_of_n(n):
    """Answers are uniform on a fine grid; the KL is that of the histogram of the selected answers."""
    method, size, draws = alignments.build("rejection_sampling", {"group": n}), 64, 200_000
    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(size, (draws * n,), generator=generator)
    chosen = answers[method.advantages(answers.double()).advantages.bool()]
    assert len(chosen) == draws
    share = torch.bincount(chosen, minlength=size).double() / draws
    kl = float((share * (share * size).clamp(min=1e-30).log()).sum())
    grid = sum(
        (((k + 1) / size) ** n - (k / size) ** n) * math.log(size * (((k + 1) / size) ** n - (k / size) ** n))
        for k in range(size)
    )  # exact on the grid; the closed form is its limit
    assert kl == pytest.approx(grid, abs=3e-3)
    assert grid == pytest.approx(math.log(n) - (n - 1) / n, abs=0.05)


@pytest.mark.oracle("alignment=rejection_sampling", "float64 loop")
def test_rejection_sampling_imitates_the_best_answer():
    method, words = made("rejection_sampling", group=4)
    words["advantages"] = advantages(method, words).advantages
    total = count = 0.0
    for start in range(0, len(words["rewards"]), 4):
        best = max(range(start, start + 4), key=lambda i: float(words["rewards"][i]))
        total -= float((words["logps"] * words["mask"])[best].sum())
        count += float(words["mask"][best].sum())
    assert float(loss(method, words)[0]) == pytest.approx(total / count, abs=1e-12)


@pytest.mark.oracle("alignment=raft", "sorted lists")
@pytest.mark.parametrize("among", ["prompt", "rollout"])
def test_raft_keeps_the_top_share(among):
    method, words = made("raft", group=4, share=0.5, among=among)
    rewards = words["rewards"].tolist()
    rows = [rewards] if among == "rollout" else [rewards[i : i + 4] for i in range(0, len(rewards), 4)]
    kept = {r for row in rows for r in sorted(row)[len(row) // 2 :]}
    assert [bool(a) for a in method.advantages(words["rewards"]).advantages] == [r in kept for r in rewards]


@pytest.mark.oracle("alignment=online_dpo", "alignment=dpo on the best and the worst of each group")
def test_online_dpo_is_dpo_on_best_and_worst():
    method, words = made("online_dpo", group=4, beta=0.3)
    words["rewards"][4:8] = 0.25  # a group with equal rewards has no pair
    words["advantages"] = method.advantages(words["rewards"]).advantages
    sums = {w: (words[w] * words["mask"]).sum(1) for w in ("logps", "ref_logps")}
    best, worst = [], []
    for start in (0, *range(8, len(words["rewards"]), 4)):
        order = sorted(range(start, start + 4), key=lambda i: float(words["rewards"][i]))
        best.append(order[-1])
        worst.append(order[0])
    expected, _ = alignments.build("dpo", {"beta": 0.3}).loss(
        sums["logps"][best], sums["logps"][worst], sums["ref_logps"][best], sums["ref_logps"][worst]
    )
    assert float(loss(method, words)[0]) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.oracle("alignment=rpt", "its rule on examples; alignment=grpo")
def test_rpt_rewards_a_prefix_that_ends_at_a_token_boundary():
    method = alignments.build("rpt", {})
    ends = [4, 8]  # " the| end"
    expected = {
        "so it is => the": 1.0, "=> the end": 1.0, "=> th": 0.0, "=> then": 0.0, "=>": 0.0, "a => b => the": 1.0,
    }  # fmt: skip
    assert {answer: method.correct(answer, " the end of", ends) for answer in expected} == expected
    grpo, words = alignments.build("grpo", {"beta": 0.0}), batches.batch("prompts", group=8)
    assert torch.equal(method.advantages(words["rewards"]).advantages, grpo.advantages(words["rewards"]).advantages)
