"""Chat templates: how turns are written and where an answer ends.  Only text of the assistant is marked `said`.

The tokenizer's own bos stands in front of each conversation (<s>, <|begin_of_text|>), or, if it has none, its
end-of-document token.  Each template also has the same form in Jinja, for exported models.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated

from ablatio.data.chat import BOS, EOS, ChatSegment
from ablatio.data.types import Message
from ablatio.registry.kinds import templates


@templates.register("plain", paper="https://github.com/huggingface/trl")
class Plain:
    """User: question (newline) Assistant: answer (end) (newline).  It adds no tokens and works with any tokenizer.

    Tools, calls and results of tools are written as JSON: Tools: [definition, ...], Assistant: call, Tool: result.
    """

    signs, end, tools = (), EOS, True
    jinja = (
        "{{ bos_token }}{% if tools %}{{ 'Tools: ' + tools | tojson + '\n' }}{% endif %}"
        "{% for m in messages %}{{ m.role | capitalize + ': ' + (m.content or '') }}"
        "{% for c in m.tool_calls or [] %}{{ ('\n' if m.content or not loop.first else '') + '{\"name\": ' }}"
        "{{ c.function.name | tojson + ', \"arguments\": ' + c.function.arguments | tojson + '}' }}{% endfor %}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    )

    def __call__(self, messages: Sequence[Message], answering: bool = False) -> Iterator[ChatSegment]:
        for message in messages:
            if message.tools:
                yield ChatSegment(f"Tools: [{', '.join(message.tools)}]\n")
            if message.role == "assistant":
                yield ChatSegment("Assistant:")
                yield from (
                    ChatSegment(f" {message.content}", said=True, weight=message.weight),
                    ChatSegment(EOS, sign=True, said=True, weight=message.weight),
                    ChatSegment("\n"),
                )
            elif message.text or not message.tools:
                yield ChatSegment(f"{message.role.capitalize()}: {message.text}\n")
        if answering:
            yield ChatSegment("Assistant:")


@templates.register("bare", paper="arXiv:2305.18290")
class Bare:
    """question (space) answer (end): a text and its continuation, as in pre-training.  It adds no tokens."""

    signs, end = (), EOS
    jinja = (
        "{{ bos_token }}{% for m in messages %}"
        "{{ ' ' + m.content + eos_token if m.role == 'assistant' else m.content }}{% endfor %}"
    )

    def __call__(self, messages: Sequence[Message], answering: bool = False) -> Iterator[ChatSegment]:
        for message in messages:
            said = message.role == "assistant"
            # The space belongs to the answer: most tokenizers have it in the first token of a word.
            yield ChatSegment(f" {message.text}" if said else message.text, said=said, weight=message.weight)
            if said:
                yield ChatSegment(EOS, sign=True, said=True, weight=message.weight)


_TOOLS_OPENING = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_END = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)


@templates.register("chatml", paper="https://github.com/openai/openai-python/blob/v0.28.1/chatml.md")
class ChatML:
    """<|im_start|>role (newline) text<|im_end|> (newline).  It adds two tokens.

    Tools stand in the system message, calls in <tool_call>, and results in <tool_response> as a turn of the user, as in
    the template of Qwen2.5 (arXiv:2412.15115).
    """

    signs, end, tools = ("<|im_start|>", "<|im_end|>"), "<|im_end|>", True

    def __init__(self, *, system: Annotated[str, "system message for conversations without one"] = "") -> None:
        self.system = system

    @property
    def jinja(self) -> str:
        """The template in Jinja, with the system message as a constant."""
        default = f"<|im_start|>system\n{self.system}<|im_end|>\n"
        first = f"{self.system}\n\n" if self.system else ""  # in front of the definitions of tools
        opening = "{% if messages[0].role != 'system' %}{{ " + repr(default) + " }}{% endif %}" if self.system else ""
        return (
            "{{ bos_token }}{% if tools %}{{ '<|im_start|>system\n' }}"
            "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}"
            f"{{% else %}}{{{{ {first!r} }}}}{{% endif %}}"
            f"{{{{ {_TOOLS_OPENING!r} }}}}{{% for tool in tools %}}{{{{ '\n' + tool | tojson }}}}{{% endfor %}}"
            f"{{{{ {_TOOLS_END!r} + '<|im_end|>\n' }}}}{{% else %}}{opening}{{% endif %}}"
            "{% for m in (messages[1:] if tools and messages[0].role == 'system' else messages) %}"
            "{% if m.role == 'tool' %}"
            "{{ '' if loop.previtem is defined and loop.previtem.role == 'tool' else '<|im_start|>user' }}"
            "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
            "{{ '' if loop.nextitem is defined and loop.nextitem.role == 'tool' else '<|im_end|>\n' }}"
            "{% else %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}{% for c in m.tool_calls or [] %}"
            "{{ ('\n' if m.content or not loop.first else '') + '<tool_call>\n{\"name\": ' }}"
            "{{ c.function.name | tojson + ', \"arguments\": ' + c.function.arguments | tojson }}"
            "{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )

    def __call__(self, messages: Sequence[Message], answering: bool = False) -> Iterator[ChatSegment]:
        opening = [Message("system", self.system)] if self.system and not _has_system(messages) else []
        before = ""
        for message in (*opening, *messages):
            # Results that follow one another are one turn, which ends before another role speaks.
            if before == "tool" != message.role:
                yield from (ChatSegment("<|im_end|>", sign=True), ChatSegment("\n"))
            if message.role == "tool":
                if before != "tool":
                    yield from (ChatSegment("<|im_start|>", sign=True), ChatSegment("user"))
                yield ChatSegment(f"\n<tool_response>\n{message.text}\n</tool_response>")
            else:
                yield from self._turn(message)
            before = message.role
        if before == "tool":
            yield from (ChatSegment("<|im_end|>", sign=True), ChatSegment("\n"))
        if answering:
            yield from (ChatSegment("<|im_start|>", sign=True), ChatSegment("assistant\n"))

    def _turn(self, message: Message) -> Iterator[ChatSegment]:
        said, parts = message.role == "assistant", [message.text] if message.text else []
        parts += [f"<tool_call>\n{call}\n</tool_call>" for call in message.calls]
        text = "\n".join(parts)
        if message.tools:
            definitions = "".join(f"\n{tool}" for tool in message.tools)
            # The definitions of tools follow the system message, the conversation's own or the template's.
            first = message.text or self.system
            text = "\n\n".join([*([first] if first else []), f"{_TOOLS_OPENING}{definitions}{_TOOLS_END}"])
        yield from (ChatSegment("<|im_start|>", sign=True), ChatSegment(f"{message.role}\n"))
        yield from (
            ChatSegment(text, said=said, weight=message.weight),
            ChatSegment("<|im_end|>", sign=True, said=said, weight=message.weight),
            ChatSegment("\n"),
        )


@templates.register("llama3", paper="arXiv:2407.21783")
class Llama3:
    """<|start_header_id|>role<|end_header_id|> (two newlines) text<|eot_id|>.  It adds three tokens."""

    signs, end = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"
    jinja = (
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    )

    def __call__(self, messages: Sequence[Message], answering: bool = False) -> Iterator[ChatSegment]:
        for message in messages:
            said = message.role == "assistant"
            yield from self._header(message.role)
            yield from (
                ChatSegment(message.text.strip(), said=said, weight=message.weight),
                ChatSegment("<|eot_id|>", sign=True, said=said, weight=message.weight),
            )
        if answering:
            yield from self._header("assistant")

    @staticmethod
    def _header(role: str) -> Iterator[ChatSegment]:
        yield from (
            ChatSegment("<|start_header_id|>", sign=True),
            ChatSegment(role),
            ChatSegment("<|end_header_id|>", sign=True),
        )
        yield ChatSegment("\n\n")


@templates.register("llama2", paper="arXiv:2307.09288")
class Llama2:
    """[INST] <<SYS>> system <</SYS>> question [/INST] answer (end); the token that opens a text precedes each question.

    The markers are ordinary text, and the system message is part of the first question.  It adds no tokens.
    """

    signs, end = (), EOS
    jinja = (
        "{{ bos_token }}{% set now = namespace(system='', first=true) %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set now.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}"
        "{% elif m.role == 'user' %}{{ '' if now.first else bos_token }}"
        "{{ '[INST] ' + now.system + m.content | trim + ' [/INST]' }}{% set now.system = '' %}"
        "{% set now.first = false %}{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    )

    def __call__(self, messages: Sequence[Message], answering: bool = False) -> Iterator[ChatSegment]:
        system, first = "", True
        for message in messages:
            if message.role == "system":
                system = f"<<SYS>>\n{message.text}\n<</SYS>>\n\n"
            elif message.role == "user":
                if not first:
                    yield ChatSegment(BOS, sign=True)
                yield ChatSegment(f"[INST] {system}{message.text.strip()} [/INST]")
                # The system message belongs to the first question only.
                system, first = "", False
            else:
                yield from (
                    ChatSegment(f" {message.text.strip()} ", said=True, weight=message.weight),
                    ChatSegment(EOS, sign=True, said=True, weight=message.weight),
                )


@templates.register("alpaca", paper="https://github.com/tatsu-lab/stanford_alpaca")
class Alpaca:
    """### Instruction: question ### Response: answer (end), after a sentence of introduction.  It adds no tokens."""

    signs, end = (), EOS
    opening = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    )

    jinja = (
        "{{ bos_token }}{{ messages[0].content + '\n\n' if messages[0].role == 'system' else "
        + repr(opening)
        + " }}{% for m in messages if m.role != 'system' %}"
        "{% if m.role == 'user' %}{{ '' if loop.first else '\n\n' }}{{ '### Instruction:\n' + m.content + '\n\n' }}"
        "{% else %}{{ '### Response:\n' + m.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    )

    def __call__(self, messages: Sequence[Message], answering: bool = False) -> Iterator[ChatSegment]:
        yield ChatSegment(f"{messages[0].text}\n\n" if _has_system(messages) else self.opening)
        turns = [m for m in messages if m.role != "system"]
        for before, message in pairwise([None, *turns]):
            assert message is not None
            if message.role == "user":
                yield ChatSegment(
                    f"{'' if before is None else f'{chr(10)}{chr(10)}'}### Instruction:\n{message.text}\n\n"
                )
            else:
                yield ChatSegment("### Response:\n")
                yield ChatSegment(message.text, said=True, weight=message.weight)
                yield ChatSegment(EOS, sign=True, said=True, weight=message.weight)
        if answering:
            yield ChatSegment("### Response:\n")


def _has_system(messages: Sequence[Message]) -> bool:
    return bool(messages) and messages[0].role == "system"


@templates.register("task", paper="arXiv:2204.07705")
class TaskTemplate:
    """description (blank line) Input: question (blank line) Output: answer (end), with or without a description.

    As tasks are written in Super-NaturalInstructions (Wang et al. 2022). A system message takes the description's
    place.  With `reversed` the answer is given and the question is asked for and has the loss, as in the reversed
    templates of P3 (arXiv:2110.08207); then a prompt is an answer.  It adds no tokens.
    """

    signs, end = (), EOS

    def __init__(
        self,
        *,
        description: Annotated[str, "what is to be done, in front of each conversation; empty: none"] = "",
        input: Annotated[str, "label of the question"] = "Input",
        output: Annotated[str, "label of the answer"] = "Output",
        reversed: Annotated[bool, "the question is asked for, the answer is given"] = False,
    ) -> None:
        self.description, self.labels, self.reversed = description, (input, output), reversed

    @property
    def jinja(self) -> str:
        """The template in Jinja, with description and labels as constants; not reversed."""
        given, asked = self.labels[::-1] if self.reversed else self.labels
        front = repr(f"{self.description}\n\n" if self.description else "")
        return (
            "{{ bos_token }}{{ messages[0].content + '\n\n' if messages[0].role == 'system' else "
            + front
            + " }}{% for m in messages if m.role != 'system' %}"
            "{% if m.role == 'user' %}{{ '' if loop.first else '\n\n' }}"
            f"{{{{ {f'{given}: '!r} + m.content + '\n\n' }}}}"
            f"{{% else %}}{{{{ {f'{asked}: '!r} + m.content + eos_token }}}}{{% endif %}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {f'{asked}:'!r} }}}}{{% endif %}}"
        )

    def __call__(self, messages: Sequence[Message], answering: bool = False) -> Iterator[ChatSegment]:
        description = messages[0].text if _has_system(messages) else self.description
        if description:
            yield ChatSegment(f"{description}\n\n")
        given, asked = self.labels[::-1] if self.reversed else self.labels
        for i, (question, answer) in enumerate(_pairs(messages)):
            shown, target = (answer, question) if self.reversed and answer else (question, answer)
            yield ChatSegment(f"{chr(10) * 2 if i else ''}{given}: {shown.text if shown else ''}\n\n")
            if answer or answering:
                yield ChatSegment(f"{asked}:")
            if answer and target:
                yield ChatSegment(f" {target.text}", said=True, weight=answer.weight)
                yield ChatSegment(EOS, sign=True, said=True, weight=answer.weight)


def _pairs(messages: Sequence[Message]) -> Iterator[tuple[Message | None, Message | None]]:
    """Each answer with the question before it; None for one that is missing."""
    question: Message | None = None
    for message in messages:
        if message.role == "assistant":
            yield question, message
            question = None
        elif message.role != "system":
            # Two questions without an answer between them are one.
            text = f"{question.text}\n\n{message.text}" if question else message.text
            question = Message("user", text)
    if question:
        yield question, None
