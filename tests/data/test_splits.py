"""Train-validation split: determined by the text alone, and disjoint."""

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablatio import sources
from ablatio.data.splits import TrainValSplit, hash_split, key_split, refuse_empty_split, split_rule
from ablatio.data.types import Conversation, Document, Message
from ablatio.errors import UserError
from ablatio_std.sources import ChineseClassics, StateOfTheUnion

HELD_OUT = [
    "1796 George Washington", "1800 John Adams", "1826 John Quincy Adams", "1827 John Quincy Adams", "1844 John Tyler",
    "1852 Millard Fillmore", "1868 Andrew Johnson", "2000 William J Clinton", "2001 George W Bush",
    "2002 George W Bush", "2003 George W Bush", "2004 George W Bush", "2005 George W Bush", "2006 George W Bush",
    "2010 Barack Obama", "2012 Barack Obama", "2015 Barack Obama", "2016 Barack Obama", "2021 Joseph R Biden",
]  # fmt: skip


def texts(division: TrainValSplit, split: Any) -> list[str]:
    return [document.text for document in division.documents(split)]


def test_hash_split_depends_on_the_text_only(toy: Any) -> None:
    source, mirrored = toy(), toy()
    mirrored.given = mirrored.given[::-1][:30]
    held_out = set(texts(TrainValSplit(source, 0.3), "validation"))
    assert held_out >= set(texts(TrainValSplit(mirrored, 0.3), "validation"))
    assert set(texts(TrainValSplit(source, 0.1), "validation")) <= held_out  # a larger fraction adds and never swaps
    assert held_out.isdisjoint(texts(TrainValSplit(source, 0.3), "train"))


def test_split_fraction_and_rule_are_fixed() -> None:
    digests = [hashlib.sha256(str(i).encode()).digest() for i in range(5000)]
    share = sum(hash_split(digest, 0.2) == "validation" for digest in digests) / 5000
    assert abs(share - 0.2) < 0.02
    assert hash_split(bytes(32), 0.0) == "train" and hash_split(b"\xff" * 32, 0.999) == "train"
    assert hash_split(b"\x33" + bytes(31), 0.2) == "validation" and hash_split(b"\x34" + bytes(31), 0.2) == "train"
    assert split_rule(0.05) == "split-1:0.05"


def test_training_copies_of_held_out_texts_are_dropped(toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    source = toy([Document("same", "1", "train"), Document("same", "2", "validation"), Document("other", "3", "train")])
    division = TrainValSplit(source, 0.5)
    with caplog.at_level(logging.WARNING, "ablatio"):
        assert texts(division, "train") == ["other"] and texts(division, "validation") == ["same"]
        assert texts(division, "train") == ["other"]
    assert [record.message for record in caplog.records] == [
        "1 training document(s) repeat the text of a held-out one and are left out"
    ]


def test_equal_texts_get_the_same_split(toy: Any) -> None:
    division = TrainValSplit(toy([Document(f"text {i % 20}", str(i)) for i in range(60)]), 0.4)
    assert len(texts(division, "train")) % 3 == 0 and set(texts(division, "train")).isdisjoint(
        texts(division, "validation")
    )


@pytest.mark.parametrize(
    ("documents", "match"),
    [
        ([], "no document with text"),
        ([Document(" \n", "1"), Document("", "2")], "no document with text"),
        ([Document("a", "1", "train")], "validation split is empty: the source has 1 document"),
        ([Document("a", "1", "validation"), Document("a", "2", "train")], "train split is empty"),
        ([Document("a", "1", "test")], "'1' has split='test'; expected 'train', 'validation' or ''"),  # type: ignore[arg-type]
        ([Document("a\ud800", "7")], "'7': character 1 is half of a surrogate pair"),
    ],
)
def test_invalid_splits_are_refused(toy: Any, documents: list[Document], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        texts(TrainValSplit(toy(documents), 0.1), "train")
    assert "try: " in str(caught.value)


def test_state_of_the_union_split_is_fixed_and_disjoint() -> None:
    documents = list(StateOfTheUnion().documents())
    held_out = [d for d in documents if d.split == "validation"]
    training = [d for d in documents if d.split == "train"]
    assert [d.id for d in held_out] == HELD_OUT
    assert len(training) == 213 and len({d.id for d in documents}) == 232
    assert {d.text for d in held_out}.isdisjoint(d.text for d in training)
    shared = {words for d in held_out for words in spans(d.text)}
    for document in training:  # a near copy would share most of its spans; formulas of greeting are below 1 %
        own = spans(document.text)
        assert len(own & shared) < 0.02 * len(own), document.id


def spans(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[i : i + 8]) for i in range(len(words) - 7)}


def test_the_classics_are_held_out_by_hash() -> None:
    documents = list(ChineseClassics().documents())
    assert len(documents) == 21_197 and {d.split for d in documents} == {""}
    assert len({d.id for d in documents}) == len(documents)


CHATS = sources.build("chats", {})


def chats(*questions: str) -> list[Conversation]:
    return [
        Conversation((Message("user", q), Message("assistant", f"answer {i}")), str(i)) for i, q in enumerate(questions)
    ]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=4), min_size=1, max_size=30), st.floats(0, 1))
