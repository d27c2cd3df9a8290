"""Rewards that raise or return invalid values, empty answers, and collapsed policies."""

import logging

import pytest
import torch
from helpers.policies import made, step

from ablatio.errors import Diverged, UserError
from ablatio.model.rl.answers import Answer, RewardError, judged, one_by_one
from ablatio.registry.kinds import rewards

TWO_ANSWERS = [Answer("p", "a", (1,), (2,)), Answer("q", "b", (1,), (3,))]


def force_tokens(model, *tokens):
    """Patch the model so that it samples only the given tokens (their logits get +50)."""
    usual = model.logits
    bonus = torch.zeros(model.vocab_size)
    bonus[list(tokens)] = 50.0
    model.logits = lambda hidden: usual(hidden) + bonus


def test_exception_of_a_reward_function_names_the_answer():
    def third_word(answer):
        return {"a": 1.0}[answer.text]

    with pytest.raises(RewardError, match="reward=third_word raised KeyError: 'b' on the answer to 'q': 'b'") as caught:
        judged(one_by_one(third_word, "third_word"), "third_word", TWO_ANSWERS)
    assert caught.value.exit_code == 2 and "try: ablatio show reward=third_word" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError), "the function's own error must remain visible"


def test_exception_of_a_batch_reward_is_reported():
    def judge(answers):
        raise ZeroDivisionError("division by zero")

    with pytest.raises(RewardError, match=r"reward=odd raised ZeroDivisionError: division by zero on 2 answers"):
        judged(judge, "odd", TWO_ANSWERS)


def test_own_errors_are_not_wrapped():
    def judge(answers):
        raise Diverged("no")

    with pytest.raises(Diverged):
        judged(judge, "odd", TWO_ANSWERS)


@pytest.mark.parametrize("returned_value", [None, "good", [None, 1.0], {"a": 1}], ids=repr)
def test_non_numeric_rewards_are_rejected(returned_value):
    with pytest.raises(
        RewardError, match=r"reward=odd returned .* for 2 answers; expected one number for each"
    ) as caught:
        judged(lambda answers: returned_value, "odd", TWO_ANSWERS)
    assert "try: ablatio show reward=odd" in str(caught.value)


def test_non_numeric_reward_of_a_function_names_the_answer():
    with pytest.raises(RewardError, match=r"reward=odd raised TypeError: .* on the answer to 'p': 'a'"):
        judged(one_by_one(lambda answer: None, "odd"), "odd", TWO_ANSWERS)


@pytest.mark.parametrize(
    "returned_value, words", [(float("nan"), "returned nan for 8 of 8"), (float("inf"), "returned inf for 8 of 8")]
)
def test_non_finite_reward_aborts_the_step(returned_value, words):
    task, model = made("grpo")
    task.asking.judge = lambda answers: torch.full((len(answers),), returned_value)
    with pytest.raises(RewardError, match=words):
        step(task, model, 0)


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo", "online_dpo", "raft", "remax"])
def test_empty_answers_are_trained_on_and_reported(method, caplog):
    """All answers consist of the end token: metrics and weights stay finite, and the collapse is reported."""
    task, model = made(method)
    force_tokens(model, task.stop)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with caplog.at_level(logging.WARNING, logger="ablatio"):
        loss, measures = step(task, model, 0, optimizer)
    assert loss == loss and all(torch.isfinite(v).all() for v in measures.values())
    assert float(measures["train/answer_length"]) == float(measures["train/ended"]) == 1
    assert [a.text for a in task.asking(model, task.prompts([0]), 0).texts] == [""]
    assert f"collapsed: 100 % of its last {task.answers} answers are empty" in caplog.text
    assert float(measures["train/collapsed"]) == 1
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_collapse_is_reported_once_and_logged_at_every_step(caplog):
    task, model = made("grpo")
    usual = model.logits
    with caplog.at_level(logging.WARNING, logger="ablatio"):
        assert float(step(task, model, 0)[1]["train/collapsed"]) == 0
        force_tokens(model, 65)
        assert [float(step(task, model, n)[1]["train/collapsed"]) for n in (1, 2)] == [1, 1]
        assert caplog.text.count("collapsed: 100 % of the tokens") == 1
        model.logits = usual
        assert float(step(task, model, 3)[1]["train/collapsed"]) == 0
        force_tokens(model, 66)
        step(task, model, 4)
    assert caplog.text.count("collapsed") == 2 and "are 'B'" in caplog.text


def test_collapse_is_not_reported_again_after_resume(caplog):
    task, model = made("grpo")
    force_tokens(model, 65)
    step(task, model, 0)
    again, other = made("grpo")
    again.load_state_dict(task.state_dict())
    force_tokens(other, 65)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="ablatio"):
        step(again, other, 1)
    assert "collapsed" not in caplog.text


def test_model_reward_is_rejected_outside_a_run():
    with pytest.raises(UserError, match="only be used inside a run"):
        made("grpo", "model", reward_knobs={"path": "somewhere"})


def test_every_rule_reward_scores_an_empty_answer():
    empty = Answer("2 + 2?", "", (1,), (0,), "4")
    for entry in rewards:
        if entry.wiring == ("answer",):
            score, _ = judged(one_by_one(rewards.build(entry.name), entry.name), entry.name, [empty])
            assert torch.isfinite(score).all()
