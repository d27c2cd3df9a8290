"""Reward models: a scalar score of an answer, trained on preferences between answers."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablatio import NonNegative, rule
from ablatio.model.example import Loss
from ablatio.model.language_model import LanguageModel
from ablatio.model.parameter_roles import named_generator
from ablatio.model.task import Task
from ablatio.registry.kinds import tasks
from ablatio.training.task_context import TaskContext

from ._answers import Answers, AnswerSet, UnitBatches, chunks, example_of

BINS = 10  # confidence bins of the calibration error


class ScalarHead(nn.Module):
    """w . h: a scalar for each hidden state; w starts as N(0, 1/(D + 1)).  (..., D) -> (...)."""

    def __init__(self, d_model: int, seed: int, name: str) -> None:
        super().__init__()
        # Rewards start with variance about 1 for states of root mean square 1, as in Stiennon et al. 2020
        # (arXiv:2009.01325).
        drawn = torch.randn(d_model, generator=named_generator(seed, name)) / math.sqrt(d_model + 1)
        self.weight = nn.Parameter(drawn)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.weight.to(hidden.dtype)


@tasks.register("reward", paper="arXiv:2203.02155")
class RewardModel(Task):
    """-log sigmoid(r_w - r_l - margin (s_w - s_l)), the mean over the pairs of the K answers to a prompt.

    r: a linear map of the hidden state at the answer's end; s: the scores in the data; w the better answer, l the worse
    one.  With Elo ratings both outcomes of a pair count, weighted by their probabilities.  `centering` c adds
    c (r_w + r_l)^2, which keeps rewards centered at zero (arXiv:2312.09244).
    """

    accepts, template = "feedback", True
    scores, main, better = ("loss", "accuracy", "calibration_error", "length_bias", "margin"), "accuracy", "higher"
    metrics = ("train/reward_accuracy", "train/reward_margin", "train/reward_mean")

    def __init__(
        self,
        setup: TaskContext,
        *,
        margin: Annotated[float, NonNegative, "reward margin per point of difference in the scores"] = 0.0,
        centering: Annotated[float, NonNegative, "weight of the squared sum of a pair's rewards"] = 0.0,
        elo: Annotated[Literal["odds", "order"], "use Elo ratings as win probabilities, or as an order"] = "odds",
        too_long: Annotated[
            Literal["cut", "drop", "refuse"],
            "a prompt too long for its answers: cut its beginning, leave it out, or stop the run",
        ] = "cut",
    ) -> None:
        self.setup, self.margin, self.centering, self.elo = setup, margin, centering, elo
        self.set = AnswerSet(setup, too_long, ahead=0)
        self.tokenizer, self.content = self.set.tokenizer, self.set.content

    def attach(self, model: LanguageModel) -> None:
        """Add the reward head."""
        model.reward_head = ScalarHead(model.model.d_model, self.setup.seeds.init, "reward_head")

    @property
    def training(self) -> UnitBatches:
        judged = self.set.judged["train"]
        return UnitBatches(self.setup, len(judged), lambda units: self._batch([judged[i] for i in units]))

    def validation(self, length: int | None = None, tokens: int | None = None) -> list[dict[str, Tensor]]:
        judged = self.set.judged["validation"]
        return [self._batch([judged[i] for i in group]) for group in chunks(len(judged), 8)]

    def _batch(self, judged: Sequence[Any]) -> dict[str, Tensor]:
        """Batch of lines, with P pairs of their answers.

        better, worse (P,): rows of the two answers; gap (P,): difference of their scores; odds (P,): probability that
        the better one wins; weight (P,): 1 / number of pairs of the line.
        """
        rows: list[tuple[int, int, float, float, float]] = []
        first = 0
        for line in judged:
            pairs = [
                (i, j) if line.scores[i] > line.scores[j] else (j, i)
                for i, j in combinations(range(len(line.members)), 2)
                if line.scores[i] != line.scores[j]
            ]
            for i, j in pairs:
                gap = line.scores[i] - line.scores[j]
                odds = 1 / (1 + 10 ** (-gap / 400)) if line.elo and self.elo == "odds" else 1.0
                # 1 / number of pairs: each line counts once, however many answers it has (InstructGPT, section 3.5).
                rows.append((first + i, first + j, gap, odds, 1 / len(pairs)))
            first += len(line.members)
        better, worse, gap, odds, weight = (list(column) for column in zip(*rows, strict=True)) if rows else [[]] * 5
        return self.set.batch([i for line in judged for i in line.members]) | {
            "better": torch.tensor(better, dtype=torch.long),
            "worse": torch.tensor(worse, dtype=torch.long),
            "gap": torch.tensor(gap),
            "odds": torch.tensor(odds),
            "weight": torch.tensor(weight),
        }

    def tokens(self, steps: int) -> int:
        judged = self.set.judged["train"]
        lengths = sum(len(self.set.answers[i].ids) for line in judged for i in line.members)
        return round(self.setup.plan.step(steps)[0] * lengths / len(judged))

    def example(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Answers:
        return example_of(batch)

    def rewards(self, model: LanguageModel, example: Answers) -> Tensor:
        """Rewards of N answers in at least 32 bits: (N,)."""
        found: Tensor = model.reward_head(example.last_states(model))
        return found.float() if found.dtype in (torch.bfloat16, torch.float16) else found

    def _pairs(self, rewards: Tensor, more: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(loss, reward difference) of each pair: (P,) each."""
        better, worse = rewards[more["better"]], rewards[more["worse"]]
        apart = better - worse - self.margin * more["gap"]
        loss = -more["odds"] * F.logsigmoid(apart) - (1 - more["odds"]) * F.logsigmoid(-apart)
        return loss + self.centering * (better + worse).square(), better - worse

    def loss(self, model: LanguageModel, example: Answers) -> Loss:
        rewards = self.rewards(model, example)
        loss, margin = self._pairs(rewards, example.more)
        weight = example.more["weight"]
        count = weight.sum()
        means = ((margin > 0).float() * weight).sum() / count, (margin * weight).sum() / count, rewards.mean()
        return Loss((loss * weight).sum(), count, dict(zip(self.metrics, (m.detach() for m in means), strict=True)))

    @torch.no_grad()
    def score(
        self,
        model: LanguageModel,
        batches: Sequence[dict[str, Tensor]],
        device: torch.device,
        between: Callable[[int], None],
    ) -> dict[str, float]:
        mode, found = model.training, []
        model.eval()
        try:
            for number, batch in enumerate(batches):
                example = example_of(batch).to(device)
                loss, margin = self._pairs(self.rewards(model, example), example.more)
                lengths = example.mask.sum(1)
                longer = lengths[example.more["better"]] - lengths[example.more["worse"]]
                found.append(
                    torch.stack([loss.double(), margin.double(), longer.double(), example.more["weight"].double()])
                )
                between(number + 1)
        finally:
            model.train(mode)
        loss, margin, longer, weight = torch.cat(found, 1).cpu()
        total = weight.sum()
        # A tie is half right, so that a constant reward scores 1/2.
        right = (margin > 0).double() + 0.5 * (margin == 0)
        return {
            "loss": float((loss * weight).sum() / total),
            "accuracy": float((right * weight).sum() / total),
            "calibration_error": calibration_error(margin, weight),
            "length_bias": length_bias(margin, longer),
            "margin": float((margin * weight).sum() / total),
            "pairs": int(weight.numel()),
        }


def calibration_error(margin: Tensor, weight: Tensor) -> float:
    """Expected calibration error: sum over bins of |accuracy - mean confidence| x share of the pairs.

    confidence = max(p, 1 - p), p = sigmoid(margin): that of the answer which the model prefers.
    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    confidence, right = torch.sigmoid(margin.abs()), (margin > 0).double()
    # Confidences lie between 0.5 and 1: the bins divide this half.
    place = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, place, (right - confidence) * weight)
    return float(gaps.abs().sum() / weight.sum())


def length_bias(margin: Tensor, longer: Tensor) -> float:
    """Correlation of the difference in reward with the difference in length, over the pairs in both orders; 0: none.

    With both orders the means are zero, so that it is sum(m l) / sqrt(sum m^2 sum l^2).
    """
    scale = (margin.square().sum() * longer.square().sum()).sqrt()
    return float((margin * longer).sum() / scale) if float(scale) else 0.0


rule(
    when="facts.task.accepts == 'feedback' and 'next tokens' not in facts.architecture.accepts",
    why="task={task.name} needs a model that continues a text, but architecture={architecture.name} trains on "
    "{facts.architecture.accepts}",
    fix="architecture=causal",
    where="architecture",
)
