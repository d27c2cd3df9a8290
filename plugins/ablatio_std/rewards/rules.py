"""Reward rules: functions of one answer.  `@rewards.register("its_name")` makes any such function a rule."""

import functools
import re
from typing import Annotated, Any

from ablatio import Positive, Range, rewards
from ablatio.errors import UserError
from ablatio.model.rl.answers import Answer

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_TERM = r"-?(?:\d+(?:\.\d+)?|\.\d+)"  # without the full stop of a sentence that ends with a number
_FURTHER = rf"[ \t]*[-+*/x][ \t]*{_TERM}"  # on one line: a sign that begins a line is a bullet
# Whole expressions on both sides: of 2 + 3 + 4 = 9 the part 3 + 4 = 9 is no equation of the text.
EQUATION = re.compile(rf"(?<![\d.])({_TERM}(?:{_FURTHER})+)\s*=\s*({_TERM}(?:{_FURTHER})*)")


@rewards.register("length", paper="arXiv:2310.03716")
def length(answer: Answer, *, target: Annotated[int, Positive, "number of tokens with reward 1"] = 64) -> float:
    """max(0, min(n, 2 target - n) / target), n the tokens of the answer: 1 for an answer of `target` tokens."""
    # A triangle with its peak at `target`: the gradient is the same on both sides.
    return max(0.0, min(len(answer.ids), 2 * target - len(answer.ids)) / target)


@rewards.register("exact_answer", paper="arXiv:2110.14168")
def exact_answer(
    answer: Answer,
    *,
    marker: Annotated[str, "text before the answer; empty: use the last number of the text"] = "####",
    format_reward: Annotated[float, Range(0, 1), "reward of a wrong number after the marker"] = 0.0,
) -> float:
    """1 if the number after the last `marker` equals that of the correct answer, else 0 (GSM8K's rule)."""
    if answer.truth is None:
        return 0.0
    _, found, rest = answer.text.rpartition(marker) if marker else ("", "", answer.text)
    numbers = NUMBER.findall(rest) if found or not marker else []
    if not numbers:
        return 0.0
    # The correct answer is read by its last number: GSM8K's holds the steps too.
    given, correct = numbers[0 if marker else -1], NUMBER.findall(answer.truth)
    return 1.0 if correct and _equal(given, correct[-1]) else format_reward


def _equal(a: str, b: str) -> bool:
    return float(a.replace(",", "")) == float(b.replace(",", ""))


@rewards.register("arithmetic", paper="arXiv:2305.20050")
def arithmetic(
    answer: Answer, *, empty: Annotated[float, Range(0, 1), "reward of a text without any equation"] = 0.0
) -> float:
    """Share of the equations in the text that are true, such as a + b = c or a - b x c = d / e: verifies single steps.

    Signs are + - * / x; products come before sums.
    """
    found = [_holds(*match) for match in EQUATION.findall(answer.text)]
    return sum(found) / len(found) if found else empty


def _holds(left: str, right: str) -> bool:
    try:
        value, given = _value(left), _value(right)
    except ZeroDivisionError:
        return False
    # Relative, as a text rounds 1 / 3; absolute near 0.
    return abs(value - given) <= 1e-6 * max(1.0, abs(value))


def _value(expression: str) -> float:
    """Value of numbers with signs between them."""
    first = re.match(_TERM, expression)
    assert first is not None
    total, product = 0.0, float(first[0])
    for sign, number in re.findall(rf"([-+*/x])\s*({_TERM})", expression[first.end() :]):
        if sign in "*x":
            product *= float(number)
        elif sign == "/":
            product /= float(number)
        else:
            total, product = total + product, float(number) if sign == "+" else -float(number)
    return total + product


@rewards.register("sentiment", paper="doi:10.1609/icwsm.v8i1.14550", packages=("vaderSentiment=ablatio[sentiment]",))
def sentiment(
    answer: Answer,
    *,
    with_prompt: Annotated[bool, "score the prompt together with the answer"] = False,
) -> float:
    """VADER's compound sentiment score of the text, from -1 to 1: a lexicon with rules, no model."""
    text = answer.prompt + answer.text if with_prompt else answer.text
    return float(_vader().polarity_scores(text)["compound"])


@functools.cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise UserError(
            "reward=sentiment needs vaderSentiment, which is not installed\n    try: pip install 'ablatio[sentiment]'"
        ) from None
    return SentimentIntensityAnalyzer()
