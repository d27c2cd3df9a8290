"""Generated answers scored by a reward part, such as a rule that verifies them."""

from collections.abc import Sequence
from typing import Annotated, Any

from ablatio import OptionOf, metrics, rewards
from ablatio.data.items import Generation, Item, Request, Response
from ablatio.errors import UserError
from ablatio.model.rl.answers import Answer


@metrics.register("verified", paper="arXiv:2411.15124")
class Verified:
    """Mean score of the generated answers by a reward function, as `reward=exact_answer` uses it in training."""

    bounds = (None, None)

    def __init__(
        self,
        *,
        function: Annotated[str, OptionOf("reward"), "name of a reward that is a function of one answer"] = (
            "exact_answer"
        ),
    ) -> None:
        if rewards[function].wiring != ("answer",):
            known = ", ".join(e.name for e in rewards if e.wiring == ("answer",))
            raise UserError(
                f"metric.verified.function={function} is no function of one answer\n    try: one of {known}"
            )
        self.function: Any = rewards.build(function)

    def requests(self, item: Item) -> list[Request]:
        return [Generation.of(item)]

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        text = responses[0].texts[0]
        # Bytes stand for token ids: a reward of length must not depend on the tokenizer of the model that is compared.
        answer = Answer(item.prompt, text, ids=tuple(text.encode()), truth=item.correct, more=item.more)
        return {"verified": float(self.function(answer))}


@metrics.register("verifier", paper="arXiv:2505.24760")
class Verifier:
    """Mean score of the generated answers by the verifier of their reasoning-gym problem, from 0 to 1."""

    labels, packages = ("entry", "generator"), ("reasoning_gym=ablatio[reasoning]",)

    def requests(self, item: Item) -> list[Request]:
        return [Generation.of(item)]

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        import reasoning_gym

        verify = reasoning_gym.get_score_answer_fn(item.more["generator"])
        return {"verifier": float(verify(responses[0].texts[0].strip(), item.more["entry"]))}
