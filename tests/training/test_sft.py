"""Fine-tuning on conversations: what is packed counts as if it stood alone, and only what was said has a loss."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics, summary

from ablatio.data.types import Message
from ablatio.model.parameter_roles import named_generator
from ablatio.registry import kinds
from ablatio.testing import sample_parts

SFT = kinds.tasks["sft"]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Small talk that a model can learn."""
    path = tmp_path / "chats.jsonl"
    asked = [
        {"prompt": f"{i} and {j}?", "completion": "even" if (i + j) % 2 == 0 else "odd"}
        for i in range(9)
        for j in range(9)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in asked), encoding="utf-8")
    return path


def settings(tmp_path: Path, chats: Path) -> list[str]:
    plain = [s for s in TINY if not s.startswith(("source", "model.max_len"))]
    return [*plain, "task=sft", "source=chats", f"source.path={chats}", f"out={tmp_path}", "model.max_len=64"]


@pytest.mark.oracle("task=sft", "cross-entropy of each conversation alone, labels -100 on what the user says")
def test_packed_rows_have_the_loss_of_each_conversation_alone() -> None:
    """In float64, with the labels that trainers of transformers take."""
    task, model = sample_parts.task(SFT)
    model = model.double().eval()
    batch = task.training[0]
    example = task.example(batch, named_generator(0, "unused"))
    assert example.segments is not None and int(example.segments.max()) > 0  # something is packed
    total, weight, _ = task.loss(model, example)
    first, count = task.setup.plan.batch(0)
    nats, tokens = torch.zeros((), dtype=torch.float64), 0
    for row in range(first, first + count):
        for i in task.rows.row(row):
            written = task.written["train"][i]
            ids = torch.from_numpy(written.ids.astype("int64"))[None]
            labels = torch.where(torch.from_numpy(written.said), ids[0], -100)
            logits = model(ids)[0, :-1]
            nats = nats + F.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
            tokens += int((labels[1:] >= 0).sum())
    assert float(weight) == tokens
    torch.testing.assert_close(total.double(), nats, rtol=1e-9, atol=1e-9)


def test_with_and_without_packing_the_same_is_learned() -> None:
    """The same conversations, the same sum of losses, the same held-out score."""
    packed, model = sample_parts.task(SFT)
    alone, _ = sample_parts.task(SFT, {"packing": False})
    found = [t.score(model, t.validation(), torch.device("cpu"), lambda n: None) for t in (packed, alone)]
    assert found[0]["tokens"] == found[1]["tokens"] and found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)


def test_what_the_user_says_gets_no_gradient() -> None:
    """The loss does not change with the logits at a question's tokens; with `prompts` it does."""
    for prompts in (False, True):
        task, model = sample_parts.task(SFT, {"prompts": prompts, "packing": False})
        example = task.example(task.training[0], named_generator(0, "unused"))
        hidden = model.model(example.inputs).detach().requires_grad_()
        losses = F.cross_entropy(model.logits(hidden).flatten(0, 1), example.targets.flatten(), reduction="none")
        (losses.view_as(example.targets) * example.weights).sum().backward()
        moved = hidden.grad.abs().sum(-1) > 0
        written = [task.written["train"][task.rows.row(g)[0]] for g in range(4)]
        for row, w in zip(moved, written, strict=True):
            expected = torch.ones(len(w) - 1, dtype=torch.bool) if prompts else torch.from_numpy(w.said[1:])
            assert torch.equal(row[: len(w) - 1], expected) and not row[len(w) - 1 :].any()


def test_a_share_of_plain_text() -> None:
    """Every fourth row is a window of the corpus, with a loss on each token; the conversations keep their order."""
    plain, _ = sample_parts.task(SFT)
    mixed, _ = sample_parts.task(SFT, {"share": 0.25, "text": "sotu"})
    for number in range(3):
        weights = mixed.training[number]["weights"]
        assert [bool(row.all()) for row in weights] == [False, False, False, True]
    taken = [mixed.row(g)["inputs"] for g in range(12) if g % 4 != 3]
    assert all(torch.equal(a, plain.row(g)["inputs"]) for g, a in enumerate(taken))


