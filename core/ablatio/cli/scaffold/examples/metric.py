from typing import Annotated

from ablatio import Fraction, metrics


@metrics.register("prefix_match")
def prefix_match(
    answer: str, target: str, *, partial: Annotated[float, Fraction, "for a correct first word"] = 0.5
) -> float:
    """1 if the answer begins with the target, `partial` if its first word does.  Source: by hand."""
    if answer.startswith(target):
        return 1.0
    return partial if answer.split()[:1] == target.split()[:1] else 0.0
