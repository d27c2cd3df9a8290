"""Fine-tuning on conversations: packing does not change the loss, and only answer tokens have a loss."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics, summary

from ablatio.data.order import RowPlan
from ablatio.data.types import Message
from ablatio.model.parameter_roles import named_generator
from ablatio.registry import kinds
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import sample_parts, tiny_models
from ablatio.training.initial_weights import start_model
from ablatio.training.task_context import TaskContext

SFT = kinds.tasks["sft"]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Short learnable conversations: whether the sum of two numbers is even or odd."""
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
def test_packed_loss_equals_sum_over_single_conversations() -> None:
    """In float64, with labels of -100 as in transformers."""
    task, model = sample_parts.task(SFT)
    model = model.double().eval()
    batch = task.training[0]
    example = task.example(batch, named_generator(0, "unused"))
    assert example.segments is not None and int(example.segments.max()) > 0  # at least one row is packed
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


def weighted(tmp_path: Path, knobs: dict[str, Any], parts: dict[str, Any]) -> tuple[Any, Any]:
    """A task on conversations whose first answer has weight 0 or 0.25, and its model; one conversation has no loss."""

    def turn(role: str, text: str, **beside: Any) -> dict[str, Any]:
        return {"role": role, "content": text, **beside}

    rows = [
        [
            turn("user", f"{i}?"), turn("assistant", "wrong", weight=(0, 0.25)[i % 2]),
            turn("user", "again"), turn("assistant", f"right {i}"),
        ]
        for i in range(24)
    ]  # fmt: skip
    rows.append([turn("user", "none?"), turn("assistant", "no", train=False)])
    path = tmp_path / "weighted.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")
    given = tiny_models.config(SFT, knobs, max_len=160) | parts
    given["data"] |= {"val_fraction": 0.3}
    given["train"] |= {"batch_size": 4}
    given["source"] = {"name": "chats", **kinds.sources["chats"].defaults, "path": str(path)}
    given["tokenizer"] = {"name": "bytes"}
    setup = TaskContext(given, RowPlan(4))
    task = sample_parts.made(SFT, knobs, setup=setup)
    return task, start_model(given, task.tokenizer, 0)[0].double().eval()


@pytest.mark.parametrize("knobs", [{"packing": p, "prompts": q} for p in (True, False) for q in (True, False)])
def test_loss_of_a_turn_counts_with_its_weight(tmp_path: Path, knobs: dict[str, bool]) -> None:
    """Oracle: each conversation by itself, with the tokens of each turn found by the template's text."""
    task, model = weighted(tmp_path, knobs, {})
    total, weight, _ = task.loss(model, task.example(task.training[0], named_generator(0, "unused")))
    first, count = task.setup.plan.batch(0)
    nats, tokens = torch.zeros((), dtype=torch.float64), 0.0
    for i in [i for row in range(first, first + count) for i in task.rows.row(row)]:
        messages = task.held["train"][i].messages
        ids = torch.from_numpy(task.written["train"][i].ids.astype("int64"))
        losses = F.cross_entropy(model(ids[None])[0, :-1], ids[1:], reduction="none")
        # The bytes of the text, after the token that opens it, are "User: 3?\nAssistant: wrong" and the end token.
        factors, at = torch.full((len(ids) - 1,), float(knobs["prompts"])).double(), 0
        for message in messages:
            if message.role == "assistant":
                size = len(f" {message.text}") + 1
                at += len("Assistant:")
                factors[at : at + size] = message.weight
                at += size + 1
            else:
                at += len(f"User: {message.text}\n")
        assert at == len(losses)
        nats, tokens = nats + (losses * factors).sum(), tokens + float(factors.sum())
    assert float(weight) == pytest.approx(tokens)
    torch.testing.assert_close(total.double(), nats, rtol=1e-9, atol=1e-9)
    left_out = sum(task.content[split].get("without_loss", 0) for split in ("train", "validation"))
    assert left_out == (0 if knobs["prompts"] else 1)


def test_source_and_target_have_the_weights_of_their_answer(tmp_path: Path) -> None:
    """An answer of weight 0 is no target of its own, but stays in the source of the next one."""
    parts = {
        kind: {"name": name, **REGISTRIES[kind][name].defaults}
        for kind, name in (("architecture", "encoder_decoder"), ("objective", "span_corruption"))
    }
    task, _ = weighted(tmp_path, {}, parts)
    pieces = [*zip(task.held["train"], task.written["train"], strict=True)]
    texts = [(task.tokenizer.decode(p.ids[p.said][:-1].tolist()).strip(), p, c) for c, p in pieces]
    assert {text for text, _, c in texts if c.messages[1].weight == 0} == {
        c.messages[3].text for c, _ in pieces if c.messages[1].weight == 0
    }
    for text, piece, c in texts:
        assert set(piece.loss_weights[piece.said].tolist()) == {0.25 if text == "wrong" else 1.0}
        source = task.tokenizer.decode(piece.ids[~piece.said].tolist())
        assert ("wrong" in source) == (text != "wrong") and len(c.messages) == 4
        row = task.reading.row([piece])
        assert row["weights"].tolist() == piece.loss_weights[piece.said].tolist()


def test_packing_does_not_change_the_score() -> None:
    """The held-out loss and its number of tokens are the same with and without packing."""
    packed, model = sample_parts.task(SFT)
    alone, _ = sample_parts.task(SFT, {"packing": False})
    found = [t.score(model, t.validation(), torch.device("cpu"), lambda n: None) for t in (packed, alone)]
    assert found[0]["tokens"] == found[1]["tokens"] and found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)


