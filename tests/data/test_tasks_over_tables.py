"""Tasks over tables: patterns with columns, and the template that writes a description, reversed or not."""

from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from ablatio import sources
from ablatio.data.chat import EOS
from ablatio.data.types import Message
from ablatio.errors import UserError
from ablatio.registry.kinds import templates

TABLE = "premise,hypothesis,label\nIt rains.,It is wet.,2\nIt rains.,It is dry.,0\nHe sings.,He is good.,1\n"


def pairs(path: Path, **knobs: Any) -> list[tuple[str, str]]:
    made: Any = sources.build("table", {"path": str(path), **knobs})
    return [(c.messages[0].text, c.messages[1].text) for c in made.conversations()]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_text(TABLE)
    return tmp_path / "a.csv"


FORWARD = {"prompt": ("{premise} Then: {hypothesis}",), "answer": ("{label:no|maybe|yes}",)}
BACK = {"prompt": ("{label:no|maybe|yes}: {premise}",), "answer": ("{hypothesis}",)}


@pytest.mark.oracle("source=table", "texts written by hand")
def test_patterns_are_filled_with_cells(table: Path) -> None:
    assert pairs(table, **FORWARD) == [
        ("It rains. Then: It is wet.", "yes"), ("It rains. Then: It is dry.", "no"),
        ("He sings. Then: He is good.", "maybe"),
    ]  # fmt: skip
    assert pairs(table, **BACK)[0] == ("yes: It rains.", "It is wet.")


def test_several_patterns_per_row(table: Path) -> None:
    both = {name: FORWARD[name] + BACK[name] for name in FORWARD}
    every = pairs(table, **both, patterns="all")
    assert len(every) == 6 and every[0::2] == pairs(table, **FORWARD) and every[1::2] == pairs(table, **BACK)
    one = pairs(table, **both)
    assert len(one) == 3 and set(one) <= set(every) and one == pairs(table, **both)
    made: Any = sources.build("table", {"path": str(table), **both, "patterns": "all"})
    keys = [c.split_key for c in made.conversations()]
    assert keys[0::2] == keys[1::2] and len(set(keys)) == 3  # both ways of a row are in one split


def test_bad_tables_are_named(table: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'premis'; expected one of its columns: premise, hypothesis, label"):
        pairs(table, prompt=("{premis}",), answer=("{label}",))
    with pytest.raises(UserError, match="2 pattern"):
        pairs(table, prompt=("{premise}", "x"), answer=("{label}",))
    with pytest.raises(UserError, match=r"line 2: the column 'label' holds '2'; expected a number from 0 to 1"):
        pairs(table, prompt=("{premise}",), answer=("{label:no|yes}",))
    assert len(pairs(table, prompt=("{premise}",), answer=("{label:no|yes}",), on_error="skip")) == 2


MESSAGES = [Message("user", "2 + 2?"), Message("assistant", "4", weight=0.5), Message("user", "3 + 3?")]


def written(answering: bool = True, messages: list[Message] = MESSAGES, **knobs: Any) -> list[tuple[str, bool, float]]:
    form: Any = templates.build("task", knobs)
    return [("</s>" if s.text == EOS else s.text, s.said, s.weight) for s in form(messages, answering)]


def test_task_template_by_hand() -> None:
    assert written(description="Add.") == [
        ("Add.\n\n", False, 1.0), ("Input: 2 + 2?\n\n", False, 1.0), ("Output:", False, 1.0), (" 4", True, 0.5),
        ("</s>", True, 0.5), ("\n\nInput: 3 + 3?\n\n", False, 1.0), ("Output:", False, 1.0),
    ]  # fmt: skip
    reverse = "".join(text for text, *_ in written(False, MESSAGES[:2], reversed=True, output="A", input="Q"))
    assert reverse == "A: 4\n\nQ: 2 + 2?</s>"
    assert [t for t, said, _ in written(False, MESSAGES[:2], reversed=True) if said] == [" 2 + 2?", "</s>"]
    asked = [Message("system", "Given the sum, ask."), Message("user", "4")]
    assert "".join(t for t, *_ in written(True, asked, reversed=True)) == "Given the sum, ask.\n\nOutput: 4\n\nInput:"


@pytest.mark.oracle("template=task", "its Jinja form, rendered by transformers")
@pytest.mark.parametrize("answering", [False, True])
@pytest.mark.parametrize("description", ["", "It's a task."])
def test_task_template_equals_its_jinja_form(answering: bool, description: str) -> None:
    form: Any = templates.build("task", {"description": description})
    plain = [{"role": m.role, "content": m.text} for m in MESSAGES]
    (found,), _ = render_jinja_template(
        [plain], chat_template=form.jinja, add_generation_prompt=answering, bos_token="", eos_token="</s>"
    )
    assert found == "".join(text for text, *_ in written(answering, description=description))
