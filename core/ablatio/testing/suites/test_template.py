"""Chat templates: messages -> segments, of which the assistant's carry the loss of fine-tuning."""

import pytest

from ablatio.data.chat import BOS, EOS, ChatSegment
from ablatio.data.types import Message
from ablatio.registry.registry import PartSpec
from ablatio.testing import checks, sample_parts

KINDS = ("template",)
MESSAGES = (
    Message("user", "How many are 2 and 2?"),
    Message("assistant", "There are 4."),
    Message("user", "And 3 and 4?"),
    Message("assistant", "7 of them.", weight=0.5),
)


def _written(part: PartSpec, messages: tuple[Message, ...] = MESSAGES, answering: bool = False) -> list[ChatSegment]:
    return list(sample_parts.made(part)(messages, answering))


def test_every_message_is_written_in_order(part: PartSpec) -> None:
    text, start = "".join(s.text for s in _written(part) if not s.sign), 0
    for message in MESSAGES:
        found = text.find(message.text, start)
        assert found >= 0, f"{checks.label(part)}: the text {message.text!r} is missing or out of order in {text!r}"
        start = found + len(message.text)


@pytest.mark.parametrize("turn", [1, 3], ids=["first", "second"])
def test_a_prompt_is_the_beginning_of_the_conversation(part: PartSpec, turn: int) -> None:
    """What stands before an answer is the same in training and in decoding."""
    prompt, whole = _pieces(_written(part, MESSAGES[:turn], True)), _pieces(_written(part, MESSAGES[: turn + 1]))
    came = (
        f"with `answering` the prompt ends {prompt[-40:]}, and the conversation has {whole[: len(prompt)][-40:]} there"
    )
    assert whole[: len(prompt)] == prompt, f"{checks.label(part)}: {came}"


def _pieces(segments: list[ChatSegment]) -> list[str]:
    """Characters of the text and names of special tokens, which do not depend on how text is cut into segments."""
    return [piece for s in segments for piece in ([f"<{s.text}>"] if s.sign else s.text)]


def test_the_loss_is_on_the_answers(part: PartSpec) -> None:
    said = [s for s in _written(part) if s.said]
    text = "".join("".join(s.text for s in said if not s.sign).split())  # templates put spaces where they like
    assert text == "Thereare4.7ofthem.", (
        f"{checks.label(part)}: the segments that are `said` have the text {text!r}; expected the answers alone"
    )
    weights = [s.weight for s in said if "7" in s.text]
    assert weights == [0.5], f"{checks.label(part)}: the second answer has the weights {weights}; its message has 0.5"
    assert said[-1].sign and said[-1].text == part.facts["end"], (
        f"{checks.label(part)}: an answer ends with {said[-1].text!r}; expected the special token `end`, "
        f"{part.facts['end']!r}"
    )


def test_special_tokens_are_declared(part: PartSpec) -> None:
    known = {*part.facts["signs"], part.facts["end"], EOS, BOS}
    unknown = sorted({s.text for s in _written(part, answering=True) if s.sign} - known)
    assert not unknown, f"{checks.label(part)}: {unknown} are special tokens that the fact `signs` does not name"