def test_user_tokens_get_no_gradient() -> None:
    """Hidden states at question tokens have zero gradient, unless task.prompts=true."""
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


def test_share_of_plain_text_rows() -> None:
    """With share=0.25 every fourth row is plain text with a loss on each token; conversations keep their order."""
    plain, _ = sample_parts.task(SFT)
    mixed, _ = sample_parts.task(SFT, {"share": 0.25, "text": "sotu"})
    for number in range(3):
        weights = mixed.training[number]["weights"]
        assert [bool(row.all()) for row in weights] == [False, False, False, True]
    taken = [mixed.row(g)["inputs"] for g in range(12) if g % 4 != 3]
    assert all(torch.equal(a, plain.row(g)["inputs"]) for g, a in enumerate(taken))


def test_killed_run_resumes_bit_for_bit_and_generates_answers(tmp_path: Path, chats: Path) -> None:
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
    output = (tmp_path / "log/out").read_text()
    assert "before" in output and sides[0][0] in output
    assert ablatio(["report", str(cut)], tmp_path / "log").code == 0
    reports = (cut / "report/report.md").read_text(), (cut / "report/report.html").read_text()
    assert sides[0][0] in (tmp_path / "log/out").read_text() and f"    {sides[0][1]}" in reports[0]
    assert json.dumps(sides[0][0])[1:-1] in reports[1]
    assert result["score"] == {"name": "val/loss", "value": result["after"]["loss"], "better": "lower"}
    generated = ablatio(["generate", str(cut), "1 and 2?", "--chat", "--tokens", "8"], tmp_path / "log")
    assert generated.code == 0 and "<|im" not in generated.out
    scored = ablatio(["evaluate", str(cut), "--json", "--tokens", "256"], tmp_path / "log")
    assert json.loads(scored.out)["scores"][0]["loss"] == pytest.approx(result["val/loss"])


@pytest.mark.slow
def test_small_model_learns_to_answer(tmp_path: Path, chats: Path) -> None:
    given = [*settings(tmp_path, chats), "train.steps=150", "train.val_every=null", "train.checkpoint_every=null"]
    given += ["model.d_model=32", "train.batch_size=8", "train.log_every=50", "optimizer.lr=3e-3", "name=run"]
    assert ablatio(["train", *given], tmp_path / "log").code == 0
    rows = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert all(row["answer"].strip() in ("even", "odd") for row in rows if row["step"] == 150)


def test_generate_chat_requires_a_chat_run(tmp_path: Path, text_file: Path) -> None:
    given = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "name=run", "template=chatml", "train.steps=2"]
    assert ablatio(["train", *given], tmp_path / "log").code == 0
    refused = ablatio(["generate", str(tmp_path / "run"), "Who?", "--chat"], tmp_path / "log")
    assert refused.code == 2 and "was trained without the special" in refused.err


@pytest.mark.parametrize(
    "extra, what",
    [
        (["source=sotu", "source.path=null"], "task=sft accepts conversations"),
        (["model.max_len=4"], "the train split is empty"),
        (["task.too_long=refuse", "model.max_len=20"], r"chats.jsonl:1: \d+ tokens, but a row holds 20"),
        (["architecture=encoder", "objective=masked_lm"], "task=sft trains a decoder"),
    ],
)
def test_incompatible_settings_are_rejected(tmp_path: Path, chats: Path, extra: list[str], what: str) -> None:
    import re

    given = [s for s in settings(tmp_path, chats) if not (s.startswith("source") and extra[0] == "source=sotu")]
    extra = [s for s in extra if s != "source.path=null"]
    given = [s for s in given if s.split("=")[0] not in {e.split("=")[0] for e in extra}]
    ended = ablatio(["train", *given, *extra, "name=run"], tmp_path / "log")
    assert ended.code == 2 and re.search(what, ended.err), ended.err


def test_train_and_validation_share_no_question() -> None:
    task, _ = sample_parts.task(SFT)
    sides: list[Any] = [{c.messages[0] for c in task.held[split]} for split in ("train", "validation")]
    assert sides[0] and sides[1] and not sides[0] & sides[1] and isinstance(next(iter(sides[0])), Message)


@pytest.mark.parametrize(
    ("task", "rows", "same"),
    [
        ("sft", [{"prompt": "Go on.", "completion": f"a{i}"} for i in range(30)], "the same first question"),
        (
            "reward",
            [{"prompt": "Go on.", "chosen": f"a{i}", "rejected": "b"} for i in range(30)],
            "the same prompt",
        ),
    ],
)
def test_equal_first_questions_are_the_message_and_the_suggestion_runs(
    tmp_path: Path, task: str, rows: list[Any], same: str
) -> None:
    path = tmp_path / "same.jsonl"
    path.write_text("".join(json.dumps(row | {"lang": "en"}) + "\n" for row in rows), encoding="utf-8")
    given = [s for s in settings(tmp_path, path) if not s.startswith(("task", "source="))] + [
        "train.steps=2",
        "name=run",
    ]
    given += [f"task={task}", "source=" + ("chats" if task == "sft" else "feedback")]
    refused = ablatio(["train", *given], tmp_path / "log")
    assert refused.code == 2 and f"have {same}, and equal ones stay in one split" in refused.err
    done = ablatio(["train", *given, "source.split_by=all", "name=all"], tmp_path / "log")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "all/manifest.json").read_text())["data"]["unused_fields"] == {"lang": 30}
    assert done.err.count("does not use these fields") + done.out.count("does not use these fields") == 1
