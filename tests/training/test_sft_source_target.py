"""Fine-tuning with a bidirectional source and a causal target: the T5 family and prefix decoders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics, summary

from ablatio.data.chat import write
from ablatio.data.types import Message
from ablatio.model.example import Example
from ablatio.model.kv_cache import KVCache
from ablatio.model.parameter_roles import named_generator
from ablatio.registry import kinds
from ablatio.registry.registry import REGISTRIES
from ablatio.testing import sample_parts
from ablatio_std.tasks._conversations import SourceTargetFormat

SFT = kinds.tasks["sft"]


def part(kind: str, name: str, **knobs: Any) -> dict[str, Any]:
    return {"name": name, **REGISTRIES[kind][name].defaults, **knobs}


T5 = {
    "architecture": part("architecture", "encoder_decoder"),
    "objective": part("objective", "span_corruption", sentinels=10),
    "position": part("position", "t5"),
    "norm": part("norm", "rmsnorm"),
    "activation": part("activation", "relu"),
    "model": {"attention_scale": 1.0, "logit_scale": 32**-0.5, "bias": False},
}
PREFIX = {"architecture": part("architecture", "prefix"), "objective": part("objective", "prefix_lm")}


@pytest.mark.oracle("task=sft", "transformers' T5, with labels, one conversation at a time")
@pytest.mark.parametrize("packing", [True, False])
def test_loss_matches_t5_of_transformers(packing: bool) -> None:
    """The encoder gets the prompt; the decoder gets the start token and predicts the answer with its end token."""
    import transformers

    from ablatio.interop.families import family_of

    task, model = sample_parts.task(SFT, {"packing": packing}, **T5)
    family = family_of(task.setup.config, task.tokenizer.vocab_size, task.tokenizer.eos)
    assert family is not None and family.model_type == "t5"
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**family.config_json())).eval()
    missing = theirs.load_state_dict(family.to_native(model.state_dict()), strict=False)
    assert not missing.unexpected_keys
    example = task.example(task.training[0], named_generator(0, "unused"))
    if packing:
        assert int(example.source_segments.max()) > 0  # at least one row is packed
    total, weight, _ = task.loss(model.eval(), example)
    first, count = task.setup.plan.batch(0)
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for place in [i for row in range(first, first + count) for i in task.rows.row(row)]:
            messages = task.held["train"][place].messages
            asked, whole = (write(task.tokenizer, task.form, [m], a)[0] for m, a in ((messages[:-1], 1), (messages, 0)))
            if len(whole) != len(task.written["train"][place]):
                asked = None  # a long question whose beginning was cut off
            written = task.written["train"][place]
            answer_ids = torch.from_numpy(written.ids[written.said].astype("int64"))[None]
            source = torch.from_numpy((written.ids[~written.said] if asked is None else asked.ids).astype("int64"))
            nats += float(theirs(input_ids=source[None], labels=answer_ids).loss) * answer_ids.numel()
            tokens += answer_ids.numel()
    assert float(weight) == tokens
    assert float(total.detach()) == pytest.approx(nats, rel=1e-4)


def test_each_answer_is_conditioned_on_all_previous_turns() -> None:
    task, _ = sample_parts.task(SFT, {}, **T5)
    turns = [Message("user", "One?"), Message("assistant", "1"), Message("user", "Two?"), Message("assistant", "22")]
    whole = write(task.tokenizer, task.form, [turns])[0]
    first, second = task.reading.pieces(whole)
    for piece, before, answer in ((first, turns[:1], "1"), (second, turns[:3], "22")):
        asked = write(task.tokenizer, task.form, [before], answering=True)[0]
        assert piece.ids[~piece.said].tolist() == asked.ids.tolist(), "training must use the prompts of generation"
        assert task.tokenizer.decode(piece.ids[piece.said][:-1].tolist()).strip() == answer
    answer_ids = np.concatenate([p.ids[p.said] for p in (first, second)])
    # The tokens with a loss are those of a decoder-only model.
    assert answer_ids.tolist() == whole.ids[whole.said].tolist()


@pytest.mark.parametrize("parts", [T5, PREFIX], ids=["encoder_decoder", "prefix"])
def test_cached_decoding_matches_training_logits(parts: dict[str, Any]) -> None:
    """Logits of cached decoding after the prompt equal those of the training forward pass."""
    task, model = sample_parts.task(SFT, {}, **parts)
    model.double().eval()
    piece = task.written["validation"][0]
    example = task.reading.example(task._batch([task.reading.row([piece])]))
    with torch.no_grad():
        asked = torch.from_numpy(piece.ids[~piece.said].astype("int64"))
        answer_ids = piece.ids[piece.said].astype("int64")
        cache = KVCache()
        found = [model.read(asked[None], None, cache)]
        found += [model.extend(torch.tensor([[int(token)]]), cache) for token in answer_ids[:-1]]
        wanted = model.logits(model.hidden(example))[0, : len(answer_ids)]
    torch.testing.assert_close(torch.cat(found), wanted, rtol=1e-9, atol=1e-9)


def test_plain_text_rows_use_the_pretraining_objective() -> None:
    """With share=0.5 every second row is plain text; conversations keep their order."""
    alone, _ = sample_parts.task(SFT, {}, **T5)
    mixed, _ = sample_parts.task(SFT, {"share": 0.5, "text": "sotu"}, **T5)
    for number in range(4):
        row = mixed.row(number)
        if number % 2:
            windows, order = mixed.plain
            tokens = windows(order.starts(np.array([number // 2])))
            assert isinstance(mixed.reading, SourceTargetFormat)
            made: Example = mixed.reading.objective(
                tokens, None, named_generator(mixed.setup.seeds.data, f"text/{number // 2}")
            )
            assert torch.equal(row["source"], made.source[0]) and torch.equal(row["targets"], made.targets[0])
            assert int(row["source"].max()) >= mixed.tokenizer.vocab_size, "rows of plain text contain sentinels"
        else:
            assert torch.equal(row["source"], alone.row(number // 2)["source"])


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    asked = [{"prompt": f"{i} and {j}?", "completion": "even" if (i + j) % 2 == 0 else "odd"}
             for i in range(9) for j in range(9)]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in asked), encoding="utf-8")
    return path


def settings(tmp_path: Path, chats: Path, *more: str) -> list[str]:
    plain = [s for s in TINY if not s.startswith(("source", "model.max_len"))]
    return [*plain, "task=sft", "source=chats", f"source.path={chats}", f"out={tmp_path}", "model.max_len=64", *more]


T5_PARTS = "preset=t5", "size=tiny", "template=chatml", "optimizer=adamw", "schedule=constant", "objective.sentinels=10"


def test_encoder_decoder_resumes_bit_for_bit_and_generates_answers(tmp_path: Path, chats: Path) -> None:
    given = settings(tmp_path, chats, *T5_PARTS, "peft=lora")
    whole = ablatio(["train", *given, "name=whole"], tmp_path / "log")
    assert whole.code == 0, whole.err
    cut = cut_and_resumed(given, tmp_path)
    assert metrics(cut) == metrics(tmp_path / "whole")
    result: Any = summary(cut)
    assert result["samples"][0].keys() == {"prompt", "expected", "before", "after"}
    generated = ablatio(["generate", str(cut), "1 and 2?", "--chat", "--tokens", "8"], tmp_path / "log")
    assert generated.code == 0 and "<|im" not in generated.out
    scored = ablatio(["evaluate", str(cut), "--json", "--tokens", "256"], tmp_path / "log")
    assert json.loads(scored.out)["scores"][0]["loss"] == pytest.approx(result["val/loss"])


@pytest.mark.slow
@pytest.mark.parametrize("parts", [T5_PARTS, ("architecture=prefix", "objective=prefix_lm")], ids=["t5", "prefix"])
def test_small_model_learns_to_answer(tmp_path: Path, chats: Path, parts: tuple[str, ...]) -> None:
    given = settings(tmp_path, chats, *parts, "train.steps=150", "train.val_every=null", "train.checkpoint_every=null")
    given += ["model.d_model=32", "train.batch_size=8", "optimizer.lr=5e-3", "name=run"]
    done = ablatio(["train", *given], tmp_path / "log")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert all(row["answer"].strip() in ("even", "odd") for row in rows if row["step"] == 150), rows


def test_t5_folder_of_transformers_is_fine_tuned_and_exported(tmp_path: Path, chats: Path) -> None:
    """`model=hf` with T5: weights are imported, an adapter is trained, transformers loads the merged export."""
    import transformers

    from ablatio.testing.sample_files import sample_tokenizer

    folder = tmp_path / "t5"
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=310, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=2, pad_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((sample_tokenizer() / "tokenizer.json").read_bytes())
    plain = [s for s in settings(tmp_path, chats) if not s.startswith(("model", "tokenizer"))]
    given = [*plain, "model=hf", f"model.path={folder}", "data.length=64", "peft=lora", "template=chatml", "name=run"]
    tuned = ablatio(["train", *given, "objective.sentinels=10"], tmp_path / "log")
    assert tuned.code == 0, tuned.err
    result: Any = summary(tmp_path / "run")
    assert result["after"]["loss"] < result["before"]["loss"]
    ended = ablatio(["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")], tmp_path / "log")
    assert ended.code == 0 and "as t5, logits within" in ended.out, ended.err


def test_prompt_loss_is_rejected_for_encoder_decoders(tmp_path: Path, chats: Path) -> None:
    given = settings(tmp_path, chats, *T5_PARTS, "train.steps=2", "name=run", "task.prompts=true")
    refused = ablatio(["train", *given], tmp_path / "log")
    assert refused.code == 2 and "predicts only answers" in refused.err, refused.err
    fix = refused.err.split("try: ")[1].split()[0]
    assert ablatio(["train", *given[:-1], fix], tmp_path / "log").code == 0
