"""Policy methods against trl's GRPO and RLOO on the same numbers, float64 loops and closed forms."""

import itertools
import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from helpers.policy_losses import advantages, loss, made
from trl import GRPOTrainer, RLOOTrainer

from ablatio.model.rl.kl import kl_estimates, whiten
from ablatio.registry.kinds import alignments
from ablatio.testing import sample_alignments as batches

# our name -> (trl's loss_type, level of the importance ratio, clip settings)
TYPES = {
    "grpo": ("grpo", "token", {}), "bnpo": ("bnpo", "token", {}), "dr_grpo": ("dr_grpo", "token", {}),
    "dapo": ("dapo", "token", {"high": 0.28}), "cispo": ("cispo", "token", {"high": 1.05}),
    "sapo": ("sapo", "token", {}), "vespo": ("vespo", "sequence", {}), "luspo": ("luspo", "sequence", {"low": 0.05}),
    "gspo": ("grpo", "sequence", {"low": 0.05, "high": 0.06}),
}  # fmt: skip


def accelerator():
    return SimpleNamespace(device="cpu", gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1)


def trl_grpo(words, loss_type, level, *, beta, low=0.2, high=0.2):
    logps = words["logps"].clone().requires_grad_()
    trainer = MagicMock()
    trainer.accelerator, trainer.aux_loss_enabled, trainer.top_entropy_quantile = accelerator(), False, 1.0
    trainer._get_per_token_logps_and_entropies.return_value = (logps, torch.zeros_like(logps), None)
    trainer.off_policy_mask_threshold, trainer.importance_sampling_level, trainer.beta = None, level, beta
    trainer.loss_type, trainer.epsilon_low, trainer.epsilon_high = loss_type, low, high
    trainer.args = SimpleNamespace(
        delta=None, use_bias_correction_kl=False, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, vespo_k_pos=2.0,
        vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0, steps_per_generation=1,
    )  # fmt: skip
    trainer.get_gamma_weights = GRPOTrainer.get_gamma_weights
    trainer.use_vllm, trainer._entropy_bonus_enabled, trainer.current_gradient_accumulation_steps = False, False, 1
    trainer.max_completion_length = words["max_length"]
    ids = torch.zeros_like(words["mask"], dtype=torch.long)
    inputs = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids}
    inputs |= {
        "completion_mask": words["mask"],
        "advantages": words["advantages"],
        "num_items_in_batch": words["tokens"],
    }
    inputs |= {"old_per_token_logps": words["old_logps"], "ref_per_token_logps": words["ref_logps"]}
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    return loss.detach(), logps.grad


@pytest.mark.oracle("alignment", "trl 1.16 GRPOTrainer")
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("name", sorted(TYPES))
def test_grpo_family_equals_trl(name, beta):
    loss_type, level, clips = TYPES[name]
    knobs = {"beta": beta, "group": 4}
    if name in ("gspo", "luspo"):
        knobs |= {"clip": clips["low"], "clip_high": clips.setdefault("high", 0.2)}
    elif "high" in clips:
        knobs |= {"clip_high": clips["high"]}
    method, words = made(name, **knobs)
    words["advantages"] = advantages(method, words).advantages
    value, given, _ = loss(method, words)
    theirs, gradient = trl_grpo(words, loss_type, level, beta=beta, **clips)
    assert value == pytest.approx(float(theirs), abs=1e-9)
    assert torch.allclose(given["logps"].grad * words["mask"], gradient * words["mask"], atol=1e-9)


