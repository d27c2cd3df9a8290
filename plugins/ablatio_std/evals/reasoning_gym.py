"""Generated reasoning problems of the library reasoning-gym."""

from collections.abc import Iterator
from typing import Annotated

from ablatio import evals
from ablatio.data.items import Item
from ablatio.errors import UserError, did_you_mean

from ._common import Count, Seed


@evals.register("reasoning_gym", paper="arXiv:2505.24760")
class ReasoningGym:
    """Problems of a generator of reasoning-gym, such as chain_sum, scored by its verifier (`metric=verifier`)."""

    labels, measured_by = ("target", "entry", "generator"), ("verifier",)
    packages = ("reasoning_gym=ablatio[reasoning]",)

    def __init__(
        self,
        *,
        task: Annotated[str, "name of a generator, such as chain_sum or letter_counting"] = "chain_sum",
        items: Count = 100,
        seed: Seed = 0,
    ) -> None:
        from reasoning_gym.factory import DATASETS

        if task not in DATASETS:
            raise UserError(
                f"eval.reasoning_gym.task={task}: reasoning-gym has no such generator{did_you_mean(task, DATASETS)}\n"
                "    try: eval.reasoning_gym.task=chain_sum"
            )
        self.task, self.count, self.seed = task, items, seed

    def items(self) -> Iterator[Item]:
        import reasoning_gym

        for number, entry in enumerate(reasoning_gym.create_dataset(self.task, size=self.count, seed=self.seed)):
            question = str(entry["question"])
            prompt = f"Question: {question}\nAnswer:"
            more = {"entry": entry, "generator": self.task}
            yield Item(f"{self.task}/{number}", prompt, str(entry["answer"]), question=question, more=more)