def test_a_run_resumes_bit_for_bit_and_answers(tmp_path: Path, chats: Path) -> None:
    given = [*settings(tmp_path, chats), "template=chatml"]
    whole = ablatio(["train", *given, "name=whole"], tmp_path / "log")
    assert whole.code == 0, whole.err
    cut = cut_and_resumed(given, tmp_path)
    assert metrics(cut) == metrics(tmp_path / "whole")
    assert (cut / "samples.jsonl").read_text() == (tmp_path / "whole/samples.jsonl").read_text()
    rows = [json.loads(line) for line in (cut / "samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {0, 6, 12} and rows[0].keys() == {"step", "prompt", "answer", "expected"}
    result: Any = summary(cut)
    sides = [(row["prompt"], row["expected"], row["before"], row["after"]) for row in result["samples"]]
    first, last = ([row for row in rows if row["step"] == step] for step in (0, 12))
    assert sides == [(b["prompt"], b["expected"], b["answer"], a["answer"]) for b, a in zip(first, last, strict=True)]
    said = (tmp_path / "log/out").read_text()
    assert "before" in said and sides[0][0] in said
    assert ablatio(["report", str(cut)], tmp_path / "log").code == 0
    told = (cut / "report/report.md").read_text(), (cut / "report/report.html").read_text()
    assert sides[0][0] in (tmp_path / "log/out").read_text() and f"    {sides[0][1]}" in told[0]
    assert json.dumps(sides[0][0])[1:-1] in told[1]
    assert result["score"] == {"name": "val/loss", "value": result["after"]["loss"], "better": "lower"}
    spoken = ablatio(["generate", str(cut), "1 and 2?", "--chat", "--tokens", "8"], tmp_path / "log")
    assert spoken.code == 0 and "<|im" not in spoken.out
    scored = ablatio(["evaluate", str(cut), "--json", "--tokens", "256"], tmp_path / "log")
    assert json.loads(scored.out)["scores"][0]["loss"] == pytest.approx(result["val/loss"])


@pytest.mark.slow
def test_a_small_model_learns_to_answer(tmp_path: Path, chats: Path) -> None:
    given = [*settings(tmp_path, chats), "train.steps=150", "train.val_every=null", "train.checkpoint_every=null"]
    given += ["model.d_model=32", "train.batch_size=8", "train.log_every=50", "optimizer.lr=3e-3", "name=run"]
    assert ablatio(["train", *given], tmp_path / "log").code == 0
    rows = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert all(row["answer"].strip() in ("even", "odd") for row in rows if row["step"] == 150)


def test_a_run_that_is_no_chat_is_refused_as_one(tmp_path: Path, text_file: Path) -> None:
    given = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "name=run", "template=chatml", "train.steps=2"]
    assert ablatio(["train", *given], tmp_path / "log").code == 0
    refused = ablatio(["generate", str(tmp_path / "run"), "Who?", "--chat"], tmp_path / "log")
    assert refused.code == 2 and "is not a chat run" in refused.err


@pytest.mark.parametrize(
    "extra, what",
    [
        (["source=sotu", "source.path=null"], "task=sft accepts conversations"),
        (["model.max_len=4"], "the train split is empty"),
        (["task.too_long=refuse", "model.max_len=20"], r"chats.jsonl:1: \d+ tokens came"),
        (["architecture=encoder", "objective=masked_lm"], "task=sft trains a decoder"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, chats: Path, extra: list[str], what: str) -> None:
    import re

    given = [s for s in settings(tmp_path, chats) if not (s.startswith("source") and extra[0] == "source=sotu")]
    extra = [s for s in extra if s != "source.path=null"]
    given = [s for s in given if s.split("=")[0] not in {e.split("=")[0] for e in extra}]
    ended = ablatio(["train", *given, *extra, "name=run"], tmp_path / "log")
    assert ended.code == 2 and re.search(what, ended.err), ended.err


def test_the_same_question_never_stands_on_both_sides() -> None:
    task, _ = sample_parts.task(SFT)
    sides: list[Any] = [{c.messages[0] for c in task.held[split]} for split in ("train", "validation")]
    assert sides[0] and sides[1] and not sides[0] & sides[1] and isinstance(next(iter(sides[0])), Message)
