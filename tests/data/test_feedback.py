"""Sources of feedback: every layout; a bad line is reported with its file and number."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.conversation_files import ANSWERED, ASKED, PAIR, lines, said

from ablatio import sources
from ablatio.errors import UserError


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
