"""bos, eos and the decoder's start, id by id as in transformers: training, generation, preferences and exports."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf
import torch
from helpers.runs import TINY, ablatio
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from ablatio.config.compose import compose_run
from ablatio.data.chat import with_special_tokens, write
from ablatio.data.types import Message, start_id
from ablatio.interop.export import export
from ablatio.model.build import build_model
from ablatio.model.decoding.generate import Request, Sampling, complete, generate
from ablatio.model.example import Example
from ablatio.model.kv_cache import KVCache
from ablatio.model.language_model import eos_to_the_end
from ablatio.registry.kinds import templates, tokenizers
from ablatio.training.initial_weights import take_over
from ablatio.training.restore import restore_model

TEXTS = ["Add 0 and 1. The sum is 1.", "How many are 2 and 3? The sum is 5!", "Two lines\nof text  with spaces"]
WORDS = sorted({f" {word}" for text in TEXTS for word in text.split()})
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Add 0 and 1."},
    {"role": "assistant", "content": "The sum is 1."},
    {"role": "user", "content": "\nAnd  2 and 3?"},
    {"role": "assistant", "content": "\n5"},
]
FORMS = ("prepended", "metaspace", "metaspace first", "bytes")


def tokenizer_folder(folder: Path, form: str, adds: str = "<s> $A", *, whole: bool = False) -> Path:
    """A small BPE as SentencePiece's (leading spaces) or GPT-2's (bytes), trained on the words of TEXTS."""
    made = hf.Tokenizer(hf.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    alphabet: list[str] = []
    if form == "prepended":
        steps = [hf.normalizers.Prepend("\u2581"), hf.normalizers.Replace(" ", "\u2581")]
        made.normalizer = hf.normalizers.Sequence(steps)
    elif form == "bytes":
        made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder, alphabet = hf.decoders.ByteLevel(), hf.pre_tokenizers.ByteLevel.alphabet()
    else:
        scheme = "first" if form.endswith("first") else "always"
        made.pre_tokenizer = hf.pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] * (form != "bytes")
    size = 320 if form == "bytes" else 120
    trainer = hf.trainers.BpeTrainer(
        vocab_size=size, special_tokens=special[:3], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS * 4 if whole else WORDS, trainer)
    if form != "bytes":  # byte fallback needs its 256 tokens
        data = json.loads(made.to_str())
        data["model"]["vocab"] |= {name: made.get_vocab_size() + i for i, name in enumerate(special[3:])}
        made = hf.Tokenizer.from_str(json.dumps(data))
    made.post_processor = hf.processors.TemplateProcessing(adds, special_tokens=[("<s>", 1), ("</s>", 2)])
    own = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    own.save_pretrained(folder)
    return folder


def pretrained(folder: Path) -> Any:
    return tokenizers.build("pretrained", {"path": str(folder)})


def messages(turns: Sequence[dict[str, str]]) -> list[Message]:
    return [Message(turn["role"], turn["content"]) for turn in turns]  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_plain_text_has_the_ids_of_transformers(tmp_path: Path, form: str) -> None:
    own, theirs = pretrained(tokenizer_folder(tmp_path, form)), AutoTokenizer.from_pretrained(tmp_path)
    assert own.bos == 1 and own.eos == 2 and not own.closes
    for text in (*TEXTS, " a", "", "\n"):
        assert [start_id(own), *own.encode([text])[0].tolist()] == theirs(text).input_ids, text
        assert own.decode(own.encode([text])[0]).lstrip() == text.lstrip()


@pytest.mark.parametrize("template", ["llama2", "plain", "bare", "chatml", "llama3", "alpaca"])
@pytest.mark.parametrize("form", FORMS)
def test_conversations_have_the_ids_of_transformers(tmp_path: Path, form: str, template: str) -> None:
    """The template in Jinja, applied by transformers to the exported tokenizer, with and without an opened answer."""
    part: Any = templates.build(template, {})
    own = with_special_tokens(pretrained(tokenizer_folder(tmp_path / "theirs", form)), part)
    config = compose_run(["size=tiny", "tokenizer=bytes", "model.max_len=16"]).config
    export(config, build_model(config, own.vocab_size, own.eos), own, tmp_path / "out", template=part)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (theirs.bos_token, theirs.eos_token) == ("<s>", "</s>")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["bos_token_id"] == 1
    for turns, answering in ((CHAT, False), (CHAT[:-1], True), (CHAT[1:3], False)):
        (written,) = write(own, part, [messages(turns)], answering)
        how = {"tokenize": True, "return_dict": True, "add_generation_prompt": answering}
        assert written.ids.tolist() == theirs.apply_chat_template(turns, **how)["input_ids"]
    (written,) = write(own, part, [messages(CHAT[1:3])])  # exactly the answer is scored
    assert own.decode(written.ids[written.said]).strip() == "The sum is 1."


def test_llama2_conversations_equal_a_published_template(tmp_path: Path) -> None:
    """Meta's own Jinja, on the tokenizer's own special tokens."""
    own, theirs = pretrained(tokenizer_folder(tmp_path, "prepended")), AutoTokenizer.from_pretrained(tmp_path)
    theirs.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role=='user' %}{% if not loop.first %}{{ bos_token }}{% endif %}"
        "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}"
        "{% endfor %}"
    )
    turns = [*CHAT[1:3], {"role": "user", "content": "And 2?"}, {"role": "assistant", "content": "2"}]
    (written,) = write(own, templates.build("llama2", {}), [messages(turns)])
    assert written.ids.tolist() == theirs.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    opened = write(own, templates.build("llama2", {}), [messages(turns[:1])], True)[0].ids.tolist()
    assert written.ids.tolist()[: len(opened)] == opened  # preference data: a prompt begins its conversations


def test_an_answer_that_a_token_would_join_to_its_question_is_encoded_apart(tmp_path: Path) -> None:
    own = pretrained(tokenizer_folder(tmp_path, "prepended", whole=True))
    whole = TEXTS[0]
    assert len(own.encode([whole])[0]) < 4  # the tokenizer was trained on this text: a token goes across the border
    for cut in range(1, len(whole)):
        question, answer = own.encode_joined([(whole[:cut], whole[cut:])])[0]
        assert len(question) and len(answer)
        assert own.decode([*question, *answer]).replace(" ", "") == whole.replace(" ", "")
    assert [len(ids) for ids in own.encode_joined([("", "")])[0]] == [0, 0]


@pytest.mark.parametrize(("setting", "bos"), [(None, 1), (False, 2), (True, 1)])
def test_tokenizer_config_may_switch_bos_off(tmp_path: Path, setting: bool | None, bos: int) -> None:
    path = tokenizer_folder(tmp_path, "prepended") / "tokenizer_config.json"
    more = {} if setting is None else {"add_bos_token": setting}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    assert pretrained(tmp_path).bos == bos


def test_a_saved_tokenizer_keeps_its_start(tmp_path: Path) -> None:
    """Runs from before bos was used go on with eos."""
    own = pretrained(tokenizer_folder(tmp_path, "prepended"))
    state = json.loads(own.state())
    assert state["bos"] == "<s>"
    again = pretrained(tmp_path)
    again.restore(own.state())
    assert again.bos == 1
    del state["bos"]
    again.restore(json.dumps(state))
    assert again.bos == again.eos == 2
    run = tmp_path / "run"
    run.mkdir()
    (run / "tokenizer.json").write_text(json.dumps({"name": "pretrained", "knobs": {}, "state": json.dumps(state)}))
    assert pretrained(run).bos == 2


def test_training_generation_and_export_of_a_run(tmp_path: Path) -> None:
    """A run on text: documents start with <s>, a continuation ends at </s> or at the next <s>."""
    folder = tokenizer_folder(tmp_path / "theirs", "prepended")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{t} {i}" for i in range(40) for t in TEXTS), encoding="utf-8")
    plain = [s for s in TINY if not s.startswith("tokenizer")]
    settings = [*plain, f"source.path={text}", "tokenizer=pretrained", f"tokenizer.path={folder}", f"out={tmp_path}"]
    ended = ablatio(["train", *settings, "name=run", "train.steps=2", "model.vocab_size=700"], tmp_path / "log")
    assert ended.code == 0, ended.err
    run = restore_model(tmp_path / "run")
    assert run.tokenizer.bos == 1  # type: ignore[attr-defined]
    assert len(complete(run.model, run.tokenizer, ["Add"], Request(8, Sampling()))) == 1
    assert run.model.vocab_size == 700 and run.tokenizer.decode([699, 5]) == run.tokenizer.decode([5])
    ended = ablatio(["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")], tmp_path / "log")
    assert ended.code == 0, ended.err
    theirs, again = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert all(theirs(t).input_ids == again(t).input_ids for t in TEXTS)


SIZES = {"vocab_size": 400, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
         "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}  # fmt: skip


def test_t5_starts_and_ends_as_in_transformers(tmp_path: Path) -> None:
    """Training: logits of transformers given tokenizer(source) and labels; decoding: its greedy generation."""
    folder = tokenizer_folder(tmp_path, "metaspace", adds="$A </s>")
    torch.manual_seed(0)
    theirs = T5ForConditionalGeneration(T5Config(**SIZES)).eval()
    theirs.save_pretrained(folder)
    config = compose_run(["model=hf", f"model.path={folder}"]).config
    assert config["architecture"]["decoder_start"] == 0 and config["architecture"]["source_end"]
    own = pretrained(folder)
    assert own.closes and own.bos == own.eos == 2
    model: Any = build_model(config, own.vocab_size, own.eos).eval()
    take_over(model, config["model"])
    source, target = (own.encode([text])[0].tolist() for text in TEXTS[:2])
    written = AutoTokenizer.from_pretrained(folder)(TEXTS[0]).input_ids
    assert written == [*source, 2]
    example = Example(torch.tensor([[2, *target]]), torch.tensor([[*target, 2]]), source=torch.tensor([[2, *source]]))
    with torch.no_grad():
        came = model.logits(model.hidden(example))[..., :400]
        expected = theirs(input_ids=torch.tensor([written]), labels=torch.tensor([[*target, 2]])).logits
        torch.testing.assert_close(came, expected, atol=1e-5, rtol=1e-5)
        found = generate(model, [[2, *source], [2, *source[:4]]], 6, Sampling(temperature=0), stop=2)
        for ids, new in (([*source, 2], found[0]), ([*source[:4], 2], found[1])):
            begun = theirs.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0].tolist()
            assert begun[0] == 0 and [i for i in begun[1:] if i != 2] == new
    export(config, model, own, tmp_path / "out")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert again.config.decoder_start_token_id == again.generation_config.decoder_start_token_id == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS[0]).input_ids == written


def test_other_encoder_decoders_start_with_eos() -> None:
    parts = ["architecture=encoder_decoder", "objective=span_corruption"]
    config = compose_run(["size=tiny", "tokenizer=bytes", *parts]).config
    model: Any = build_model(config, 257, 256).eval()
    source = torch.tensor([[256, 5, 6]])
    example = Example(torch.tensor([[256, 7]]), torch.tensor([[7, 256]]), source=source)
    with torch.no_grad():
        logits = model.logits(model.hidden(example))
        torch.testing.assert_close(logits[:, 0], model.read(source, None, KVCache()))


def test_eos_moves_to_the_end_of_each_document() -> None:
    """By a loop over the documents; one that does not begin with eos stays as it is."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 4, (6, 12), generator=generator)
    segments = torch.randint(0, 2, (6, 12), generator=generator).cumsum(1)
    for numbers in (segments, None):
        expected = tokens.clone()
        for row in range(6):
            ids = segments[row].tolist() if numbers is not None else [0] * 12
            for number in set(ids):
                places = [i for i, n in enumerate(ids) if n == number]
                document = tokens[row, places].tolist()
                if document[0] == 0:
                    expected[row, places] = torch.tensor([*document[1:], 0])
        assert torch.equal(eos_to_the_end(tokens, numbers, 0), expected)
