"""Records of preference feedback: a prompt, its answers and their scores, in the layouts of public data sets."""

import math
import re
from collections.abc import Mapping
from typing import Any

from ablatio.data.data_files import invalid_data, shown
from ablatio.data.records import Record, UnusedFields, checked_text
from ablatio.data.types import Feedback, Message

from ._turns import Reader
from .conversations import beside, field, field_names, prompt_messages, question, user

LAYOUTS = """\
    pair: {"prompt": "...", "chosen": "...", "rejected": "..."}
    ranking: {"prompt": "...", "answers": ["best", "...", "worst"]}
    scores: {"prompt": "...", "answers": ["...", "..."], "scores": [3.5, 1]}
    elo: {"prompt": "...", "answers": ["...", "..."], "elo": [1250, 980]}
    label: {"prompt": "...", "completion": "...", "label": true}
    steps: {"prompt": "...", "steps": ["...", "..."], "labels": [1, 0]}
    whole conversations: {"chosen": [{"role": "user", "content": "..."}, ...], "rejected": [...]}"""
_LABELS = ("label", "kto_tag")
_WORDS = {"true": True, "false": False, "1": True, "0": False}  # labels in a CSV file
# Fields that hold the prompt, in the order in which they are looked for.
_PROMPTS = ("prompt", "conversations", "messages", "instruction")
_FIELDS = {
    *_PROMPTS, "input", "chosen", "rejected", "answers", "scores", "elo", "completion", *_LABELS,
    "system", "tools", "history", "steps", "labels",
}  # fmt: skip
_SPEAKERS = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
Turns = tuple[Message, ...]


def feedback_of(record: Record, unused: UnusedFields) -> Feedback:
    """Return the feedback of a record; UserError for one that has no known layout or lacks something."""
    if "steps" in record.fields:
        return _labelled_steps(record, unused)
    texts, scores = _answers(record)
    key = _prompt_key(record)
    spare = {*_PROMPTS, "input"} - ({key, "input"} if key == "instruction" else {key}) - {texts[0][0]}
    unused.add(record.fields, _FIELDS - spare)
    dialogues = all(isinstance(text, str) and _is_dialogue(text) for _, text in texts)
    prompt = _prompt(record, key, unused) if key else None
    answers = [_turns(_dialogue(text) if dialogues else text, name, record, unused) for name, text in texts]
    if any(turn.weight != 1 for turns in (prompt or (), *answers) for turn in turns):
        unused.count("weights of turns")
    if prompt is None or any(len(turns) > 1 for turns in answers):
        prompt, answers = _common(record, prompt, answers, unused)
    last = [_text(turns, i, record) for i, turns in enumerate(answers, 1)]
    # Such a pair has a loss but teaches nothing; rankings may hold equal answers with equal scores.
    if texts[0][0] == "chosen" and last[0] == last[1]:
        raise invalid_data(record.place, "`chosen` and `rejected` are the same answer", "two different answers")
    return Feedback(prompt, tuple(last), tuple(scores), record.id, elo="elo" in record.fields)


def _labelled_steps(record: Record, unused: UnusedFields) -> Feedback:
    """A solution with a label for each of its steps, as in PRM800K: its score is the least of them."""
    steps, labels = record.fields["steps"], record.fields.get("labels")
    if not isinstance(steps, list) or not steps or not all(isinstance(s, str) and s.strip() for s in steps):
        raise invalid_data(record.place, f"`steps` is {shown(steps)}", "a list of texts, one per step")
    if not isinstance(labels, list) or len(labels) != len(steps) or not all(_is_label(label) for label in labels):
        raise invalid_data(record.place, f"`labels` is {shown(labels)}", f"{len(steps)} numbers from 0 to 1, one each")
    unused.add(record.fields, {*_FIELDS} - {"chosen", "rejected", "answers", "scores", "elo", "completion"})
    prompt = _prompt(record, _prompt_key(record), unused) if _prompt_key(record) else None
    if prompt is None:
        raise invalid_data(record.place, "`prompt` is missing", "a text or messages")
    # A step is a line of the answer, so a line break inside a step would make two.
    lines = [checked_text(" ".join(step.split("\n")), "a step", record.place) for step in steps]
    found = tuple(float(label) for label in labels)
    return Feedback(prompt, ("\n".join(lines),), (min(found),), record.id, labels=(found,))


