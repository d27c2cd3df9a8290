"""Metrics that compare a model's answers with those of other runs, or with the correct ones."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

from ablatio import OptionOf, metrics
from ablatio.data.items import Generation, Item, OpenRun, Request, Response, Scored
from ablatio.errors import UserError

from ._preferences import higher_is_better, judged_better

Judge = Annotated[str, "run folder of a language model that chooses the better answer; empty: `by` does"]
By = Annotated[str, OptionOf("metric"), "metric of an answer and a target: the answer with the larger value wins"]
FORM = ("answer", "target")


class _Compared:
    """Asks for the most probable answer, and finds the better one of two."""

    def __init__(self, open_run: OpenRun, judge: str, by: str) -> None:
        self.open_run, self.judge = open_run, judge
        if metrics[by].wiring != FORM:
            known = ", ".join(e.name for e in metrics if e.wiring == FORM)
            raise UserError(f"by={by} is no function of an answer and a target\n    try: by={known}")
        self.agreement: Any = None if judge else metrics.build(by)

    def requests(self, item: Item) -> list[Request]:
        return [Generation.of(item)]

    def preferred(self, item: Item, answer: str, other: str) -> float:
        """1 if `answer` is better than `other`, 0 if it is worse; between them by a judge's probability or a draw."""
        if self.judge:
            return judged_better(self.open_run(self.judge), item, answer, other)
        return higher_is_better(self.agreement, item, answer, other)

    def answer_of(self, run: str, item: Item) -> str:
        """Answer of another run to an item."""
        return self.open_run(run)(self.requests(item))[0].texts[0].strip()


@metrics.register("win_rate", paper="arXiv:2305.14387")
class WinRate(_Compared):
    """Share of items on which the model's answer is better than that of another run; a draw counts one half."""

    def __init__(
        self,
        open_run: OpenRun,
        *,
        against: Annotated[str, "folder of the other run"] = "",
        judge: Judge = "",
        by: By = "f1",
    ) -> None:
        super().__init__(open_run, judge, by)
        if not against:
            raise UserError(
                "metric=win_rate needs another run to compare with\n    try: metric.win_rate.against=runs/baseline"
            )
        self.against = against

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        other = self.answer_of(self.against, item)
        return {"win_rate": self.preferred(item, responses[0].texts[0].strip(), other)}


@metrics.register("judge", paper="arXiv:2306.05685")
class JudgeByModel(_Compared):
    """Mean probability of a judge's model that the answer is better than the correct one of the data.

    The judge reads the question with both answers in both orders; 1/2 means that it finds them equally good.
    """

    def __init__(self, open_run: OpenRun, *, path: Annotated[str, "run folder of the judge's model"] = "") -> None:
        if not path:
            raise UserError("metric=judge needs a run whose model judges\n    try: metric.judge.path=runs/judge")
        super().__init__(open_run, path, "f1")

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        return {"judge": self.preferred(item, responses[0].texts[0].strip(), item.correct or "")}


@metrics.register("elo", paper="arXiv:2403.04132")
class Elo(_Compared):
    """Elo rating of the model among other runs, from the comparisons of all pairs on all items.

    Maximum-likelihood ratings R with P(a beats b) = 1 / (1 + 10^((R_b - R_a) / 400)), with mean 0 over the runs; each
    pair has half a win and half a loss more, which keeps the ratings finite.
    wins  share of comparisons that the model wins
    """

    scores, bounds = ("elo", "wins"), (None, None)

    def __init__(
        self,
        open_run: OpenRun,
        *,
        against: Annotated[tuple[str, ...], "folders of the other runs"] = (),
        judge: Judge = "",
        by: By = "f1",
    ) -> None:
        super().__init__(open_run, judge, by)
        if not against:
            raise UserError("metric=elo needs other runs\n    try: 'metric.elo.against=[runs/a,runs/b]'")
        self.against = against

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        answers = [responses[0].texts[0].strip(), *(self.answer_of(run, item) for run in self.against)]
        won = {f"{i}/{j}": self.preferred(item, answers[i], answers[j]) for i in range(len(answers)) for j in range(i)}
        # won["i/0"] is a win of player i over the model, which is player 0.
        own = [1.0 - value for name, value in won.items() if name.endswith("/0")]
        wins = math.fsum(own) / len(own)
        # The share stands for elo here, as a rating needs all items: `summary` computes it from the comparisons.
        return {"elo": wins, "wins": wins} | won

    def summary(self, scored: Sequence[Scored]) -> dict[str, float]:
        players = len(self.against) + 1
        won = [[0.0] * players for _ in range(players)]
        for i in range(players):
            for j in range(i):
                won[i][j] = math.fsum(s.values[f"{i}/{j}"] for s in scored)
                won[j][i] = len(scored) - won[i][j]
        return {"elo": ratings(won)[0], "wins": math.fsum(s.values["wins"] for s in scored) / len(scored)}


def ratings(won: Sequence[Sequence[float]], steps: int = 10_000, tolerance: float = 1e-10) -> list[float]:
    """Elo ratings with mean 0 from won[i][j], the games that i won against j, by the minorization of Bradley-Terry.

    strength_i <- wins_i / sum_j games_ij / (strength_i + strength_j)  (Hunter 2004, doi:10.1214/aos/1079120141)
    """
    n = len(won)
    # Half a win and half a loss more for each pair: a player that wins all games would have an infinite rating.
    games = [[won[i][j] + won[j][i] + 1.0 if i != j else 0.0 for j in range(n)] for i in range(n)]
    wins = [math.fsum(won[i][j] + 0.5 for j in range(n) if j != i) for i in range(n)]
    strength = [1.0] * n
    for _ in range(steps):
        new = [
            wins[i] / math.fsum(games[i][j] / (strength[i] + strength[j]) for j in range(n) if j != i) for i in range(n)
        ]
        # Ratings are known up to a constant: the geometric mean 1 makes their mean 0.
        scale = math.exp(math.fsum(map(math.log, new)) / n)
        new = [s / scale for s in new]
        moved = max(abs(a / b - 1) for a, b in zip(new, strength, strict=True))
        strength = new
        if moved < tolerance:
            break
    return [400 * math.log10(s) for s in strength]
