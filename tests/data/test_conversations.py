"""Sources of conversations: every layout; a bad line is reported with its file and number."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.conversation_files import ANSWERED, ASKED, PAIR, lines, said

from ablatio import sources
from ablatio.errors import UserError

CHATS: dict[str, Any] = {
    "alpaca": {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Add.\n\n1 and 2"}, {"from": "gpt", "value": "3"}]},
    "messages": {"messages": [{"role": "user", "content": "Add.\n\n1 and 2"}, {"role": "assistant", "content": "3"}]},
    "completion": {"prompt": "Add.\n\n1 and 2", "completion": "3"},
    "tree": {
        "prompt": {"role": "prompter", "text": "Add.\n\n1 and 2", "replies": [{"role": "assistant", "text": "3"}]}
    },
}


@pytest.mark.oracle("source=chats", "one conversation written in each layout")
@pytest.mark.parametrize("layout", CHATS)
@pytest.mark.parametrize("said", [True, False])
def test_layouts_give_the_same_conversations(tmp_path: Path, layout: str, said: bool) -> None:
    source: Any = sources.build("chats", {"path": lines(tmp_path, CHATS[layout]), "layout": layout if said else "auto"})
    (found,) = source.conversations()
    assert [(m.role, m.text) for m in found.messages] == [("user", "Add.\n\n1 and 2"), ("assistant", "3")]
    assert found.id == "lines.jsonl:1"


def test_each_path_of_a_message_tree_is_a_conversation(tmp_path: Path) -> None:
    def node(text: str, *replies: Any) -> dict[str, Any]:
        return {"text": text, "replies": list(replies)}

    tree = node("q", node("a1", node("q2", node("a2")), node("nobody answers")), node("a3"))
    source: Any = sources.build("chats", {"path": lines(tmp_path, tree)})
    assert [[m.text for m in c.messages] for c in source.conversations()] == [["q", "a1", "q2", "a2"], ["q", "a3"]]


@pytest.mark.parametrize(
    "bad, what",
    [
        ('{"prompt": ', "not valid JSON"),
        ("[1]", "found a list"),
        ({"text": "no chat"}, "the fields text match no layout"),
        ({"prompt": "q", "completion": ""}, "the answer in turn 2 is empty"),
        ({"instruction": "q"}, "the answer in turn 2 is missing"),
        ({"instruction": " ", "output": "a"}, "`instruction` is ' '"),
        ({"messages": [{"role": "user", "content": "q"}]}, "has no answer of the assistant"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "has no question"),
        (
            {"messages": [{"role": "judge", "content": "q"}, {"role": "assistant", "content": "a"}]},
            "turn 1 has the role 'judge'",
        ),
        ({"conversations": "q"}, "is not a list of turns"),
        ({"text": "q", "replies": []}, "this tree has no answer"),
    ],
)
def test_bad_conversation_is_reported_with_file_and_line(tmp_path: Path, bad: Any, what: str) -> None:
    source: Any = sources.build("chats", {"path": lines(tmp_path, CHATS["completion"], bad)})
    with pytest.raises(UserError, match=what) as error:
        list(source.conversations())
    assert "lines.jsonl, line 2" in str(error.value)


def conversations(tmp_path: Path, *records: Any, **knobs: Any) -> list[Any]:
    source: Any = sources.build("chats", {"path": lines(tmp_path, *records), **knobs})
    return list(source.conversations())


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [ASKED, ANSWERED]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "output": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": [ASKED], "completion": [ANSWERED]},
        {"prompt": {"text": "q", "replies": [{"text": "a"}]}},
    ],
    ids=["messages", "sharegpt", "alpaca", "completion", "completion of turns", "tree"],
)
def test_what_stands_beside_the_turns_is_part_of_the_conversation(tmp_path: Path, record: dict[str, Any]) -> None:
    """In every layout: system message, tools, history, and weights of turns and records."""
    (plain,) = conversations(tmp_path, record)
    assert said(plain.messages) == PAIR and [m.weight for m in plain.messages] == [1, 1]
    full = record | {
        "system": "s",
        "tools": '[{"name":"add"}, {"name":"sub"}]',
        "history": [["q0", "a0"], ASKED, ANSWERED],
    }
    (found,) = conversations(tmp_path, full)
    assert said(found.messages) == [("system", "s"), ("user", "q0"), ("assistant", "a0"), *PAIR, *PAIR]
    assert found.messages[0].tools == ('{"name": "add"}', '{"name": "sub"}')
    assert found.text == '{"name": "add"}\n\n{"name": "sub"}\n\ns\n\nq0\n\na0\n\nq\n\na\n\nq\n\na'
    for weights, expected in (([0, 0.5, 1], [0, 0.5, 1]), ([1, 0, 1, 0.25, 1, 0], [0, 0.25, 0])):
        (found,) = conversations(tmp_path, full | {"weights": weights})
        assert [m.weight for m in found.messages if m.role == "assistant"] == expected
    for beside in ({"weight": 0.25}, {"train": False}, {"trainable": False}, {"weight": 0.5, "train": True}):
        (found,) = conversations(tmp_path, record | beside)
        assert found.messages[-1].weight == beside.get("weight", 0)
    for empty in ({"system": None}, {"system": ""}, {"tools": ""}, {"tools": []}, {"history": []}, {"weights": None}):
        assert conversations(tmp_path, record | empty)[0].messages == plain.messages


def test_a_system_turn_and_a_system_field_are_one(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, ASKED, ANSWERED]
    (found,) = conversations(tmp_path, {"messages": turns, "system": "s", "tools": [{"name": "f"}]})
    assert said(found.messages) == [("system", "s"), *PAIR] and found.messages[0].tools == ('{"name": "f"}',)
    with pytest.raises(UserError, match="two different system messages"):
        conversations(tmp_path, {"messages": turns, "system": "t"})


def test_weight_of_a_turn(tmp_path: Path) -> None:
    switches: list[tuple[dict[str, Any], float]] = [
        ({}, 1), ({"weight": 0}, 0), ({"weight": 1}, 1), ({"weight": 0.3}, 0.3), ({"train": False}, 0),
        ({"trainable": False}, 0), ({"train": True}, 1), ({"weight": None}, 1), ({"weight": False}, 0),
    ]  # fmt: skip
    for switch, expected in switches:
        (found,) = conversations(tmp_path, {"messages": [ASKED, ANSWERED | switch, ASKED, ANSWERED]})
        assert [m.weight for m in found.messages] == [1, expected, 1, 1]
    for wrong in (-1, 2, "0", float("nan"), float("inf"), [0], 10**400):
        with pytest.raises(UserError, match=r"line 1: `weight` of turn 2 is .*; expected a number from 0 to 1"):
            conversations(tmp_path, {"messages": [ASKED, ANSWERED | {"weight": wrong}]})
    with pytest.raises(UserError, match=r"`weights` is 3 numbers; expected 1, one per answer, or 2, one per turn"):
        conversations(tmp_path, {"messages": [ASKED, ANSWERED], "weights": [1, 1, 1]})


def test_content_parts_and_roles_in_any_case(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Look"}, {"type": "text", "text": " here."}, {"text": "!"}, "?"]
    (found,) = conversations(
        tmp_path, {"messages": [{"role": "USER ", "content": parts}, {"role": "Assistant", "content": "a"}]}
    )
    assert said(found.messages) == [("user", "Look here.!?"), ("assistant", "a")]
    image = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(UserError, match=r"line 1: turn 1 has a part of type 'image_url'; expected text parts"):
        conversations(tmp_path, {"messages": [{"role": "user", "content": [image]}, ANSWERED]})


def test_tool_calls_in_both_common_forms_give_the_same_conversation(tmp_path: Path) -> None:
    arguments = {"a": 1, "unit": "°C"}
    openai = [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": json.dumps(arguments)}},
            {"id": "c2", "type": "function", "function": {"name": "now", "arguments": ""}},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"}, {"role": "tool", "tool_call_id": "c2", "content": ""},
        ANSWERED,
    ]  # fmt: skip
    calls = [{"name": "add", "arguments": arguments}, {"name": "now", "arguments": {}}]
    sharegpt = [
        {"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(calls)},
        {"from": "observation", "value": "2"}, {"from": "observation", "value": ""}, {"from": "gpt", "value": "a"},
    ]  # fmt: skip
    (one,), (other,) = (
        conversations(tmp_path, {"messages": openai}),
        conversations(tmp_path, {"conversations": sharegpt}),
    )
    assert one.messages == other.messages
    assert [m.role for m in one.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert one.messages[1].calls == (
        '{"name": "add", "arguments": {"a": 1, "unit": "°C"}}', '{"name": "now", "arguments": {}}',
    )  # fmt: skip
    old = [
        ASKED,
        {"role": "assistant", "function_call": {"name": "now", "arguments": "{}"}},
        {"role": "function", "content": "5"},
    ]
    (found,) = conversations(tmp_path, {"messages": [*old, ANSWERED]})
    assert found.messages[1].calls == ('{"name": "now", "arguments": {}}',)


@pytest.mark.parametrize(
    "bad, what",
    [
        ({"messages": [ASKED, "a"]}, "is not a list of turns"),
        ({"messages": [ASKED, ANSWERED], "history": [["q"]]}, r"`history` holds \['q'\]; expected pairs"),
        ({"messages": [ASKED, ANSWERED], "tools": "none"}, "`tools` is 'none'; expected a list of definitions"),
        ({"messages": [ASKED, ANSWERED], "tools": [1]}, r"`tools` is \[1\]"),
        ({"messages": [ASKED, ANSWERED], "system": 5}, "`system` is 5; expected text"),
        (
            {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"name": 5}]}]},
            "the answer in turn 2 has the call",
        ),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": "x"}]}, "the answer in turn 2 has the calls 'x'"),
        (
            {"messages": [ASKED | {"tool_calls": [1]}, ANSWERED]},
            r"turn 1 has the calls \[1\]; expected .* of the assistant",
        ),
        (
            {"conversations": [ASKED, {"from": "function_call", "value": "add(1)"}]},
            r"has the call 'add\(1\)'; expected JSON",
        ),
        ({"text": "q", "replies": 5}, "`replies` is 5; expected a list of messages"),
        ({"text": "q", "replies": ["a"]}, "a message is a str"),
    ],
)
def test_what_cannot_be_used_is_refused_with_file_and_line(tmp_path: Path, bad: Any, what: str) -> None:
    with pytest.raises(UserError, match=what) as error:
        conversations(tmp_path, CHATS["completion"], bad)
    assert "lines.jsonl, line 2" in str(error.value)


def test_deep_trees_are_refused(tmp_path: Path) -> None:
    for depth in (60, 400):
        tree: dict[str, Any] = {"text": "a", "replies": []}
        for i in range(depth - 1):
            tree = {"text": "aq"[(depth - i) % 2], "replies": [tree]}
        if depth == 60:
            assert len(conversations(tmp_path, tree)[0].messages) == 60
        else:
            with pytest.raises(UserError, match=r"nested deeper than 100 messages|not valid JSON"):
                conversations(tmp_path, tree)


@pytest.mark.oracle("source=gsm_symbolic", "reasoning-gym's own scorer: each worked answer is right")
def test_worked_answers_are_correct() -> None:
    import reasoning_gym

    data = reasoning_gym.create_dataset("gsm_symbolic", size=12, seed=5)
    source: Any = sources.build("gsm_symbolic", {"size": 12, "seed": 5})
    for problem, found in zip(data, source.conversations(), strict=True):
        question, answer = found.messages
        assert question.text == problem["question"]
        assert data.score_answer(answer.text.rpartition("####")[2].strip(), problem) == 1.0


@pytest.mark.oracle("source=several", "its sources one after the other")
def test_several_sources_are_concatenated(tmp_path: Path) -> None:
    path = lines(tmp_path, *CHATS.values())
    source: Any = sources.build("several", {"of": [f"chats:{path}", "gsm_symbolic"]})
    parts: list[Any] = [sources.build("chats", {"path": path}), sources.build("gsm_symbolic", {})]
    alone = [c.messages for part in parts for c in part.conversations()]
    assert [c.messages for c in source.conversations()] == alone