def _is_label(value: Any) -> bool:
    return _is_number(float(value) if isinstance(value, bool) else value) and 0 <= value <= 1


def _answers(record: Record) -> tuple[list[tuple[str, Any]], list[float]]:
    """The answers of a record as they stand there, each with its name, and their scores."""
    fields = record.fields
    if "chosen" in fields or "rejected" in fields:
        return [(key, fields.get(key)) for key in ("chosen", "rejected")], [1.0, 0.0]
    if "answers" in fields:
        held = fields["answers"]
        if not isinstance(held, list) or len(held) < 2:
            raise invalid_data(record.place, f"`answers` is {shown(held)}", "a list of two or more")
        return [(f"answers[{i}]", answer) for i, answer in enumerate(held)], _scores(record, len(held))
    label = next((key for key in _LABELS if key in fields), "")
    if not label:
        raise invalid_data(record.place, f"the fields {field_names(record)} match no layout; layouts are\n{LAYOUTS}")
    value = fields[label]
    value = _WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value
    if not isinstance(value, bool) and (not isinstance(value, int) or value not in (0, 1)):
        raise invalid_data(record.place, f"`{label}` is {shown(value)}", "true or false")
    if "completion" in fields:
        return [("completion", fields["completion"])], [float(value)]
    key = next((key for key in ("messages", "conversations") if key in fields), "")
    if not isinstance(fields.get(key), list) or not fields[key]:
        raise invalid_data(record.place, "`completion` is missing", "text")
    return [(key, fields[key])], [float(value)]


def _scores(record: Record, count: int) -> list[float]:
    key = "elo" if "elo" in record.fields else "scores"
    # Without scores the order is the ranking, the best first.
    held = record.fields.get(key, [-i for i in range(count)])
    if not isinstance(held, list) or len(held) != count or not all(_is_number(score) for score in held):
        raise invalid_data(record.place, f"`{key}` is {shown(held, 60)}", f"{count} numbers, one per answer")
    return [float(score) for score in held]


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _prompt_key(record: Record) -> str:
    """The field that holds the prompt; "" if the record has none, so that it begins the answers."""
    fields = record.fields
    key = next((key for key in _PROMPTS if fields.get(key) is not None), "")
    # A labeled conversation without `completion` has its answer as the last turn.
    whole = any(k in fields for k in _LABELS) and "completion" not in fields and "chosen" not in fields
    return "" if whole and key in ("messages", "conversations") else key


def _prompt(record: Record, key: str, unused: UnusedFields) -> Turns:
    """The prompt that a field of the record holds."""
    held = record.fields[key]
    if key == "instruction":
        turns: list[Any] = [user(question(record))]
    elif isinstance(held, list):
        turns = held
        if not turns or not all(isinstance(turn, Mapping) for turn in turns):
            raise invalid_data(record.place, f"`{key}` is {shown(turns)}", "text, or a list of messages")
    else:
        text = field(record, key)
        # The empty turn of the assistant that such prompts end with is no turn.
        turns = _dialogue(text.rstrip().removesuffix("Assistant:").rstrip()) if _is_dialogue(text) else [user(text)]
    return prompt_messages(record, turns, Reader(record.place, unused, key))


def _is_dialogue(text: str) -> bool:
    """True if a text is a dialogue of "Human:" and "Assistant:" (Bai et al. 2022, arXiv:2204.05862)."""
    return text.lstrip("\n").startswith("Human:") and "\n\nAssistant:" in text


