"""Which prompts a policy learns from: flat groups are drawn anew, easy places of a text are left out."""

import logging

import pytest
import torch
from helpers.policies import made, step

from ablatio.errors import UserError
from ablatio.model.decoding.rollout import Rollout, next_logits, sample_rollouts, streams
from ablatio.registry.kinds import alignments
from ablatio.testing import tiny_models


def answers_to(task, model, wanted):
    """The reward is the sum of an answer's ids where wanted(number of its prompt), else 0.  -> what was asked."""
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


def test_groups_that_teach_nothing_are_drawn_anew():
    """Every third prompt teaches: 4 groups of 4 take 12 prompts, in rounds of those that are missing."""
    task, model = made("dapo", batch_size=16, method_knobs={"group": 4, "resample": 20}, answer_tokens=12)
    seen = answers_to(task, model, lambda n: n % 3 == 0)
    _, measures = step(task, model, 0)
    asked = sum(len(set(batch)) for batch in seen)
    rounds = [set(batch) for batch in seen]
    assert rounds[:2] == [{0, 1, 2, 3}, {4, 5}]
    assert task.asking.asked == asked and float(measures["train/flat_groups"]) == 0
    assert float(measures["train/resampled"]) == pytest.approx((asked - 4) / 4)
    kept = task.rollout
    assert len(kept) == 16 and task.words["rewards"].view(4, 4).std(1).min() > 0
    for row in range(16):  # what was joined from several rounds is what was drawn
        assert kept.prompt(row) == kept.prompt(row // 4 * 4)
    before = task.asking.asked
    step(task, model, 1)
    assert min(seen[len(rounds)]) == before, "the next rollout goes on where this one ended"


def test_there_is_a_limit_and_it_is_told(caplog):
    task, model = made("dapo", batch_size=8, method_knobs={"group": 4, "resample": 3}, answer_tokens=6)
    seen = answers_to(task, model, lambda n: False)
    with caplog.at_level(logging.WARNING, logger="ablatio"):
        loss, measures = step(task, model, 0)
    assert len(seen) == 4 and float(measures["train/resampled"]) == 3 and loss == 0
    assert "2 of 2 prompts still give no gradient after 3 rounds (8 prompts used)" in caplog.text
    assert "alignment.resample=6" in caplog.text


def test_without_rounds_nothing_is_drawn_twice():
    task, model = made("dapo", batch_size=8, method_knobs={"group": 4, "resample": 0}, answer_tokens=6)
    seen = answers_to(task, model, lambda n: False)
    step(task, model, 0)
    assert len(seen) == 1 and task.asking.asked == 2


def test_rounds_go_on_bit_for_bit_after_a_checkpoint():
    """The second rollout of a task that was cut after the first is that of one that was not."""
    found = []
    for cut in (False, True):
        task, model = made("dapo", batch_size=16, method_knobs={"group": 4, "resample": 20}, answer_tokens=12)
        answers_to(task, model, lambda n: n % 3 == 0)
        step(task, model, 0)
        if cut:
            state = task.state_dict()
            task, model = made("dapo", batch_size=16, method_knobs={"group": 4, "resample": 20}, answer_tokens=12)
            answers_to(task, model, lambda n: n % 3 == 0)
            task.load_state_dict(state)
        step(task, model, 1)
        found.append((task.rollout.tokens, task.words["rewards"]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_joined_rollouts_are_their_rows():
    net = tiny_models.model().eval()
    short = sample_rollouts(net, [[5], [6, 7]], streams(0, 0, 4, 3), stop=None, new_tokens=3, group=2)
    long = sample_rollouts(net, [[8, 9, 10, 11]], streams(0, 0, 1, 6, first=4), stop=None, new_tokens=6)
    both = Rollout.joined([short, long])
    assert [both.prompt(i) for i in range(5)] == [[5], [5], [6, 7], [6, 7], [8, 9, 10, 11]]
    assert [both.answer(i) for i in range(5)] == [*(short.answer(i) for i in range(4)), long.answer(0)]
    assert torch.equal(both.logps[:4, :3], short.logps) and not both.mask[:4, 3:].any()


def test_streams_of_later_rows_are_those_of_the_whole():
    assert torch.equal(streams(3, 1, 6, 5)[4:], streams(3, 1, 2, 5, first=4))


@pytest.mark.oracle("alignment=rpt", "entropy of the likeliest tokens in a loop, float64")
def test_easy_places_of_a_text_are_left_out():
    """Against the entropy of each place by itself: a full pass, sorted chances, a sum in a loop."""
    task, model = made("rpt", batch_size=32, method_knobs={"group": 8, "likeliest": 4}, answer_tokens=6)
    every = task.prompts(range(200))

    def entropy(prompt):
        with torch.no_grad():
            chances = sorted(task.reference(torch.tensor([prompt.ids]))[0, -1].double().softmax(-1).tolist())[-4:]
        return -sum(p / sum(chances) * torch.tensor(p / sum(chances)).double().log().item() for p in chances)

    hardness = [entropy(p) for p in every]
    task.method.least_entropy = sorted(hardness)[150]
    expected = [p.ids for p, h in zip(every, hardness, strict=True) if h >= task.method.least_entropy - 1e-6][:4]
    _, measures = step(task, model, 0)
    asked = [task.rollout.prompt(row) for row in range(0, 32, 8)]
    assert asked == expected
    used = next(i for i, p in enumerate(every) if p.ids == expected[-1]) + 1
    assert task.asking.asked == used and float(measures["train/left_out"]) == pytest.approx(used / 4 - 1)
    held_out = task.prompts(range(2), "validation")
    assert task.asking(model, held_out, -1).rollout.prompt(0) == held_out[0].ids  # all of them are taken


def test_a_threshold_that_nothing_reaches_is_refused():
    task, model = made("rpt", batch_size=8, method_knobs={"group": 8, "least_entropy": 50.0}, answer_tokens=6)
    with pytest.raises(UserError, match=r"only 0 of 32 places in the text have that much entropy") as caught:
        step(task, model, 0)
    assert "try: alignment.least_entropy=" in str(caught.value)


def test_what_comes_next_is_what_a_full_pass_says():
    net, prompts = tiny_models.model().eval(), [[5, 9, 3], [7], [12, 4]]
    found = next_logits(net, prompts)
    with torch.no_grad():
        for prompt, row in zip(prompts, found, strict=True):
            assert torch.allclose(row, net(torch.tensor([prompt]))[0, -1], atol=1e-5)


def test_methods_that_draw_anew_ask_for_nothing_that_is_not_known_then():
    for entry in alignments:
        if entry.facts["data"] == "prompts" and entry.knob("resample"):
            assert set(entry.facts["asks"]["advantages"]) <= {"rewards", "mask", "max_length"}
