"""Sources of conversations: JSON lines in the layouts that people use, trees of dialogue, and a generated set."""

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from ablatio import Range, sources
from ablatio.data.types import Conversation, Document, Message, Role, Source
from ablatio.errors import EnvironmentFault, UserError

from .text import _find, _fingerprint, _open, _readable, _utf8

ROLES: dict[str, Role] = {
    "system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "model": "assistant", "bot": "assistant",
}  # fmt: skip
LAYOUTS = {
    "alpaca": '{"instruction": "...", "input": "", "output": "..."}',
    "sharegpt": '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "tree": '{"prompt": {"role": "user", "text": "...", "replies": [{"role": "assistant", "text": "..."}]}}',
    "completion": '{"prompt": "...", "completion": "..."}',
}
KEYS = {
    "alpaca": "instruction", "sharegpt": "conversations", "messages": "messages", "tree": "replies",
    "completion": "completion",
}  # fmt: skip
Layout = Literal["auto", "alpaca", "sharegpt", "messages", "tree", "completion"]


@sources.register("chats")
class Chats:
    """Conversations, one JSON object a line: a file, the .jsonl files of a folder, or a glob.

    Layouts: alpaca (instruction, input, output), sharegpt (conversations of from and value), messages (role and
    content), completion (prompt, completion), and tree (a message with its `replies`: each path to an answer without
    a reply is a conversation).  What comes behind the last answer of a conversation is left out.
    """

    def __init__(
        self,
        *,
        path: Annotated[str, "a file, a folder or a glob; .xz and .gz are read as they are"] = "",
        layout: Annotated[Layout, "auto: by the fields of each line"] = "auto",
    ) -> None:
        self.path, self.layout = path, layout

    def conversations(self) -> Iterator[Conversation]:
        for file in _find(self.path, "chats", (".jsonl",)):
            for number, record in objects(file):
                where = f"{file}, line {number}"
                turns = list(_turns(record, self.layout, where))
                if not turns:
                    raise bad_line(where, "nobody answers in this tree")
                for i, messages in enumerate(turns):
                    yield Conversation(_checked(messages, where), f"{file.name}:{number}{f'.{i}' if i else ''}")

    def documents(self) -> Iterator[Document]:
        yield from (Document(c.text, c.id, c.split) for c in self.conversations())

    def fingerprint(self) -> str:
        return _fingerprint(_find(self.path, "chats", (".jsonl",)), "chats-1", self.layout)


@sources.register("gsm_symbolic")
class GsmSymbolic:
    """Word problems of arithmetic with worked answers, made by reasoning-gym from a hundred patterns.

    Source: Mirzadeh et al. 2024, arXiv:2410.05229.  An answer ends with `#### n`, by which it can be checked.
    """

    def __init__(
        self,
        *,
        size: Annotated[int, Range(10, 1_000_000), "problems, of both splits together"] = 2000,
        seed: Annotated[int, Range(0, 2**31), "of the problems"] = 1,
        worked: Annotated[bool, "the answer with its steps; else the number alone"] = True,
    ) -> None:
        self.size, self.seed, self.worked = size, seed, worked

    def conversations(self) -> Iterator[Conversation]:
        try:
            import reasoning_gym
        except ImportError:
            raise EnvironmentFault(
                "source=gsm_symbolic is made by reasoning-gym, which is not installed\n"
                "    try: pip install 'ablatio[reasoning]'"
            ) from None
        for i, problem in enumerate(reasoning_gym.create_dataset("gsm_symbolic", size=self.size, seed=self.seed)):
            answer = problem["metadata"]["answer_cot"] if self.worked else f"#### {problem['answer']}"
            messages = Message("user", problem["question"]), Message("assistant", answer)
            yield Conversation(messages, f"gsm_symbolic:{self.seed}:{i}")

    def documents(self) -> Iterator[Document]:
        yield from (Document(c.text, c.id, c.split) for c in self.conversations())

    def fingerprint(self) -> str:
        return hashlib.sha256(f"gsm_symbolic-1 {self.size} {self.seed} {self.worked}".encode()).hexdigest()


@sources.register("several")
class Several:
    """The conversations of several sources; each is a group of its own for `task.cap`.

    A part of the mixture is the name of a source, or `name:path` where it reads a file: [gsm_symbolic,chats:a.jsonl].
    """

    def __init__(
        self,
        *,
        of: Annotated[tuple[str, ...], "sources of conversations, as name or name:path"] = ("gsm_symbolic",),
    ) -> None:
        self.of = list(of)

    def _parts(self) -> Iterator[tuple[str, Any]]:
        if not self.of:
            raise UserError("source.of names no source\n    try: source.of=[gsm_symbolic]")
        for written in self.of:
            name, colon, path = written.partition(":")
            if "conversations" not in sources[name].facts["uses"] or name == "several":
                raise UserError(f"source.of: {name} gives no conversations\n    try: source.of=[gsm_symbolic]")
            yield written, sources.build(name, {"path": path} if colon else {})

    def conversations(self) -> Iterator[Conversation]:
        for written, part in self._parts():
            for c in part.conversations():
                yield Conversation(c.messages, f"{written}/{c.id}", c.split, written)

    def documents(self) -> Iterator[Document]:
        yield from (Document(c.text, c.id, c.split) for c in self.conversations())

    def fingerprint(self) -> str:
        made: list[tuple[str, Source]] = list(self._parts())
        held = [(written.partition(":")[0], part.fingerprint()) for written, part in made]
        return hashlib.sha256(json.dumps(["several-1", held]).encode()).hexdigest()


