"""Rewards that raise or say nonsense, answers that are empty, policies that say one thing alone."""

import logging

import pytest
import torch
from helpers.policies import made, step

from ablatio.errors import Diverged, UserError
from ablatio.model.rl.answers import Answer, RewardError, judged, one_by_one
from ablatio.registry.kinds import rewards

TWO = [Answer("p", "a", (1,), (2,)), Answer("q", "b", (1,), (3,))]


def says(model, *tokens):
    """The model says these tokens and nothing else, one after the other by what it has drawn last."""
    usual = model.logits
    whole = torch.zeros(model.vocab_size)
    whole[list(tokens)] = 50.0
    model.logits = lambda hidden: usual(hidden) + whole


def test_a_function_that_raises_is_named_with_its_answer():
    def third_word(answer):
        return {"a": 1.0}[answer.text]

    with pytest.raises(RewardError, match="reward=third_word raised KeyError: 'b' on the answer to 'q': 'b'") as caught:
        judged(one_by_one(third_word, "third_word"), "third_word", TWO)
    assert caught.value.exit_code == 2 and "try: ablatio show reward=third_word" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError), "the function's own error stays in sight"


def test_a_reward_of_many_answers_that_raises_is_named():
    def judge(answers):
        raise ZeroDivisionError("division by zero")

    with pytest.raises(RewardError, match=r"reward=odd raised ZeroDivisionError: division by zero on 2 answers"):
        judged(judge, "odd", TWO)


def test_errors_of_ours_stay_what_they_are():
    def judge(answers):
        raise Diverged("no")

    with pytest.raises(Diverged):
        judged(judge, "odd", TWO)


@pytest.mark.parametrize("said", [None, "good", [None, 1.0], {"a": 1}], ids=repr)
def test_what_is_no_number_is_refused(said):
    with pytest.raises(
        RewardError, match=r"reward=odd returned .* for 2 answers; expected one number for each"
    ) as caught:
        judged(lambda answers: said, "odd", TWO)
    assert "try: ablatio show reward=odd" in str(caught.value)


def test_a_function_that_gives_no_number_is_named_with_its_answer():
    with pytest.raises(RewardError, match=r"reward=odd raised TypeError: .* on the answer to 'p': 'a'"):
        judged(one_by_one(lambda answer: None, "odd"), "odd", TWO)


@pytest.mark.parametrize(
    "said, words", [(float("nan"), "returned nan for 8 of 8"), (float("inf"), "returned inf for 8 of 8")]
)
def test_a_step_ends_where_a_reward_says_nonsense(said, words):
    task, model = made("grpo")
    task.asking.judge = lambda answers: torch.full((len(answers),), said)
    with pytest.raises(RewardError, match=words):
        step(task, model, 0)


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo", "online_dpo", "raft", "remax"])
def test_empty_answers_are_answers(method, caplog):
    """All say nothing but the end: one token each, finite numbers, a step that moves; and it is noticed."""
    task, model = made(method)
    says(model, task.stop)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with caplog.at_level(logging.WARNING, logger="ablatio"):
        loss, measures = step(task, model, 0, optimizer)
    assert loss == loss and all(torch.isfinite(v).all() for v in measures.values())
    assert float(measures["train/answer_length"]) == float(measures["train/ended"]) == 1
    assert [a.text for a in task.asking(model, task.prompts([0]), 0).texts] == [""]
    assert f"collapsed: 100 % of its last {task.answers} answers are empty" in caplog.text
    assert float(measures["train/collapsed"]) == 1
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_collapse_is_told_once_and_logged_as_long_as_it_lasts(caplog):
    task, model = made("grpo")
    usual = model.logits
    with caplog.at_level(logging.WARNING, logger="ablatio"):
        assert float(step(task, model, 0)[1]["train/collapsed"]) == 0
        says(model, 65)
        assert [float(step(task, model, n)[1]["train/collapsed"]) for n in (1, 2)] == [1, 1]
        assert caplog.text.count("collapsed: 100 % of the tokens") == 1
        model.logits = usual
        assert float(step(task, model, 3)[1]["train/collapsed"]) == 0
        says(model, 66)
        step(task, model, 4)
    assert caplog.text.count("collapsed") == 2 and "are 'B'" in caplog.text


def test_a_resumed_run_does_not_tell_it_again(caplog):
    task, model = made("grpo")
    says(model, 65)
    step(task, model, 0)
    again, other = made("grpo")
    again.load_state_dict(task.state_dict())
    says(other, 65)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="ablatio"):
        step(again, other, 1)
    assert "collapsed" not in caplog.text


def test_a_reward_cannot_ask_for_a_model_outside_a_run():
    with pytest.raises(UserError, match="only be used inside a run"):
        made("grpo", "model", reward_knobs={"path": "somewhere"})


def test_every_rule_judges_an_empty_answer():
    empty = Answer("2 + 2?", "", (1,), (0,), "4")
    for entry in rewards:
        if entry.wiring == ("answer",):
            score, _ = judged(one_by_one(rewards.build(entry.name), entry.name), entry.name, [empty])
            assert torch.isfinite(score).all()
