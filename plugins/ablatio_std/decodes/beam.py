"""Beam search."""

from collections.abc import Sequence
from typing import Annotated, Literal

from ablatio import Positive, decodes
from ablatio.model.decoding.job import Continuation, DecodingJob
from ablatio.model.decoding.logits import LogitsProcessors, NoRepeatNgram, Repetition
from ablatio_std.decodes._beams import BeamSearch


@decodes.register("beam", paper="arXiv:1409.3215")
class Beam:
    """argmax log p(y | x) / |y|^length_penalty among `width` continuations.  N prompts -> up to `width` each.

    |y| counts the token that ends y (arXiv:1609.08144, section 7, has another penalty).  `stop` ends the search as
    `early_stopping` of transformers does: first (True), heuristic (False), never ("never").
    """

    beams = True

    def __init__(
        self,
        *,
        width: Annotated[int, Positive, "number of continuations that are kept"] = 4,
        length_penalty: Annotated[float, "exponent of the length; 0: the sum of the log-probabilities"] = 1.0,
        stop: Annotated[
            Literal["heuristic", "first", "never"], "end when it cannot improve (an estimate, or surely), or is full"
        ] = "heuristic",
        repetition: Repetition = 1.0,
        no_repeat_ngram: NoRepeatNgram = 0,
    ) -> None:
        processors = LogitsProcessors(repetition=repetition, no_repeat_ngram=no_repeat_ngram)
        self.search = BeamSearch(width, length_penalty, stop, processors)

    def __call__(self, job: DecodingJob) -> Sequence[Sequence[Continuation]]:
        return self.search(job, job.open())
