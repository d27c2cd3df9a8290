from typing import Annotated

from ablatio import Fraction, rewards
from ablatio.model.rl.answers import Answer


@rewards.register("finished", paper="arXiv:2501.12948")
def finished(answer: Answer, *, unfinished: Annotated[float, Fraction, "for a text that breaks off"] = 0.1) -> float:
    """1 if the answer ends where a sentence ends, else `unfinished`."""
    return 1.0 if answer.text.rstrip().endswith((".", "!", "?")) else unfinished
