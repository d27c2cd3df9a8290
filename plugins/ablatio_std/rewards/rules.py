"""Rules: functions of one answer.  A function of yours becomes one by `@rewards.register("its_name")`."""

import functools
import re
from typing import Annotated, Any

from ablatio import Positive, Range, rewards
from ablatio.errors import EnvironmentFault
from ablatio.model.rl.answers import Answer

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
EQUATION = re.compile(r"(-?[\d.]+)\s*([-+*/x])\s*(-?[\d.]+)\s*=\s*(-?[\d.]+)")


@rewards.register("length", paper="arXiv:2310.03716")
def length(answer: Answer, *, target: Annotated[int, Positive, "tokens"] = 64) -> float:
    """min(tokens, 2 target - tokens) / target, at least 0: an answer of `target` tokens earns 1."""
    return max(0.0, min(len(answer.ids), 2 * target - len(answer.ids)) / target)


@rewards.register("exact_answer", paper="arXiv:2110.14168")
def exact_answer(
    answer: Answer,
    *,
    marker: Annotated[str, "what stands before the answer; empty: the last number of the text counts"] = "####",
    format_reward: Annotated[float, Range(0, 1), "for a number behind the marker that is wrong"] = 0.0,
) -> float:
    """1 if the number behind the last `marker` is the one that the data holds for right, else 0 (GSM8K's rule)."""
    if answer.truth is None:
        return 0.0
    _, found, behind = answer.text.rpartition(marker) if marker else ("", "", answer.text)
    numbers = NUMBER.findall(behind) if found or not marker else []
    if not numbers:
        return 0.0
    said, right = numbers[0 if marker else -1], NUMBER.findall(answer.truth)
    return 1.0 if right and _same(said, right[-1]) else format_reward


def _same(a: str, b: str) -> bool:
    return float(a.replace(",", "")) == float(b.replace(",", ""))


@rewards.register("arithmetic", paper="arXiv:2305.20050")
def arithmetic(
    answer: Answer, *, empty: Annotated[float, Range(0, 1), "for a text without any equation"] = 0.0
) -> float:
    """The share of equations a + b = c (also - * / x) in the text that hold: a verifier of single steps."""
    found = [_holds(*match) for match in EQUATION.findall(answer.text)]
    return sum(found) / len(found) if found else empty


def _holds(a: str, sign: str, b: str, c: str) -> bool:
    try:
        x, y, z = float(a), float(b), float(c)
        value = {"+": x + y, "-": x - y, "*": x * y, "x": x * y}[sign] if sign != "/" else x / y
    except (ValueError, ZeroDivisionError):  # 1.2.3 is no number
        return False
    return abs(value - z) <= 1e-6 * max(1.0, abs(value))


@rewards.register("sentiment", paper="doi:10.1609/icwsm.v8i1.14550")
def sentiment(
    answer: Answer,
    *,
    with_prompt: Annotated[bool, "judge the whole text, not the answer alone"] = False,
) -> float:
    """VADER's compound score of the text, -1 ... 1: a lexicon of moods with rules, no model."""
    text = answer.prompt + answer.text if with_prompt else answer.text
    return float(_vader().polarity_scores(text)["compound"])


@functools.cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise EnvironmentFault(
            "reward=sentiment needs vaderSentiment, which is not installed\n    try: pip install 'ablatio[sentiment]'"
        ) from None
    return SentimentIntensityAnalyzer()
