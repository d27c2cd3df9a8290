"""Metrics of multiple-choice questions, answered by the likelihoods of the choices."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from ablatio import Range, metrics
from ablatio.data.items import Item, Likelihood, Request, Response, Scored

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Form = Annotated[
    Literal["cloze", "letters"], "cloze: likelihood of each choice; letters: choices are listed, and A, B ... compared"
]


def _asked(item: Item, form: str) -> list[Request]:
    if form == "cloze":
        return [Likelihood(item.prompt, item.continued(choice)) for choice in item.choices]
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False))
    prompt = "\n".join(filter(None, (item.prompt, listed, "Answer:")))
    # With the space, as a letter follows "Answer:" in text.
    return [Likelihood(prompt, f" {letter}") for letter in LETTERS[: len(item.choices)]]


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)  # the first of equal ones, as numpy's argmax


def _probabilities(responses: Sequence[Response]) -> list[float]:
    """Softmax of the log-likelihoods over the choices."""
    top = max(r.logp for r in responses)
    weights = [math.exp(r.logp - top) for r in responses]
    return [w / sum(weights) for w in weights]


@metrics.register("likelihood_choice", paper="arXiv:2405.14782")
class LikelihoodChoice:
    """Share of questions whose correct choice has the largest log-likelihood log p(choice | prompt).

    acc          by the sum over the tokens of the choice (`acc` of lm-eval)
    acc_norm     divided by the number of characters of the choice (`acc_norm` of lm-eval)
    acc_bytes    divided by its number of UTF-8 bytes
    acc_tokens   divided by its number of tokens
    probability  of the correct choice, normalized over the choices: changes before the accuracies do
    """

    labels, scores = ("choices",), ("acc", "acc_norm", "acc_bytes", "acc_tokens", "probability")

    def __init__(self, *, form: Form = "cloze") -> None:
        self.form = form

    def requests(self, item: Item) -> list[Request]:
        return _asked(item, self.form)

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        logps = [r.logp for r in responses]
        written = [f"{LETTERS[i]}" if self.form == "letters" else choice for i, choice in enumerate(item.choices)]
        sizes = {
            "acc": [1] * len(written),
            "acc_norm": [len(text) for text in written],
            "acc_bytes": [len(text.encode("utf-8", "replace")) for text in written],
            "acc_tokens": [len(r.logps) for r in responses],
        }
        # lm-eval's accuracies, which differ only in what a choice's log-likelihood is divided by.
        picked = {
            name: _best([logp / max(1, size) for logp, size in zip(logps, by, strict=True)])
            for name, by in sizes.items()
        }
        found = {name: float(index == item.gold) for name, index in picked.items()}
        return found | {"probability": _probabilities(responses)[item.gold or 0]}


@metrics.register("calibration", paper="arXiv:1706.04599")
class Calibration:
    """Expected calibration error sum_bins (n_b / n) |accuracy_b - confidence_b| of multiple-choice answers.

    The confidence is the probability of the most probable choice, normalized over the choices; bins are of equal width.
    brier  mean over items of sum_choices (p - [choice is correct])^2  (Brier 1950, doi:10.1175/1520-0493(1950)078)
    """

    labels, scores, better = ("choices",), ("ece", "brier"), "lower"

    def __init__(self, *, form: Form = "cloze", bins: Annotated[int, Range(1, 1000), "confidence bins"] = 10) -> None:
        self.form, self.bins = form, bins

    def requests(self, item: Item) -> list[Request]:
        return _asked(item, self.form)

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        p = _probabilities(responses)
        brier = math.fsum((x - (index == item.gold)) ** 2 for index, x in enumerate(p))
        correct = float(_best(p) == item.gold)
        return {"ece": abs(max(p) - correct), "brier": brier, "confidence": max(p), "correct": correct}

    def summary(self, scored: Sequence[Scored]) -> dict[str, float]:
        import torch
        from torchmetrics.functional.classification import binary_calibration_error

        confidence = torch.tensor([s.values["confidence"] for s in scored], dtype=torch.float64)
        correct = torch.tensor([int(s.values["correct"]) for s in scored])
        # The library's bins are equal in width, as in the paper.
        ece = float(binary_calibration_error(confidence, correct, n_bins=self.bins, norm="l1"))
        return {"ece": ece, "brier": math.fsum(s.values["brier"] for s in scored) / len(scored)}
