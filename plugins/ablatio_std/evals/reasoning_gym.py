"""Generated reasoning problems of the library reasoning-gym."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Annotated, Any

import yaml

from ablatio import Positive, evals
from ablatio.data.items import Item
from ablatio.errors import UserError, did_you_mean

from ._common import Count, Seed


@evals.register("reasoning_gym", paper="arXiv:2505.24760")
class ReasoningGym:
    """Problems of a generator of reasoning-gym, such as chain_sum, scored by its verifier (`metric=verifier`).

    `settings` are the generator's own, such as its levels: eval.reasoning_gym.settings=[max_terms:3,max_digits:1].
    The steps that gsm_symbolic writes for its answers are shown by prompts of chain of thought.
    """

    labels, measured_by = ("target", "entry", "generator"), ("verifier",)
    packages = ("reasoning_gym=ablatio[reasoning]",)

    def __init__(
        self,
        *,
        task: Annotated[str, "name of a generator, such as chain_sum or letter_counting"] = "chain_sum",
        settings: Annotated[tuple[str, ...], "settings of the generator, each NAME:VALUE"] = (),
        tokens: Annotated[int, Positive, "largest number of tokens of an answer"] = 64,
        items: Count = 100,
        seed: Seed = 0,
    ) -> None:
        from reasoning_gym.factory import DATASETS

        if task not in DATASETS:
            raise UserError(
                f"eval.reasoning_gym.task={task}: reasoning-gym has no such generator{did_you_mean(task, DATASETS)}\n"
                "    try: eval.reasoning_gym.task=chain_sum"
            )
        self.task, self.count, self.seed, self.tokens = task, items, seed, tokens
        self.settings = _settings(task, settings, [f.name for f in fields(DATASETS[task][1])])

    def items(self) -> Iterator[Item]:
        import reasoning_gym

        try:
            problems = reasoning_gym.create_dataset(self.task, size=self.count, seed=self.seed, **self.settings)
        except (AssertionError, TypeError, ValueError) as error:
            raise UserError(
                f"eval.reasoning_gym.settings={self.settings}: {self.task} refuses them: {error or 'not valid'}\n"
                "    try: eval.reasoning_gym.settings=[]"
            ) from None
        for number, entry in enumerate(problems):
            question = str(entry["question"])
            prompt = f"Question: {question}\nAnswer:"
            more = {"entry": entry, "generator": self.task}
            steps = str(entry["metadata"].get("answer_cot") or "").partition("####")[0].strip()
            yield Item(
                f"{self.task}/{number}", prompt, str(entry["answer"]), question=question, room=self.tokens, more=more,
                rationale=steps,
            )  # fmt: skip


def _settings(task: str, given: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """Settings of a generator from texts NAME:VALUE; size and seed are those of the evaluation."""
    known = [name for name in known if name not in ("size", "seed")]
    found = dict[str, Any]()
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or name not in known:
            raise UserError(
                f"eval.reasoning_gym.settings: {text!r} is no setting of {task}{did_you_mean(name, known)}; expected "
                f"NAME:VALUE with one of {', '.join(known)}\n    try: eval.reasoning_gym.settings=[]"
            )
        found[name] = yaml.safe_load(value)
    return found
