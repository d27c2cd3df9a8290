"""Rewards that compare: the answers to one prompt play each against each, and what comes of it is the reward."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ablatio import OptionOf, rewards
from ablatio.errors import UserError
from ablatio.model.rl.answers import Answer

FORMS = (("answer",), ("answer", "other"))
STEPS = 30  # of Newton's method, on a function with one maximum; ten are enough


@rewards.register("ranking", paper="arXiv:2204.05862")
class Ranking:
    """How an answer does against the others to its prompt; only which of two is better counts.  N answers -> (N,)

    `function` judges: one answer by a number, of which the higher wins, or two by the chance that the first is better.
    places: the share of the others that it beats, a draw is half of it.
    elo: R / 400, the ratings R under which the results are likeliest, P(a beats b) = 1 / (1 + 10^((R_b - R_a) / 400)),
    each with half a win and half a loss against a player of rating 0 besides, which keeps them finite.
    The answer that the data holds for right plays too, with the rating 0, if `truth` is on and there is one.
    """

    compares = True

    def __init__(
        self,
        *,
        function: Annotated[str, OptionOf("reward"), "of one answer or of two, by name"] = "length",
        scale: Annotated[Literal["places", "elo"], "what the results are turned into"] = "places",
        truth: Annotated[bool, "the data's own answer is one of the players"] = True,
    ) -> None:
        form = rewards[function].wiring
        if form not in FORMS:
            known = ", ".join(e.name for e in rewards if e.wiring in FORMS)
            raise UserError(
                f"reward=ranking compares by a function of one or two answers, and {function} is none: {known}"
            )
        made: Any = rewards.build(function)
        self.wins: Callable[[Answer, Answer], float] = made if len(form) == 2 else _by_number(made)
        self.scale, self.truth = scale, truth

    def __call__(self, answers: Sequence[Answer]) -> Tensor:
        found = [self._ranked(list(group)) for _, group in groupby(answers, lambda a: (a.prompt, tuple(a.prompt_ids)))]
        return torch.cat(found).float()

    def _ranked(self, players: list[Answer]) -> Tensor:
        first = players[0]
        if self.truth and first.truth is not None:
            ids = first.more.get("following", first.truth.encode())
            players = [*players, replace(first, text=first.truth, ids=ids)]
            return self._score(self._results(players), anchored=True)[:-1]
        return self._score(self._results(players), anchored=False)

    def _results(self, players: Sequence[Answer]) -> Tensor:
        """(K, K): the share of each game that the row's player won; 0 against itself."""
        found = torch.zeros(len(players), len(players), dtype=torch.float64)
        for i, a in enumerate(players):
            for j, b in enumerate(players[:i]):
                found[i, j] = self.wins(a, b)
                found[j, i] = 1 - found[i, j]
        return found

    def _score(self, results: Tensor, anchored: bool) -> Tensor:
        if self.scale == "elo":
            return elo(results, anchored) / 400
        return results.sum(1) / (len(results) - 1) if len(results) > 1 else torch.full((1,), 0.5)


def _by_number(function: Callable[[Answer], float]) -> Callable[[Answer, Answer], float]:
    def wins(a: Answer, b: Answer) -> float:
        x, y = function(a), function(b)
        return 0.5 if x == y else float(x > y)

    return wins


def elo(results: Tensor, anchored: bool) -> Tensor:
    """Ratings (K,) from the shares that were won (K, K); anchored: the last player's is 0."""
    free = len(results) - anchored
    games = 1 - torch.eye(len(results), dtype=results.dtype)
    strength = results.new_zeros(len(results))  # R ln 10 / 400
    for _ in range(STEPS):
        chance = torch.sigmoid(strength[:, None] - strength)
        draw = torch.sigmoid(strength)  # of the player that each has drawn with
        slope = (games * (results - chance)).sum(1) + 0.5 - draw
        spread = games * chance * (1 - chance)
        bend = torch.diag(spread.sum(1) + draw * (1 - draw)) - spread
        strength[:free] += torch.linalg.solve(bend[:free, :free], slope[:free])
    return strength * 400 / math.log(10)
