"""Sources of conversations and feedback: every layout; a bad line is reported with its file and number."""

import json
from pathlib import Path
from typing import Any

import pytest

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


def lines(tmp_path: Path, *records: Any) -> str:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return str(path)


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


def said(messages: Any) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in messages]


ASKED, ANSWERED = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = [("user", "q"), ("assistant", "a")]


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


@pytest.mark.oracle("source=feedback", "lines written by the test, in each layout")
def test_feedback_layouts(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": "user", "content": "q"}], "answers": ["a", "b", "c"]},
        {"prompt": "q", "answers": ["a", "b"], "scores": [1, 2.5]},
        {"prompt": "q", "answers": ["a", "b"], "elo": [1200, 1000]},
        {"prompt": "q", "completion": "a", "label": False},
    )
    source: Any = sources.build("feedback", {"path": path})
    found = list(source.feedback())
    assert [f.scores for f in found] == [(1, 0), (0, -1, -2), (1, 2.5), (1200, 1000), (0,)]
    assert [f.elo for f in found] == [False, False, False, True, False]
    assert all([m.text for m in f.prompt] == ["q"] for f in found)


@pytest.mark.parametrize(
    "bad, what",
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "`chosen` and `rejected` are the same answer"),
        ({"prompt": "q", "chosen": "a"}, "`rejected` is missing"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "answer 2 is empty"),
        ({"chosen": "a", "rejected": "b"}, "`prompt` is missing"),
        ({"prompt": "q", "answers": ["a"]}, "a list of two or more"),
        ({"prompt": "q", "answers": ["a", "b"], "scores": [1]}, "expected 2 numbers"),
        ({"prompt": "q", "answers": ["a", "b"], "elo": [1, None]}, "expected 2 numbers"),
        ({"prompt": "q", "completion": "a", "label": "yes"}, "true or false"),
        ({"prompt": "q"}, "match no layout"),
    ],
)
def test_bad_feedback_is_reported_with_file_and_line(tmp_path: Path, bad: Any, what: str) -> None:
    source: Any = sources.build(
        "feedback", {"path": lines(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"}, bad)}
    )
    with pytest.raises(UserError, match=what) as error:
        list(source.feedback())
    assert "lines.jsonl, line 2" in str(error.value)


def feedback(tmp_path: Path, *records: Any, **knobs: Any) -> list[Any]:
    source: Any = sources.build("feedback", {"path": lines(tmp_path, *records), **knobs})
    return list(source.feedback())


GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
MIDDLE = [ASKED, ANSWERED, {"role": "user", "content": "q2"}]
THREE = [*PAIR, ("user", "q2")]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": MIDDLE, "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": MIDDLE, "chosen": "good", "rejected": "bad"},
        {"chosen": [*MIDDLE, GOOD], "rejected": [*MIDDLE, BAD]},
        {"prompt": "q", "chosen": [*MIDDLE, GOOD], "rejected": [*MIDDLE, BAD]},
        {"prompt": MIDDLE, "chosen": [*MIDDLE, GOOD], "rejected": [*MIDDLE, BAD]},
        {"prompt": "q", "chosen": [*MIDDLE[1:], GOOD], "rejected": [*MIDDLE[1:], BAD]},
        {"conversations": MIDDLE, "chosen": {"from": "gpt", "value": "good"}, "rejected": BAD},
        {"messages": MIDDLE, "answers": ["good", "bad"], "scores": [1, 0]},
        {"history": [["q", "a"]], "instruction": "q2", "chosen": "good", "rejected": "bad"},
        {"history": [["q", "a"]], "chosen": [MIDDLE[2], GOOD], "rejected": [MIDDLE[2], BAD]},
        {"prompt": "\n\nHuman: q\n\nAssistant: a\n\nHuman: q2\n\nAssistant:", "chosen": " good", "rejected": "bad"},
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: q2\n\nAssistant: good",
            "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: q2\n\nAssistant: bad\n\n",
        },
    ],
)  # fmt: skip
def test_preferences_over_several_turns_in_each_layout(tmp_path: Path, record: dict[str, Any]) -> None:
    """The common turns are the prompt; a system message beside them opens it."""
    (found,) = feedback(tmp_path, record)
    assert (
        said(found.prompt) == THREE and [a.strip() for a in found.answers] == ["good", "bad"] and found.scores == (1, 0)
    )
    (found,) = feedback(tmp_path, record | {"system": "s"})
    assert said(found.prompt) == [("system", "s"), *THREE]


