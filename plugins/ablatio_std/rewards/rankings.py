"""Comparative rewards: the answers to one prompt are compared in pairs, and the results are turned into rewards."""

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
STEPS = 30  # of Newton's method; the likelihood is concave and ten steps are enough


@rewards.register("ranking", paper="arXiv:2204.05862")
class Ranking:
    """Ranks the answers to each prompt by pairwise comparison, so that only their order counts.  N answers -> (N,).

    `function` scores one answer, and the higher score wins, or takes two and returns the probability that the first is
    better.
    places: share of the other answers that it beats; a draw counts one half.
    elo: R / 400, R the maximum-likelihood Elo ratings, P(a beats b) = 1 / (1 + 10^((R_b - R_a) / 400)).  Each answer
    also has half a win and half a loss against a player of rating 0, which keeps the ratings finite.
    With `truth`, the correct answer in the data, if there is one, takes part with the rating 0.
    """

    compares = True

    def __init__(
        self,
        *,
        function: Annotated[str, OptionOf("reward"), "name of a function of one or two answers"] = "length",
        scale: Annotated[Literal["places", "elo"], "scale of the rewards"] = "places",
        truth: Annotated[bool, "compare with the correct answer of the data too"] = True,
    ) -> None:
        form = rewards[function].wiring
        if form not in FORMS:
            known = [e.name for e in rewards if e.wiring in FORMS]
            raise UserError(
                f"reward=ranking takes a function of one or two answers, and {function} is not one; those are "
                f"{', '.join(known)}\n    try: reward.function={known[0]}"
            )
        made: Any = rewards.build(function)
        self.wins: Callable[[Answer, Answer], float] = made if len(form) == 2 else _by_number(made)
        self.scale, self.truth = scale, truth

    def __call__(self, answers: Sequence[Answer]) -> Tensor:
        # Answers to one prompt are adjacent; equal texts with other ids are other prompts.
        groups = groupby(answers, lambda a: (a.prompt, tuple(a.prompt_ids)))
        return torch.cat([self._ranked(list(group)) for _, group in groups]).float()

    def _ranked(self, players: list[Answer]) -> Tensor:
        first = players[0]
        if self.truth and first.truth is not None:
            ids = first.more.get("following", first.truth.encode())
            players = [*players, replace(first, text=first.truth, ids=ids)]
            # The correct answer is the fixed point of the scale, so that rewards of different prompts compare.
            return self._score(self._results(players), anchored=True)[:-1]
        return self._score(self._results(players), anchored=False)

    def _results(self, players: Sequence[Answer]) -> Tensor:
        """Results (K, K): entry (i, j) is the share that i wins against j; 0 on the diagonal."""
        # float64, as Newton's matrix is nearly singular where one answer wins all.
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
    """Maximum-likelihood Elo ratings (K,) from results (K, K); `anchored`: the last player's rating is fixed at 0."""
    free = len(results) - anchored
    games = 1 - torch.eye(len(results), dtype=results.dtype)
    strength = results.new_zeros(len(results))  # (K,): R ln 10 / 400
    for _ in range(STEPS):
        win = torch.sigmoid(strength[:, None] - strength)  # (K, K): probability that i beats j
        prior = torch.sigmoid(strength)  # probability of beating the player of rating 0, with whom each has drawn
        gradient = (games * (results - win)).sum(1) + 0.5 - prior
        variance = games * win * (1 - win)
        hessian = torch.diag(variance.sum(1) + prior * (1 - prior)) - variance  # of the negative log-likelihood
        # Full Newton steps from 0; the prior keeps the matrix positive definite.
        strength[:free] += torch.linalg.solve(hessian[:free, :free], gradient[:free])
    return strength * 400 / math.log(10)
