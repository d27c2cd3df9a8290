"""Reward rules: functions of one answer.  `@rewards.register("its_name")` makes any such function a rule."""

import functools
import re
from typing import Annotated, Any

from ablatio import Positive, Range, rewards
from ablatio.errors import UserError
from ablatio.model.rl.answers import Answer

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
EQUATION = re.compile(r"(-?[\d.]+)\s*([-+*/x])\s*(-?[\d.]+)\s*=\s*(-?[\d.]+)")


@rewards.register("length", paper="arXiv:2310.03716")
def length(answer: Answer, *, target: Annotated[int, Positive, "number of tokens with reward 1"] = 64) -> float:
    """max(0, min(n, 2 target - n) / target), n the tokens of the answer: 1 for an answer of `target` tokens."""
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
    given, correct = numbers[0 if marker else -1], NUMBER.findall(answer.truth)
    return 1.0 if correct and _equal(given, correct[-1]) else format_reward


def _equal(a: str, b: str) -> bool:
    return float(a.replace(",", "")) == float(b.replace(",", ""))


@rewards.register("arithmetic", paper="arXiv:2305.20050")
def arithmetic(
    answer: Answer, *, empty: Annotated[float, Range(0, 1), "reward of a text without any equation"] = 0.0
) -> float:
    """Share of the equations a + b = c (also - * / x) in the text that are true: a verifier of single steps."""
    found = [_holds(*match) for match in EQUATION.findall(answer.text)]
    return sum(found) / len(found) if found else empty


def _holds(a: str, sign: str, b: str, c: str) -> bool:
    try:
        x, y, z = float(a), float(b), float(c)
        value = {"+": x + y, "-": x - y, "*": x * y, "x": x * y}[sign] if sign != "/" else x / y
    except (ValueError, ZeroDivisionError):  # the pattern also matches 1.2.3, which is not a number
        return False
    return abs(value - z) <= 1e-6 * max(1.0, abs(value))


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