@pytest.mark.oracle("alignment", "tokens or answers whose gradient is zero")
@pytest.mark.parametrize("name", sorted({*TYPES} - {"cispo"}))  # whose clip keeps the gradient
def test_clip_fraction_counts_what_has_no_gradient(name):
    method, words = made(name, group=4, beta=0.0)
    noise = torch.randn(words["logps"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    words["old_logps"] = (words["logps"] + 0.4 * noise) * words["mask"]
    words["advantages"] = advantages(method, words).advantages
    _, given, metrics = loss(method, words)
    without = (given["logps"].grad == 0) & (words["mask"] > 0) & (words["advantages"][:, None] != 0)
    by_answer = TYPES[name][1] == "sequence"
    share = without.any(1).double().mean() if by_answer else without.sum() / words["mask"].sum()
    assert float(metrics["train/clip_fraction"]) == pytest.approx(float(share))
    assert (float(share) > 0) == (name not in ("sapo", "vespo"))


@pytest.mark.oracle("alignment=cispo", "a loop over tokens, clipped weights and gradients")
def test_cispo_clips_weights_and_keeps_gradients():
    method, words = made("cispo", group=4, beta=0.0, clip_high=1.1)
    noise = torch.randn(words["logps"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    words["old_logps"] = (words["logps"] + 0.4 * noise) * words["mask"]
    words["advantages"] = advantages(method, words).advantages
    _, given, metrics = loss(method, words)
    clipped, total = 0, 0
    for row, a in enumerate(words["advantages"].tolist()):
        for new, old, counts, slope in zip(
            *(words[k][row].tolist() for k in ("logps", "old_logps", "mask")),
            given["logps"].grad[row].tolist(),
            strict=True,
        ):
            total += counts > 0
            clipped += counts > 0 and math.exp(new - old) > 1.1 and a > 0
            weight = min(math.exp(new - old), 1.1) if counts else 0.0
            assert slope == pytest.approx(-weight * a / float(words["tokens"]), abs=1e-12)
    assert 0 < clipped < total and float(metrics["train/clip_fraction"]) == pytest.approx(clipped / total)


@pytest.mark.oracle("alignment=grpo", "float64 loop, advantages")
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_equal_a_loop(scale):
    method, words = made("grpo", group=3, scale=scale)
    rewards = words["rewards"].tolist()
    spread = lambda xs: math.sqrt(sum((x - sum(xs) / len(xs)) ** 2 for x in xs) / (len(xs) - 1))  # noqa: E731
    expected = []
    for start in range(0, len(rewards), 3):
        group = rewards[start : start + 3]
        by = {"group": spread(group) + 1e-4, "batch": spread(rewards) + 1e-4, "none": 1.0}[scale]
        expected += [(r - sum(group) / 3) / by for r in group]
    assert method.advantages(words["rewards"]).advantages.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", sorted(TYPES))
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e8])
def test_equal_rewards_give_exactly_zero_advantage(name, reward):
    method, words = made(name, group=7)
    words["rewards"] = torch.full_like(words["rewards"], reward)
    found = advantages(method, words)
    assert not found.advantages.any()
    assert float(found.metrics["train/flat_groups"]) == 1


@pytest.mark.oracle("alignment=dapo", "closed form of its eq. 13")
def test_overlong_answers_are_penalized():
    method = alignments.build("dapo", {"group": 2, "overlong": 4})
    mask = (torch.arange(10) < torch.tensor([[6], [10], [7], [8]])).double()
    found = method.advantages(torch.zeros(4).double(), mask, 10).advantages.view(2, 2)
    gaps = (found[:, 0] - found[:, 1]) / torch.tensor([1.0, 0.25]).double()  # penalties 0, 1, 1/4, 2/4
    spreads = torch.tensor([1 / math.sqrt(2) + 1e-4, 0.25 / math.sqrt(2) + 1e-4]).double()
    assert torch.allclose(gaps * spreads, torch.ones(2).double(), atol=1e-9)


@pytest.mark.oracle("alignment=rloo", "trl 1.16 RLOOTrainer, float64 loop")
def test_rloo_equals_trl():
    method, words = made("rloo", group=3, beta=0.2)
    found = advantages(method, words).advantages
    kl = ((words["old_logps"] - words["ref_logps"]) * words["mask"]).sum(1)
    rewards = (words["rewards"] - 0.2 * kl).tolist()
    expected = []
    for i, r in enumerate(rewards):
        first = i - i % 3
        others = [rewards[j] for j in range(first, first + 3) if j != i]
        expected.append(r - sum(others) / 2)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    words["advantages"] = found
    value, given, _ = loss(method, words)
    logps = words["logps"].clone().requires_grad_()
    trainer = MagicMock()
    trainer.accelerator, trainer.aux_loss_enabled = accelerator(), False
    trainer._get_per_token_logps_and_entropies.return_value = (logps, torch.zeros_like(logps), None)
    trainer.epsilon_low = trainer.epsilon_high = 0.2
    ids = torch.zeros_like(words["mask"], dtype=torch.long)
    inputs = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": words["mask"]}
    inputs |= {"advantages": found, "old_logps": (words["old_logps"] * words["mask"]).sum(1)}
    theirs = RLOOTrainer._compute_loss(trainer, None, inputs)
    theirs.backward()
    assert value == pytest.approx(float(theirs.detach()), abs=1e-12)
    assert torch.allclose(given["logps"].grad, logps.grad * words["mask"], atol=1e-12)


def gae_by_definition(rewards, values, gamma, lam):
    """Advantages of one answer as exponentially weighted sums of TD errors, term by term (1506.02438, eq. 16)."""
    size = len(rewards)
    value = [*values, 0.0]
    found = []
    for t in range(size):
        total = 0.0
        for step in range(t, size):
            total += (gamma * lam) ** (step - t) * (rewards[step] + gamma * value[step + 1] - value[step])
        found.append(total)
    return found


def ppo_by_loops(words, *, clip, clip_value, gamma, lam, kl_coef, vf_coef, entropy_coef, whiten=True):
    """(advantages, loss) of PPO, computed token by token."""
    rows = []
    for i in range(len(words["mask"])):
        size = int(words["mask"][i].sum())
        row = {w: x[i, :size].tolist() for w, x in words.items() if getattr(x, "dim", lambda: 0)() == 2}
        rewards = [
            r - kl_coef * (o - f)
            for r, o, f in zip(row["token_rewards"], row["old_logps"], row["ref_logps"], strict=True)
        ]
        row["raw"] = gae_by_definition(rewards, row["old_values"], gamma, lam)
        rows.append(row)
    every = list(itertools.chain.from_iterable(row["raw"] for row in rows))
    mean = sum(every) / len(every)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in every) / len(every) + 1e-8)
    total_policy = total_value = total_entropy = 0.0
    for row in rows:
        row["advantages"] = [(a - mean) / deviation if whiten else a for a in row["raw"]]
        for t, a in enumerate(row["advantages"]):
            ratio = math.exp(row["logps"][t] - row["old_logps"][t])
            total_policy -= min(ratio * a, max(1 - clip, min(1 + clip, ratio)) * a)
            target, value, old = row["raw"][t] + row["old_values"][t], row["values"][t], row["old_values"][t]
            clipped = value if clip_value is None else old + max(-clip_value, min(clip_value, value - old))
            total_value += max((value - target) ** 2, (clipped - target) ** 2) / 2
            total_entropy += row["entropy"][t]
    count = len(every)
    return [row["advantages"] for row in rows], (
        total_policy + vf_coef * total_value - entropy_coef * total_entropy
    ) / count