def bad_line(where: str, what: str) -> UserError:
    """What is wrong with a line, and a command that shows it; where: `FILE, line N`."""
    file, _, number = where.rpartition(", line ")
    reader = {".xz": "xzcat", ".gz": "zcat"}.get(Path(file).suffix, "cat")
    return UserError(
        f"{where}: {what}\n    try: {reader} {shlex.quote(file)} | sed -n {number}p, then mend or delete it"
    )


def objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank."""
    offset = 0
    with _readable(file), _open(file) as stream:
        for number, line in enumerate(stream, 1):
            text = _utf8(line, file, offset)
            offset += len(line)
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise bad_line(f"{file}, line {number}", f"no JSON ({error})") from None
            if not isinstance(record, dict):
                raise UserError(f"{file}, line {number}: a {type(record).__name__} came, an object was expected")
            yield number, record


def _turns(record: Mapping[str, Any], layout: str, where: str) -> Iterator[list[tuple[Any, Any]]]:
    """(role, text) of the turns of each conversation of a line, as they were written."""
    if layout == "auto":
        flat = record.get("prompt") if isinstance(record.get("prompt"), Mapping) else record
        layout = next((name for name, key in KEYS.items() if key in cast(Any, flat)), "")
        if not layout:
            forms = "\n".join(f"    {name}: {form}" for name, form in LAYOUTS.items())
            raise bad_line(where, f"the fields {', '.join(record) or 'none'} are of no layout; there are\n{forms}")
    if layout == "alpaca":
        asked = [field(record, "instruction", where), field(record, "input", where, optional=True)]
        yield [("user", "\n\n".join(filter(None, asked))), ("assistant", record.get("output"))]
    elif layout == "completion":
        yield [("user", field(record, "prompt", where)), ("assistant", record.get("completion"))]
    elif layout == "tree":
        yield from _paths(record.get("prompt", record), where, "user")
    else:
        names = ("from", "value") if layout == "sharegpt" else ("role", "content")
        turns = record.get(KEYS[layout])
        if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
            raise UserError(f"{where}: `{KEYS[layout]}` is no list of turns; expected {LAYOUTS[layout]}")
        yield [(turn.get(names[0]), turn.get(names[1])) for turn in turns]


def _paths(node: Any, where: str, role: Role) -> Iterator[list[tuple[Any, Any]]]:
    """The paths of a tree to the answers behind which nothing follows."""
    if not isinstance(node, Mapping):
        raise UserError(f"{where}: a {type(node).__name__} came for a message; expected {LAYOUTS['tree']}")
    here = (node.get("role", role), node.get("text"))
    other: Role = "assistant" if ROLES.get(str(here[0])) == "user" else "user"
    replies = node.get("replies") or []
    below = [path for reply in replies for path in _paths(reply, where, other)]
    if other == "user" and not below:
        yield [here]
    yield from ([here, *path] for path in below)


def field(record: Mapping[str, Any], name: str, where: str, *, optional: bool = False) -> str:
    """A field that holds text."""
    value = record.get(name, "" if optional else None)
    if not isinstance(value, str) or not (optional or value.strip()):
        came = "is missing" if name not in record else "is empty" if value == "" else f"is {value!r:.40}"
        raise bad_line(where, f"`{name}` {came}; a text was expected")
    return value


def _checked(turns: Sequence[tuple[Any, Any]], where: str) -> tuple[Message, ...]:
    """Turns that a template can write: known roles, texts, an answer in the end, a question before each answer."""
    while turns and ROLES.get(str(turns[-1][0])) in ("user", "system"):
        turns = turns[:-1]
    if not turns:
        raise bad_line(where, "there is no answer of the assistant's in it")
    messages = []
    for i, (role, text) in enumerate(turns, 1):
        if str(role) not in ROLES:
            raise UserError(f"{where}: turn {i} is of {role!r}; a role is one of {', '.join(ROLES)}")
        if not isinstance(text, str) or not text.strip():
            what = "answer" if ROLES[str(role)] == "assistant" else "turn"
            came = "is missing" if text is None else "is empty" if isinstance(text, str) else f"is {text!r:.40}"
            raise bad_line(where, f"the {what} in turn {i} {came}; a text was expected")
        messages.append(Message(ROLES[str(role)], text))
    if not any(m.role == "user" for m in messages[:-1]):
        raise bad_line(where, "nobody asks anything before the first answer")
    return tuple(messages)
