"""Metrics of the probability that a model gives to the correct answer."""

import math
from collections.abc import Sequence

from ablatio import metrics
from ablatio.data.items import Item, Likelihood, Request, Response, Scored

QUARTERS = ("quarter1", "quarter2", "quarter3", "quarter4")
LARGEST = 700.0  # nats per token beyond which exp() overflows


def _of_correct(item: Item) -> list[Request]:
    return [Likelihood(item.prompt, item.continued(item.correct or ""))]


@metrics.register("perplexity", paper="doi:10.1121/1.2016299")
class Perplexity:
    """exp(nats / tokens) of the correct answers (or whole texts), with nats and tokens summed over the items.

    loss            nats per token
    bits_per_byte   nats / (bytes ln 2): comparable between tokenizers
    quarter1 ... 4  nats per token in each quarter of the answers, first to last: the loss by position
    """

    scores = ("perplexity", "loss", "bits_per_byte", *QUARTERS)
    better, bounds = "lower", (1.0, None)

    def requests(self, item: Item) -> list[Request]:
        return _of_correct(item)

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        logps = responses[0].logps
        loss = -responses[0].logp / max(1, len(logps))
        bits = -responses[0].logp / math.log(2) / max(1, responses[0].bytes)
        return {"perplexity": math.exp(min(loss, LARGEST)), "loss": loss, "bits_per_byte": bits}

    def summary(self, scored: Sequence[Scored]) -> dict[str, float]:
        found = [s.responses[0] for s in scored]
        # Sums over all items first: a mean of the items' means would weight short answers more.
        nats, tokens = -math.fsum(r.logp for r in found), max(1, sum(len(r.logps) for r in found))
        bits = nats / math.log(2) / max(1, sum(r.bytes for r in found))
        values = {"perplexity": math.exp(min(nats / tokens, LARGEST)), "loss": nats / tokens, "bits_per_byte": bits}
        for number, name in enumerate(QUARTERS):
            # Integer division: the quarters of any length follow one another without gap or overlap.
            parts = [r.logps[len(r.logps) * number // 4 : len(r.logps) * (number + 1) // 4] for r in found]
            count = sum(map(len, parts))
            values[name] = -math.fsum(x for part in parts for x in part) / count if count else nats / tokens
        return values


@metrics.register("accuracy", paper="arXiv:1606.06031")
class Accuracy:
    """Share of items whose correct answer is the model's greedy continuation of the prompt.

    Each token of the answer must be the most probable one after the prompt and the tokens before it, which takes one
    forward pass: `acc` of lm-eval's output type loglikelihood.  `probability` is the mean probability of the answers.
    """

    scores = ("accuracy", "probability")

    def requests(self, item: Item) -> list[Request]:
        return _of_correct(item)

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        return {"accuracy": float(responses[0].greedy), "probability": math.exp(responses[0].logp)}