@pytest.mark.oracle("alignment=ppo", "float64 loops: GAE by its definition, token by token")
@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.0), (0.97, 1.0)])
@pytest.mark.parametrize("clip_value", [0.05, None])
def test_ppo_equals_loops(gamma, lam, clip_value):
    knobs = {
        "gamma": gamma,
        "lam": lam,
        "clip_value": clip_value,
        "kl_coef": 0.3,
        "vf_coef": 0.7,
        "entropy_coef": 0.02,
        "clip": 0.1,
    }
    method, words = made("ppo", **knobs)
    found = advantages(method, words)
    words |= {"advantages": found.advantages, "returns": found.returns}
    expected, total = ppo_by_loops(words, **knobs)
    for row, wanted in zip(found.advantages.tolist(), expected, strict=True):
        assert row[: len(wanted)] == pytest.approx(wanted, abs=1e-9)
        assert not any(row[len(wanted) :])
    assert float(loss(method, words)[0]) == pytest.approx(total, abs=1e-9)


@pytest.mark.oracle("alignment=a2c", "float64 loops: discounted returns")
def test_a2c_equals_loops():
    method, words = made("a2c", gamma=0.9, kl_coef=0.2, vf_coef=0.4, entropy_coef=0.03)
    found = advantages(method, words)
    words |= {"advantages": found.advantages, "returns": found.returns}
    total, count = 0.0, 0
    for i in range(len(words["mask"])):
        size = int(words["mask"][i].sum())
        get = lambda w, i=i, size=size: words[w][i, :size].tolist()  # noqa: E731
        rewards = [
            r - 0.2 * (o - f) for r, o, f in zip(get("token_rewards"), get("old_logps"), get("ref_logps"), strict=True)
        ]
        for t in range(size):
            earned = sum(0.9 ** (s - t) * rewards[s] for s in range(t, size))
            a = earned - get("old_values")[t]
            assert float(found.advantages[i, t]) == pytest.approx(a, abs=1e-12)
            total += -a * get("logps")[t] + 0.4 * (get("values")[t] - earned) ** 2 / 2 - 0.03 * get("entropy")[t]
        count += size
    assert float(loss(method, words)[0]) == pytest.approx(total / count, abs=1e-12)


