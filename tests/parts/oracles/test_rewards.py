"""Rewards against reasoning-gym's answers and scorer, VADER itself, tables, and sums by hand."""

import random
from fractions import Fraction

import pytest
import reasoning_gym as gym
import torch

from ablatio.errors import UserError
from ablatio.model.rl.answers import Answer
from ablatio.registry.kinds import rewards


def judge(name, text, truth=None, **knobs):
    return rewards.build(name, knobs)(Answer("question", text, (1,), tuple(text.encode()), truth))


@pytest.mark.oracle("reward=exact_answer", "reasoning-gym's gsm_symbolic and its scorer")
def test_exact_answer_agrees_with_the_scorer_of_reasoning_gym():
    data = gym.create_dataset("gsm_symbolic", size=20, seed=3)
    for entry in data:
        right = entry["answer"]
        assert data.score_answer(right, entry) == judge("exact_answer", f"so\n#### {right}", right) == 1
        wrong = str(float(right) + 1)
        assert data.score_answer(wrong, entry) < 1 and judge("exact_answer", f"#### {wrong}", right) == 0
        assert judge("exact_answer", f"first 3, then {right}.", right, marker="") == 1
        assert judge("exact_answer", f"it is {right}", right) == 0


@pytest.mark.parametrize(
    "text, truth, expected",
    [
        ("#### 1,234", "1234", 1),
        ("#### 7 #### 8", "8", 1),
        ("#### ", "8", 0),
        ("#### -3.0", "-3", 1),
        ("#### 8", None, 0),
    ],
)
def test_number_formats_of_exact_answer(text, truth, expected):
    assert judge("exact_answer", text, truth) == expected


def test_format_reward_of_a_wrong_number():
    assert judge("exact_answer", "#### 7", "8", format_reward=0.1) == 0.1
    assert judge("exact_answer", "7", "8", format_reward=0.1) == 0


@pytest.mark.oracle("reward=sentiment", "vaderSentiment")
def test_sentiment_equals_vader():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    vader = SentimentIntensityAnalyzer()
    texts = ["I love it!", "This is the worst day of my life.", "A table.", "not GOOD at all :("]
    assert [judge("sentiment", t) for t in texts] == [vader.polarity_scores(t)["compound"] for t in texts]
    assert judge("sentiment", "great") > judge("sentiment", "great", with_prompt=True) - 1


@pytest.mark.oracle("reward=length", "table")
def test_length_peaks_at_its_target():
    found = [judge("length", "x" * n, target=4) for n in range(10)]
    assert found == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0, 0]


@pytest.mark.oracle("reward=arithmetic", "table")
def test_arithmetic_is_the_share_of_true_equations():
    assert judge("arithmetic", "2+3=5, 2 * 4 = 9 and 9/3=3; 1/0=1") == 0.5
    assert judge("arithmetic", "nothing", empty=0.2) == 0.2


@pytest.mark.oracle("reward=arithmetic", "sums of products whose values are known from how they are made")
def test_arithmetic_reads_whole_expressions():
    rng = random.Random(0)
    for _ in range(200):
        (left, value), (right, other) = (expression(rng, n) for n in (rng.randint(2, 4), rng.randint(1, 3)))
        assert judge("arithmetic", f"so {left} = {right}, then.") == (abs(value - other) < 1e-6), (left, right)
        assert judge("arithmetic", f"so {left} = {float(value):.9f}.") == 1, left
        assert judge("arithmetic", f"{left}={float(value + 1):.9f}") == 0, left
    assert judge("arithmetic", "2 + 3 + 4 = 9 and 2 + 7 = 4 + 5\n- 2 - -3 = 5") == 1
    assert judge("arithmetic", "1 + 2 + 3 = 5") == 0


def expression(rng, terms):
    """(text, value) of a sum of products of digits, with and without spaces."""
    text, value = "", Fraction(0)
    for i in range(terms):
        sign, product = ("+" if i == 0 else rng.choice("+-")), Fraction(first := rng.randint(1, 9))
        text += f"{'' if i == 0 else rng.choice((sign, f' {sign} '))}{first}"
        for _ in range(rng.randint(0, 2) if terms > 1 or i else 0):
            times, n = rng.choice("*x/"), rng.randint(1, 9)
            text, product = f"{text} {times} {n}", product / n if times == "/" else product * n
        value += product if sign == "+" else -product
    return text, value


@pytest.mark.oracle("reward=rule", "sum of its functions")
def test_rule_is_the_weighted_sum_of_its_functions():
    text, knobs = "2+2=4\n#### 4", {"functions": ["exact_answer", "arithmetic", "length"], "weights": [1.0, 0.5, -0.1]}
    answer = Answer("q", text, (), tuple(text.encode()), "4")
    expected = 1 + 0.5 - 0.1 * judge("length", text)
    assert rewards.build("rule", knobs, open_run=None)([answer]).tolist() == pytest.approx([expected])
    with pytest.raises(UserError, match="2 numbers for 1 functions"):
        rewards.build("rule", {"weights": [1.0, 2.0]}, open_run=None)
    with pytest.raises(UserError, match="model is not one"):
        rewards.build("rule", {"functions": ["model"]}, open_run=None)


@pytest.mark.oracle("reward=process", "its rule on each step")
@pytest.mark.parametrize("of, expected", [("each", [1.0, 0.0, 1.0]), ("gain", [1.0, -0.5, 1 / 6])])
def test_process_scores_each_step_or_its_gain(of, expected):
    answer = Answer("q", "1+1=2\n2+2=5\n\n3+3=6", (), ())
    [steps] = rewards.build("process", {"of": of}, open_run=None)([answer])
    assert [s.score for s in steps] == pytest.approx(expected)
    assert [s.end for s in steps] == [6, 12, 18]


@pytest.mark.oracle("reward=model", "the reward function it is given, shifted and scaled")
def test_model_reward_is_shifted_and_scaled():
    opened = []

    def open_run(path):
        opened.append(path)
        return lambda answers: torch.tensor([float(len(a.text)) for a in answers])

    made = rewards.build("model", {"path": "runs/r", "shift": 2.0, "scale": 0.5}, open_run=open_run)
    assert made([Answer("", "abc"), Answer("", "")]).tolist() == [2.0, -4.0]
    assert opened == ["runs/r"]
