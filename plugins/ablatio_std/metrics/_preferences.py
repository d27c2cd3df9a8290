"""Which of two answers is better: by a function, or by a language model that is asked."""

import math
from collections.abc import Callable

from ablatio.data.items import Item, Likelihood, Respond

QUESTION = "Question: {question}\nAnswer 1: {first}\nAnswer 2: {second}\nThe better answer is answer"
PLACES = (" 1", " 2")


def judged_better(judge: Respond, item: Item, answer: str, other: str) -> float:
    """Probability of the judge's model that `answer` is better than `other`: the mean over both orders.

    In each order, softmax over the log-probabilities of ` 1` and ` 2` after the question with both answers; the mean
    removes the preference for a place.
    """
    if answer == other:
        return 0.5
    found = 0.0
    for place, pair in enumerate(((answer, other), (other, answer))):
        text = QUESTION.format(question=item.question or item.prompt, first=pair[0], second=pair[1])
        first, second = (r.logp for r in judge([Likelihood(text, word) for word in PLACES]))
        gap = (first - second) * (1 if place == 0 else -1)
        # exp(700) is near the largest float: below it the probability is 0.
        found += 0.5 * (1.0 / (1.0 + math.exp(-gap)) if gap > -700 else 0.0)
    return found


def higher_is_better(agreement: Callable[[str, str], float], item: Item, answer: str, other: str) -> float:
    """1 if `answer` agrees more with the correct one than `other`, 1/2 for a draw, else 0."""
    a, b = (max(agreement(text, target) for target in item.correct_answers) for text in (answer, other))
    return 0.5 if a == b else float(a > b)
