"""Functional correctness of generated programs."""

import math
from collections.abc import Sequence
from typing import Annotated

from ablatio import NonNegative, Positive, Range, metrics
from ablatio.data.items import Generation, Item, Request, Response
from ablatio.errors import UserError

from ._sandbox import runs


@metrics.register("pass_at_k", paper="arXiv:2107.03374")
class PassAtK:
    """Unbiased estimate of the probability that one of k samples passes the tests: 1 - C(n - c, k) / C(n, k).

    n samples, of which c pass.  A program is the prompt, the sample and the item's field `test`, with a call
    `check(entry_point)` if the item has that field, as in HumanEval.  It passes if it ends without an error.
    Programs run in a process of their own with limits; the user must allow them with `--run-code`.
    """

    labels, runs_code = ("test",), True

    def __init__(
        self,
        *,
        k: Annotated[int, Positive, "samples of which one must pass"] = 1,
        samples: Annotated[int, Positive, "programs that are sampled, n"] = 10,
        temperature: Annotated[float, NonNegative, "of the samples"] = 0.8,
        seed: Annotated[int, NonNegative, "of the samples"] = 0,
        seconds: Annotated[int, Range(1, 600), "largest running time of a program"] = 3,
        megabytes: Annotated[int, Range(32, 1 << 16), "largest memory of a program"] = 512,
    ) -> None:
        if k > samples:
            raise UserError(
                f"metric.pass_at_k.k={k} needs at least as many samples, got {samples}\n"
                f"    try: metric.pass_at_k.samples={k}"
            )
        self.k, self.samples, self.temperature, self.seed = k, samples, temperature, seed
        self.seconds, self.megabytes = seconds, megabytes

    def requests(self, item: Item) -> list[Request]:
        return [Generation(item.prompt, item.stop, item.room, self.samples, self.temperature, self.seed)]

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        passed = sum(self._passes(item, text) for text in responses[0].texts)
        return {"pass_at_k": pass_at_k(len(responses[0].texts), passed, self.k)}

    def _passes(self, item: Item, answer: str) -> bool:
        lines = [item.prompt + answer, str(item.more["test"])]
        lines += [f"check({item.more['entry_point']})"] if "entry_point" in item.more else []
        return runs("\n".join(lines) + "\n", seconds=self.seconds, megabytes=self.megabytes)


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) for c of n samples that pass."""
    # Integers of any size: products of floats lose digits for large n. comb is 0 where fewer than k fail.
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