def test_every_empty_split_has_a_message_whose_suggestion_fills_both(questions: list[str], fraction: float) -> None:
    """The suggested setting is applied: afterwards neither split is empty."""
    items = [replace(c, key=c.messages[0].text or "empty") for c in chats(*questions)]
    try:
        refuse_empty_split(CHATS, items, fraction, "conversations", "first question")
    except UserError as error:
        message = str(error)
    else:
        assert {key_split(item, fraction) for item in items} == {"train", "validation"}
        return
    keys = {item.split_key for item in items}
    if len(keys) > 1:
        suggested = float(message.partition("try: data.val_fraction=")[2])
        refuse_empty_split(CHATS, items, suggested, "conversations", "first question")
        assert f"have {len(keys)} different ones" in message
    elif len(items) > 1:
        assert f"all {len(items)} conversations have the same first question" in message
        assert "try: source.split_by=all" in message
        items = [replace(item, key=item.text) for item in items]
        assert len({item.split_key for item in items}) == len(items)
    else:
        assert "a source with more than one" in message


def test_split_of_a_source_without_items_and_of_named_splits() -> None:
    with pytest.raises(UserError, match="try: data with another first question"):
        refuse_empty_split(None, chats("a", "a"), 0.5, "conversations", "first question")
    with pytest.raises(UserError, match="the source has no conversations"):
        refuse_empty_split(CHATS, [], 0.5, "conversations", "first question")
    named = [replace(c, split="train") for c in chats("a", "b")]
    with pytest.raises(UserError, match="the validation split is empty: the source assigns all 2 conversations"):
        refuse_empty_split(CHATS, named, 0.5, "conversations", "first question")


def test_equal_questions_can_be_split_by_all_that_they_hold(tmp_path: Path) -> None:
    """60 conversations with one question, and 60 pairs with one prompt: refused, and the suggested setting works."""
    answers = [{"prompt": "Go on.", "completion": f"a{i}"} for i in range(60)]
    pairs = [{"prompt": "Go on.", "chosen": f"a{i}", "rejected": "b"} for i in range(60)]
    for name, method, rows in (("chats", "conversations", answers), ("feedback", "feedback", pairs)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        made: list[Any] = [sources.build(name, {"path": str(file)} | by) for by in ({}, {"split_by": "all"})]
        first, second = (list(getattr(source, method)()) for source in made)
        with pytest.raises(UserError, match=r"all 60 .* have the same"):
            refuse_empty_split(CHATS, first, 0.2, "items", "text")
        refuse_empty_split(CHATS, second, 0.2, "items", "text")
        assert made[0].fingerprint() != made[1].fingerprint()


def test_equal_documents_are_counted_in_the_message(toy: Any) -> None:
    with pytest.raises(UserError, match=r"60 document\(s\) with 1 different text\(s\)"):
        texts(TrainValSplit(toy([Document("same", str(i)) for i in range(60)]), 0.1), "train")
    documents = [Document(f"text {i}", str(i)) for i in range(3)]
    with pytest.raises(UserError) as error:
        texts(TrainValSplit(toy(documents), 1e-9), "train")
    suggested = float(str(error.value).partition("try: data.val_fraction=")[2].partition(",")[0])
    division = TrainValSplit(toy(documents), suggested)
    assert texts(division, "train") and texts(division, "validation")
