"""Prompt selection: groups with equal rewards are resampled, low-entropy positions of a text are left out."""

import logging

import pytest
import torch
from helpers.policies import made, step

from ablatio.errors import UserError
from ablatio.model.decoding.rollout import Rollout, next_logits, sample_rollouts, streams
from ablatio.registry.kinds import alignments, decodes
from ablatio.testing import tiny_models
from ablatio_std.tasks._rollouts import processors_of


def set_reward(task, model, wanted):
    """Reward: sum of an answer's ids if wanted(prompt number), else 0.  Returns the prompt numbers of each batch."""
    numbers, seen = {}, []
    usual = task.asking.prompts

    def counted(places, split="train"):
        found = usual(places, split)
        numbers.update({tuple(p.ids): place for p, place in zip(found, places, strict=True)})
        return found

    def judge(answers):
        scores = [float(sum(a.ids)) if wanted(numbers[tuple(a.prompt_ids)]) else 0.0 for a in answers]
        seen.append([numbers[tuple(a.prompt_ids)] for a in answers])
        return torch.tensor(scores)

    task.asking.prompts, task.asking.judge = counted, judge
    return seen


def test_groups_without_gradient_are_resampled():
    """Every third prompt gives a gradient; each round samples only as many prompts as groups are missing."""
    task, model = made("dapo", batch_size=16, method_knobs={"group": 4, "resample": 20}, answer_tokens=12)
    seen = set_reward(task, model, lambda n: n % 3 == 0)
    _, measures = step(task, model, 0)
    asked = sum(len(set(batch)) for batch in seen)
    rounds = [set(batch) for batch in seen]
    assert rounds[:2] == [{0, 1, 2, 3}, {4, 5}]
    assert task.asking.asked == asked and float(measures["train/flat_groups"]) == 0
    assert float(measures["train/resampled"]) == pytest.approx((asked - 4) / 4)
    kept = task.rollout
    assert len(kept) == 16 and task.words["rewards"].view(4, 4).std(1).min() > 0
    for row in range(16):  # joining the rounds keeps the rows of a group together
        assert kept.prompt(row) == kept.prompt(row // 4 * 4)
    before = task.asking.asked
    step(task, model, 1)
    assert min(seen[len(rounds)]) == before, "the next rollout must continue after the prompts used"


def test_resampling_limit_is_reported(caplog):
    task, model = made("dapo", batch_size=8, method_knobs={"group": 4, "resample": 3}, answer_tokens=6)
    seen = set_reward(task, model, lambda n: False)
    with caplog.at_level(logging.WARNING, logger="ablatio"):
        loss, measures = step(task, model, 0)
    assert len(seen) == 4 and float(measures["train/resampled"]) == 3 and loss == 0
    assert "2 of 2 prompts still give no gradient after 3 rounds (8 prompts used)" in caplog.text
    assert "alignment.resample=6" in caplog.text


def test_resample_zero_samples_once():
    task, model = made("dapo", batch_size=8, method_knobs={"group": 4, "resample": 0}, answer_tokens=6)
    seen = set_reward(task, model, lambda n: False)
    step(task, model, 0)
    assert len(seen) == 1 and task.asking.asked == 2


def test_resampling_resumes_bit_for_bit():
    """The second rollout of a task restored after the first equals that of an uninterrupted one."""
    found = []
    for cut in (False, True):
        task, model = made("dapo", batch_size=16, method_knobs={"group": 4, "resample": 20}, answer_tokens=12)
        set_reward(task, model, lambda n: n % 3 == 0)
        step(task, model, 0)
        if cut:
            state = task.state_dict()
            task, model = made("dapo", batch_size=16, method_knobs={"group": 4, "resample": 20}, answer_tokens=12)
            set_reward(task, model, lambda n: n % 3 == 0)
            task.load_state_dict(state)
        step(task, model, 1)
        found.append((task.rollout.tokens, task.words["rewards"]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_joined_rollouts_keep_their_rows():
    net = tiny_models.model().eval()
    short = sample_rollouts(net, [[5], [6, 7]], streams(0, 0, 4, 3), stop=None, new_tokens=3, group=2)
    long = sample_rollouts(net, [[8, 9, 10, 11]], streams(0, 0, 1, 6, first=4), stop=None, new_tokens=6)
    both = Rollout.joined([short, long])
    assert [both.prompt(i) for i in range(5)] == [[5], [5], [6, 7], [6, 7], [8, 9, 10, 11]]
    assert [both.answer(i) for i in range(5)] == [*(short.answer(i) for i in range(4)), long.answer(0)]
    assert torch.equal(both.logps[:4, :3], short.logps) and not both.mask[:4, 3:].any()


def test_random_streams_of_a_row_do_not_depend_on_the_batch():
    assert torch.equal(streams(3, 1, 6, 5)[4:], streams(3, 1, 2, 5, first=4))


@pytest.mark.oracle("alignment=rpt", "entropy of the likeliest tokens in a loop, float64")
def test_low_entropy_positions_are_left_out():
    """Oracle: entropy of each position from a separate full pass over its prompt."""
    task, model = made("rpt", batch_size=32, method_knobs={"group": 8, "likeliest": 4}, answer_tokens=6)
    every = task.prompts(range(200))

    def entropy(prompt):
        with torch.no_grad():
            probs = sorted(task.reference(torch.tensor([prompt.ids]))[0, -1].double().softmax(-1).tolist())[-4:]
        return -sum(p / sum(probs) * torch.tensor(p / sum(probs)).double().log().item() for p in probs)

    hardness = [entropy(p) for p in every]
    task.method.least_entropy = sorted(hardness)[150]
    expected = [p.ids for p, h in zip(every, hardness, strict=True) if h >= task.method.least_entropy - 1e-6][:4]
    _, measures = step(task, model, 0)
    asked = [task.rollout.prompt(row) for row in range(0, 32, 8)]
    assert asked == expected
    used = next(i for i, p in enumerate(every) if p.ids == expected[-1]) + 1
    assert task.asking.asked == used and float(measures["train/left_out"]) == pytest.approx(used / 4 - 1)
    held_out = task.prompts(range(2), "validation")
    assert task.asking(model, held_out, -1).rollout.prompt(0) == held_out[0].ids  # validation uses every position


def test_unreachable_entropy_threshold_is_rejected():
    task, model = made("rpt", batch_size=8, method_knobs={"group": 8, "least_entropy": 50.0}, answer_tokens=6)
    with pytest.raises(UserError, match=r"only 0 of 32 places in the text have that much entropy") as caught:
        step(task, model, 0)
    assert "try: alignment.least_entropy=" in str(caught.value)


def test_next_logits_match_a_full_pass():
    net, prompts = tiny_models.model().eval(), [[5, 9, 3], [7], [12, 4]]
    found = next_logits(net, prompts)
    with torch.no_grad():
        for prompt, row in zip(prompts, found, strict=True):
            assert torch.allclose(row, net(torch.tensor([prompt]))[0, -1], atol=1e-5)


def test_resampling_methods_need_only_inputs_known_while_sampling():
    for entry in alignments:
        if entry.facts["data"] == "prompts" and entry.knob("resample"):
            assert set(entry.facts["asks"]["advantages"]) <= {"rewards", "mask", "max_length"}


def test_training_draws_answers_with_the_processors_of_decode():
    """top_k=1 leaves the most likely token; held-out answers are those of the policy itself."""
    task, model = made("grpo", batch_size=8, method_knobs={"group": 4}, answer_tokens=6)
    held_out = task.score(model, task.validation(), torch.device("cpu"), lambda n: None)
    task.setup.config["decode"] = {"name": "sample", **decodes["sample"].defaults, "top_k": 1}
    task.asking.processors = processors_of(task.setup)
    step(task, model, 0)
    prompts = [task.rollout.prompt(row) for row in range(8)]
    greedy = sample_rollouts(model, prompts, None, stop=task.stop, new_tokens=6)
    assert torch.equal(task.rollout.tokens, greedy.tokens)
    assert torch.allclose(task.rollout.logps, greedy.logps, atol=1e-5)
    assert task.score(model, task.validation(), torch.device("cpu"), lambda n: None) == held_out


@pytest.mark.parametrize(
    ("name", "knobs", "reason"),
    [
        ("beam", {}, "decode=sample"), ("greedy", {}, "decode=sample"), ("best_of_n", {}, "decode=sample"),
        ("sample", {"temperature": 0.5}, r"task\.temperature=0\.5"),
    ],
)  # fmt: skip
def test_other_ways_to_decode_are_refused_for_a_policy(name, knobs, reason):
    task, _ = made("grpo", batch_size=8, method_knobs={"group": 4}, answer_tokens=6)
    task.setup.config["decode"] = {"name": name, **decodes[name].defaults, **knobs}
    with pytest.raises(UserError, match=reason):
        processors_of(task.setup)