@pytest.mark.oracle("alignment=reinforce_pp", "float64 loops")
@pytest.mark.parametrize("group", [1, 3])
def test_reinforce_pp_equals_loops(group):
    method, words = made("reinforce_pp", group=group, beta=0.3)
    found, raw = advantages(method, words).advantages, []
    for i in range(len(words["mask"])):
        size, first = int(words["mask"][i].sum()), i - i % group
        baseline = sum(words["rewards"][first : first + group].tolist()) / group if group > 1 else 0.0
        d = (words["old_logps"] - words["ref_logps"])[i].tolist()
        raw.append([float(words["rewards"][i]) - baseline - 0.3 * sum(d[t:size]) for t in range(size)])
    every = list(itertools.chain.from_iterable(raw))
    mean = sum(every) / len(every)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in every) / len(every) + 1e-8)
    for i, row in enumerate(raw):
        assert found[i, : len(row)].tolist() == pytest.approx([(x - mean) / deviation for x in row], abs=1e-9)


@pytest.mark.oracle("alignment=remax", "float64 loops")
def test_remax_equals_loops():
    method, words = made("remax", beta=0.3)
    words["advantages"] = found = advantages(method, words).advantages
    total = 0.0
    for i in range(len(words["mask"])):
        size = int(words["mask"][i].sum())
        d = (words["old_logps"] - words["ref_logps"])[i].tolist()
        for t in range(size):
            a = float(words["rewards"][i] - words["greedy_rewards"][i]) - 0.3 * sum(d[t:size])
            assert float(found[i, t]) == pytest.approx(a, abs=1e-12)
            total -= a * float(words["logps"][i, t])
    assert float(loss(method, words)[0]) == pytest.approx(total / len(words["mask"]), abs=1e-12)


@pytest.mark.oracle("alignment=ppo", "float64 loop of the controller of 1909.08593")
def test_adaptive_kl_coefficient_follows_the_controller():
    method, expected = alignments.build("ppo", {"kl_coef": 0.1, "kl_target": 6.0}), 0.1
    for kl in (0.0, 5.9, 6.3, 60.0, 2.0):
        error = kl / 6.0 - 1
        expected *= 1 + 0.1 * (0.2 if error > 0.2 else -0.2 if error < -0.2 else error)
        method.observe(kl)
    assert method.kl_coef == pytest.approx(expected, rel=1e-12)
    fixed = alignments.build("ppo", {"kl_coef": 0.1})
    fixed.observe(100.0)
    assert fixed.kl_coef == 0.1


def test_ppo_stops_a_rollout_above_one_and_a_half_times_stop_kl():
    method = alignments.build("ppo", {"stop_kl": 0.02})
    assert [method.stops(kl) for kl in (0.0, 0.0299, 0.0301)] == [False, False, True]
    assert not alignments.build("ppo", {"stop_kl": None}).stops(1e9)


def test_whitening_equals_a_loop():
    words = batches.batch("prompts", 3)
    x, mask = words["values"] * 5 + 3, words["mask"]
    kept = [float(v) for v, m in zip(x.flatten(), mask.flatten(), strict=True) if m]
    mean = sum(kept) / len(kept)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in kept) / len(kept) + 1e-8)
    expected = [(v - mean) / deviation for v in kept]
    assert whiten(x, mask)[mask.bool()].tolist() == pytest.approx(expected, abs=1e-12)
    assert not whiten(x, mask)[~mask.bool()].any()


def test_expectation_of_the_three_kl_estimators():
    """Summed over a vocabulary with the policy's weights, k1 and k3 equal the KL, and k2 is close to it."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    reference = (0.9 * policy + 0.1 * reference).log_softmax(0)
    exact = sum(math.exp(p) * (p - q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))
    found = kl_estimates(policy[None], reference[None], policy.exp()[None])
    # The mask holds the policy's probabilities: they sum to 1, so that the masked mean is the expectation.
    assert float(found.k1) == pytest.approx(exact, abs=1e-12)
    assert float(found.k3) == pytest.approx(exact, abs=1e-12)
    assert float(found.k2) == pytest.approx(exact, rel=0.2)
    assert float(kl_estimates(policy[None], reference[None], torch.zeros(1, 50)).k1) == 0
