"""Evaluation of policies: best of n, a gold reward beside the reward, and pairs sampled from the reference."""

import math

import pytest
import torch
from helpers.policies import made, step
from helpers.runs import TINY, ablatio, summary

from ablatio.errors import UserError
from ablatio.model.decoding.rollout import streams
from ablatio.model.rl.policy_outputs import policy_outputs
from ablatio.registry.kinds import rewards


def scored(task, model):
    return task.score(model, task.validation(), torch.device("cpu"), lambda n: None)


def perturb(model, size=0.3):
    """Add Gaussian noise of `size` times each weight's standard deviation, in place."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator) * weight.std(correction=0))
    return model


@pytest.mark.oracle("alignment=rejection_sampling", "a loop over all answers that were drawn")
def test_score_uses_the_best_of_n():
    knobs = {"held_out": 20, "answer_tokens": 12, "gold": "arithmetic"}
    task, model = made("rejection_sampling", reward_knobs={"target": 6}, method_knobs={"best_of": 5}, **knobs)
    found, judge, best = scored(task, model), rewards.build("length", {"target": 6}), []
    for first in (0, 16):
        prompts = task.prompts(range(first, min(20, first + 16)), "validation")
        for number, prompt in enumerate(prompts):
            draws = streams(task.setup.seeds.data, -1 - first, len(prompts) * 5, 12)[5 * number : 5 * number + 5]
            single = [task.asking.texts([prompt], _one(task, model, prompt, row), 1)[0] for row in draws]
            best.append(max(judge(a) for a in single))
    assert found["answers"] == 20 and found["reward"] == pytest.approx(sum(best) / 20, abs=1e-6)
    assert found["kl"] == pytest.approx(math.log(5) - 4 / 5, abs=1e-5)  # the policy equals its reference


def _one(task, model, prompt, draws):
    from ablatio.model.decoding.rollout import sample_rollouts

    return sample_rollouts(model, [prompt.ids], draws[None], stop=task.stop, new_tokens=task.answer_tokens)


@pytest.mark.oracle("alignment=rejection_sampling", "KL of the best of n, summed over all answers of one token")
@pytest.mark.parametrize("n", [2, 6])
def test_best_of_n_kl_of_a_changed_policy(n):
    """The reward of a token is its id, so there are no ties; the oracle sums over all tokens without the formula."""
    task, model = made("rejection_sampling", method_knobs={"best_of": n}, held_out=1500, answer_tokens=1)
    task.asking.judge = lambda answers: torch.tensor([float(a.ids[0]) for a in answers])
    found, exact = scored(task, perturb(model, 6.0)), []
    for prompt in task.prompts(range(40), "validation"):
        own, other = (_next(m, prompt.ids) for m in (model, task.reference))
        up_to = own.cumsum(0).clamp(max=1)
        chosen = up_to**n - torch.cat([up_to.new_zeros(1), up_to[:-1]]) ** n
        exact.append(float((chosen * (chosen / other).clamp(min=1e-300).log()).sum()))
    expected = sum(exact) / len(exact)
    assert expected > 1.2 * (math.log(n) - (n - 1) / n)  # the policy differs enough from its reference
    assert found["kl"] == pytest.approx(expected, rel=0.1)


def _next(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]))[0, -1].double().softmax(0)


def test_rejection_sampling_run_changes_no_weight(tmp_path, text_file):
    settings = [*TINY, "task=policy", "alignment=rejection_sampling", "alignment.best_of=4", "reward=length"]
    settings += ["optimizer.weight_decay=0.5", "train.steps=3", "train.batch_size=8", "model.max_len=32"]
    settings += ["task.prompt_tokens=6", "task.answer_tokens=8", "train.checkpoint_every=1", "train.keep=9"]
    settings += [f"source.path={text_file}", f"out={tmp_path}", "name=run"]
    ended = ablatio(["train", *settings], tmp_path / "log")
    assert ended.code == 0, ended.err
    files = [tmp_path / f"run/checkpoints/step-{n:08d}.model.safetensors" for n in (1, 3)]
    assert files[0].read_bytes() == files[1].read_bytes()
    result = summary(tmp_path / "run")
    assert result["before"] == result["after"] and result["steps"] == 3
    assert result["val/kl"] == pytest.approx(math.log(4) - 3 / 4, abs=1e-5)


def test_gold_and_reward_score_the_same_answers():
    task, model = made("grpo", reward_knobs={"target": 4}, gold="length", held_out=16, answer_tokens=8)
    found, prompts = scored(task, model), task.prompts(range(16), "validation")
    answers = task.asking.texts(prompts, task.asking(model, prompts, -1).rollout, 1)
    for name, target in (("reward", 4), ("gold", 64)):  # the gold reward uses its defaults
        judge = rewards.build("length", {"target": target})
        assert found[name] == pytest.approx(sum(map(judge, answers)) / 16, abs=1e-6)
    task, model = made("grpo", held_out=4)
    found = scored(task, model)
    assert found["gold"] == found["reward"] and found["answers"] == 4
    with pytest.raises(UserError, match=r"task\.gold=model is not a function of one answer"):
        made("grpo", gold="model")


def test_pairs_sampled_from_reference_do_not_depend_on_policy():
    """Changing the policy must not change the answers; policy metrics are not logged for the reference's answers."""
    knobs = {"method_knobs": {"writer": "reference"}, "batch_size": 8, "answer_tokens": 8}
    (still, first), (task, second) = made("online_dpo", **knobs), made("online_dpo", **knobs)
    perturb(second, 3.0)
    for number in range(2):
        step(still, first, number)
        _, measures = step(task, second, number)
        assert torch.equal(still.rollout.tokens, task.rollout.tokens)
    own = policy_outputs(second, task.rollout).logps
    assert torch.allclose(task.words["old_logps"], own) and not torch.allclose(own, task.words["ref_logps"])
    assert "train/reward" not in measures and "train/kl_k1" not in measures
    online, model = made("online_dpo", batch_size=8, answer_tokens=8)
    step(online, perturb(model, 3.0), 0)
    assert not torch.equal(online.rollout.tokens[:, :4], still.rollout.tokens[:, :4])
    assert "train/reward" in online.measures