def _dialogue(text: str) -> list[dict[str, str]]:
    parts = _SPEAKERS.split("\n\n" + text.lstrip("\n"))[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _turns(value: Any, name: str, record: Record, unused: UnusedFields) -> Turns:
    """An answer as turns: a text, a turn, or a list of turns."""
    reader = Reader(record.place, unused, name.partition("[")[0])
    if isinstance(value, Mapping):
        return reader.messages([value])
    if isinstance(value, list):
        if not value:
            raise invalid_data(record.place, f"`{name}` is an empty list", "text, or a list of messages")
        return reader.messages(value)
    if value is None:
        raise invalid_data(record.place, f"`{name}` is missing", "text, or a list of messages")
    # Checked by `_text`, which names the answer by its number.
    return (Message("assistant", value),)


def _common(
    record: Record, prompt: Turns | None, answers: list[Turns], unused: UnusedFields
) -> tuple[Turns, list[Turns]]:
    """Split whole conversations into their common turns, which are the prompt, and the answers after them.

    A prompt that stands beside them must be a part of the common turns, or come before them.
    """
    wholes = [tuple(turns) for turns in answers]
    shared = 0
    # At least the last turn of each is its answer.
    most = min(len(turns) for turns in wholes) - 1
    while shared < most and len({turns[shared] for turns in wholes}) == 1:
        shared += 1
    common, rest = wholes[0][:shared], [turns[shared:] for turns in wholes]
    if any(len(turns) != 1 for turns in rest):
        longest = max(map(len, rest))
        raise invalid_data(
            record.place, f"the answers differ from turn {shared + 1} on, and one has {longest} turns from there",
            "conversations that differ in their last turn only",
        )  # fmt: skip
    if prompt is None:
        common = beside(record, common, Reader(record.place, unused, "history"))
    else:
        common = _joined(record, prompt, common)
    if not any(m.role == "user" for m in common):
        first = "chosen" if "chosen" in record.fields else "the answer"
        raise invalid_data(
            record.place, f"`prompt` is missing, and {first} does not begin with a question", "a text or messages"
        )
    return common, rest


def _joined(record: Record, prompt: Turns, common: Turns) -> Turns:
    """The prompt that stands beside whole conversations, and their common turns: one prompt."""
    system = [m for m in prompt if m.role == "system"]
    asked = tuple(m for m in prompt if m.role != "system")
    held = tuple(m for m in common if m.role != "system")
    systems = list(dict.fromkeys([*system, *(m for m in common if m.role == "system")]))
    # Compared without the white space around them, which data sets treat differently in the two places.
    if [(m.role, m.content.strip()) for m in held[: len(asked)]] == [(m.role, m.content.strip()) for m in asked]:
        turns = held
    elif not held or held[0].role == "assistant":
        turns = (*asked, *held)
    else:
        raise invalid_data(
            record.place, f"`prompt` is {shown(asked[0].text)}, but the answers begin with {shown(held[0].text)}",
            "answers that begin with the prompt, or without any",
        )  # fmt: skip
    if len(systems) > 1:
        raise invalid_data(record.place, "there are two different system messages", "one of them")
    return (*systems, *turns)


def _text(turns: Turns, number: int, record: Record) -> str:
    """The text of an answer of one turn; UserError if it is not the assistant's, or no text."""
    (turn,) = turns
    if turn.role != "assistant" or turn.calls:
        came = "calls a tool" if turn.calls else f"is a turn of the {turn.role}"
        raise invalid_data(record.place, f"answer {number} {came}", "text of the assistant")
    if not isinstance(turn.text, str) or not turn.text.strip():
        came = "is empty" if isinstance(turn.text, str) else f"is {shown(turn.text)}"
        raise invalid_data(record.place, f"answer {number} {came}", "text")
    return checked_text(turn.text, f"answer {number}", record.place)
