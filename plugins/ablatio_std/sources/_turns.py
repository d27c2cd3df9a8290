"""Turns of conversations in data files: roles, content parts, tool calls, weights of the loss."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ablatio.data.data_files import Place, invalid_data, shown
from ablatio.data.records import UnusedFields, checked_text
from ablatio.data.types import Message, Role

CALL = "call"  # a turn whose content is a tool call of the assistant
ROLES: dict[str, Role | str] = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "tool_response": "tool",
    "function_call": CALL, "tool_call": CALL,
}  # fmt: skip
SWITCHES = ("weight", "train", "trainable")  # fields that say how much of the loss a turn has
TURN = '{"role": "user", "content": "..."}'
# Fields of a turn that are used, or that only link a result to its call, which the order of the turns does, too.
_KNOWN = {
    "role", "from", "content", "value", "text", "replies", "tool_calls", "function_call", "tool_call_id", "name",
    *SWITCHES,
}  # fmt: skip


class Reader:
    """Reads the turns of one record.

    Args:
        place: the record, for messages
        unused: counts fields that are not used
        field: name of the field that holds the turns, for the counts
    """

    def __init__(self, place: Place, unused: UnusedFields, field: str) -> None:
        self.place, self.unused, self.field = place, unused, field

    def messages(self, turns: Sequence[Any]) -> tuple[Message, ...]:
        """Turns as messages, without checks of their order."""
        return tuple(self.message(turn, i) for i, turn in enumerate(turns, 1))

    def message(self, turn: Any, number: int) -> Message:
        """A turn as a message; `number` names it in errors."""
        if not isinstance(turn, Mapping):
            raise invalid_data(self.place, f"turn {number} is {shown(turn)}", f"a turn as {TURN}")
        role = role_of(turn)
        if not role:
            came = shown(turn.get("role", turn.get("from")))
            roles = ", ".join(dict.fromkeys(ROLES))
            raise invalid_data(self.place, f"turn {number} has the role {came}", f"one of {roles}")
        self.unused.add(turn, _KNOWN, f"{self.field}[].")
        content = next((turn[key] for key in ("content", "value", "text") if turn.get(key) is not None), None)
        what = f"the answer in turn {number}" if role == "assistant" else f"turn {number}"
        if role == CALL:
            return Message("assistant", "", self._weight(turn, number), self._calls_of_text(content, what))
        calls = self._calls(turn, role, what)
        text = self._text(content, what, empty=bool(calls) or role == "tool")
        if role == "assistant":
            return Message("assistant", text, self._weight(turn, number), calls)
        # Prompts have no loss that a weight could scale: the field is counted as unused.
        if self._weight(turn, number) and any(turn.get(key) is not None for key in SWITCHES):
            self.unused.count(f"{self.field}[].weight of {role}")
        return Message("system" if role == "system" else "tool" if role == "tool" else "user", text)

    def _text(self, content: Any, what: str, empty: bool) -> str:
        if isinstance(content, list):
            content = "".join(self._part(part, what) for part in content)
        if content is None and empty:
            return ""
        if not isinstance(content, str) or not (empty or content.strip()):
            came = "is missing" if content is None else "is empty" if content == "" else f"is {shown(content)}"
            raise invalid_data(self.place, f"{what} {came}", "text")
        return checked_text(content, what, self.place)

    def _part(self, part: Any, what: str) -> str:
        if isinstance(part, str):
            return part
        if isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
            return str(part["text"])
        kind = shown(part.get("type")) if isinstance(part, Mapping) else shown(part)
        raise invalid_data(
            self.place, f"{what} has a part of type {kind}", 'text parts, {"type": "text", "text": "..."}'
        )

    def _calls(self, turn: Mapping[str, Any], role: str, what: str) -> tuple[str, ...]:
        """The tool calls of a turn, in OpenAI's form: `tool_calls`, or `function_call` for a single one."""
        calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
        if not isinstance(calls, list) or (calls and role != "assistant"):
            raise invalid_data(self.place, f"{what} has the calls {shown(calls)}", "a list of calls, of the assistant")
        return tuple(self._call(call, what) for call in calls)

    def _calls_of_text(self, content: Any, what: str) -> tuple[str, ...]:
        """The calls of a turn whose content is a call, or a list of calls, as JSON."""
        found = self._parsed(content, what)
        return tuple(self._call(call, what) for call in (found if isinstance(found, list) else [found]))

    def _call(self, call: Any, what: str) -> str:
        """One call as JSON {"name": ..., "arguments": ...}."""
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            form = '{"name": "...", "arguments": {}}'
            raise invalid_data(self.place, f"{what} has the call {shown(call)}", f"a call as {form}")
        arguments = function.get("arguments", function.get("parameters"))
        # OpenAI's form has the arguments as JSON within the JSON.
        if isinstance(arguments, str):
            arguments = self._parsed(arguments, what) if arguments.strip() else {}
        if not isinstance(arguments, Mapping | None):
            raise invalid_data(
                self.place, f"{what} has a call with the arguments {shown(arguments)}", "an object by name"
            )
        return self._json({"name": function["name"], "arguments": arguments or {}}, what)

    def _parsed(self, text: Any, what: str) -> Any:
        try:
            return json.loads(text) if isinstance(text, str) else text
        except (ValueError, RecursionError):
            raise invalid_data(self.place, f"{what} has the call {shown(text)}", "JSON") from None

    def _json(self, value: Any, what: str) -> str:
        try:
            return checked_text(json.dumps(value, ensure_ascii=False), what, self.place)
        except (ValueError, TypeError, RecursionError) as error:
            raise invalid_data(self.place, f"{what} is not JSON ({error})", "JSON") from None

    def tools(self, value: Any) -> tuple[str, ...]:
        """Definitions of tools, a list or its JSON, each as JSON."""
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise invalid_data(
                    self.place, f"`tools` is {shown(value)}", "a list of definitions, or its JSON"
                ) from None
        value = [] if value in (None, "") or value == {} or isinstance(value, str) else value
        found = [value] if isinstance(value, Mapping) else value
        if not isinstance(found, list) or not all(isinstance(tool, Mapping) for tool in found):
            raise invalid_data(self.place, f"`tools` is {shown(value)}", "a list of definitions, or its JSON")
        return tuple(self._json(tool, "`tools`") for tool in found)

    def weight(self, fields: Mapping[str, Any], name: str) -> float:
        """Factor of the loss that `weight`, `train` or `trainable` of a turn or record gives; 1 without them."""
        found = 1.0
        for key in SWITCHES:
            value = fields.get(key)
            if value is None:
                continue
            if not isinstance(value, bool | int | float) or not 0 <= value <= 1 or not math.isfinite(value):
                raise invalid_data(
                    self.place, f"`{key}` of {name} is {shown(value)}", "a number from 0 to 1, or true or false"
                )
            # Several switches multiply: train=false with a weight stays 0.
            found *= float(value)
        return found

    def _weight(self, turn: Mapping[str, Any], number: int) -> float:
        return self.weight(turn, f"turn {number}")


def role_of(turn: Any) -> str:
    """The role of a turn in any case, `call` for a tool call, or "" if it has no known one."""
    if not isinstance(turn, Mapping):
        return ""
    name = turn.get("role") or turn.get("from")
    return str(ROLES.get(name.strip().lower(), "")) if isinstance(name, str) else ""


def until_last_answer(turns: Sequence[Any]) -> Sequence[Any]:
    """The turns up to the last answer of the assistant; a turn without a known role also ends them."""
    end = len(turns)
    while end and role_of(turns[end - 1]) in ("user", "system", "tool"):
        end -= 1
    return turns[:end]


def with_system(messages: Iterable[Message], system: Message | None, place: Place) -> tuple[Message, ...]:
    """The messages with the system message and the tools that stand beside the turns."""
    held = tuple(messages)
    if system is None:
        return held
    if held and held[0].role == "system":
        first, *rest = held
        if system.text and system.text != first.text:
            raise invalid_data(place, "`system` and the first turn are two different system messages", "one of them")
        return Message("system", first.text, tools=system.tools), *rest
    return system, *held