@pytest.mark.parametrize("label", ["label", "kto_tag"])
def test_labeled_conversations(tmp_path: Path, label: str) -> None:
    (found, other) = feedback(
        tmp_path, {"messages": [*MIDDLE, GOOD], label: True}, {"prompt": "q", "completion": [BAD], label: False}
    )
    assert said(found.prompt) == THREE and found.answers == ("good",) and found.scores == (1,)
    assert said(other.prompt) == PAIR[:1] and other.answers == ("bad",) and other.scores == (0,)


@pytest.mark.parametrize(
    "bad, what",
    [
        ({"chosen": [*MIDDLE, GOOD], "rejected": [ASKED, BAD]}, "the answers differ from turn 2 on, and one has 3"),
        ({"chosen": [ASKED, GOOD], "rejected": [MIDDLE[2], BAD]}, "the answers differ from turn 1 on, and one has"),
        (
            {"prompt": "other", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
            "`prompt` is 'other', but the answers begin with 'q'",
        ),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED, GOOD]}, "are the same answer"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "`prompt` is missing, and chosen does not begin with a question"),
        ({"prompt": "q", "chosen": [ASKED], "rejected": [BAD]}, "answer 1 is a turn of the user"),
        ({"prompt": "q", "chosen": [], "rejected": [BAD]}, "`chosen` is an empty list"),
        ({"prompt": [5], "chosen": "a", "rejected": "b"}, r"`prompt` is \[5\]; expected text, or a list of messages"),
        ({"prompt": "q", "chosen": 5, "rejected": "b"}, "answer 1 is 5; expected text"),
        ({"prompt": "q", "answers": ["a", "b"], "scores": [1, 10**400]}, "expected 2 numbers"),
        ({"prompt": "q", "answers": ["a", "b"], "scores": [1, float("nan")]}, "expected 2 numbers"),
        ({"prompt": "q", "answers": ["a", "b"], "scores": [1, True]}, "expected 2 numbers"),
        ({"prompt": "q", "completion": "a", "label": 5}, "`label` is 5; expected true or false"),
        ({"prompt": "q", "label": True}, "`completion` is missing"),
        (
            {"prompt": "q", "chosen": [{"role": "assistant", "tool_calls": [{"name": "f"}]}], "rejected": [BAD]},
            "answer 1 calls a tool; expected text",
        ),
    ],
)  # fmt: skip
def test_preferences_that_cannot_be_used_are_refused(tmp_path: Path, bad: Any, what: str) -> None:
    with pytest.raises(UserError, match=what) as error:
        feedback(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"}, bad)
    assert "lines.jsonl, line 2" in str(error.value)


def test_answer_that_looks_like_a_dialogue_stays_text(tmp_path: Path) -> None:
    (found,) = feedback(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "Human: b\n\nAssistant: c"})
    assert found.answers == ("a", "Human: b\n\nAssistant: c")


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


@pytest.mark.oracle("source=sentiment", "vaderSentiment's analyser")
def test_sentiment_scores_equal_vader() -> None:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    source: Any = sources.build("sentiment", {"size": 20, "answers": 3})
    judge = SentimentIntensityAnalyzer()
    found = list(source.feedback())
    assert len(found) == 20 and found == list(source.feedback())
    for line in found:
        golds = [judge.polarity_scores(f"{line.prompt[0].text} {a}")["compound"] for a in line.answers]
        assert list(line.scores) == golds and len(set(golds)) == 3


def test_best_answers_of_feedback_become_sft_examples(tmp_path: Path) -> None:
    lines = (
        {"prompt": "a", "chosen": "good", "rejected": "bad"},
        {"prompt": "b", "answers": ["x", "y", "z"], "scores": [1, 3, 2]},
        {"prompt": "c", "completion": "no", "label": False},
        {"prompt": "d", "completion": "yes", "label": True},
    )
    (tmp_path / "f.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source: Any = sources.build("feedback", {"path": str(tmp_path / "f.jsonl")})
    assert [c.messages[-1].text for c in source.conversations()] == ["good", "y", "yes"]
    generated: Any = sources.build("sentiment", {"size": 20})
    for line, example in zip(generated.feedback(), generated.conversations(), strict=True):
        assert example.messages[:-1] == line.prompt
        assert example.messages[-1].text == line.answers[line.scores.index(max(line.scores))]
