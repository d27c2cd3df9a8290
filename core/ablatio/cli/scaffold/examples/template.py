from collections.abc import Iterator, Sequence

from ablatio.data.chat import EOS, ChatSegment
from ablatio.data.types import Message
from ablatio.registry.kinds import templates


@templates.register("question_answer")
class QuestionAnswer:
    """Q: question (line) A: answer (end) (line).  Source: the form of TriviaQA prompts."""

    signs, end = (), EOS

    def __call__(self, messages: Sequence[Message], answering: bool = False) -> Iterator[ChatSegment]:
        for message in messages:
            if message.role == "assistant":
                yield ChatSegment("A:")
                yield ChatSegment(f" {message.text}", said=True, weight=message.weight)
                yield ChatSegment(EOS, sign=True, said=True, weight=message.weight)
                yield ChatSegment("\n")
            else:
                yield ChatSegment(f"Q: {message.text}\n")
        if answering:
            yield ChatSegment("A:")
