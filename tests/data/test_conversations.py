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
