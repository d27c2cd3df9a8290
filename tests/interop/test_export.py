"""`ablatio export`: folders loaded by transformers in a separate process, against ablatio's logits and texts.

Native classes are loaded by a process that never imports ablatio; the oracle is transformers' own code.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.runs import TINY, ablatio

from ablatio.config.compose import compose_run
from ablatio.errors import ConfigError, UserError
from ablatio.interop.export import difference, export
from ablatio.model.build import build_model
from ablatio.model.decoding.generate import Sampling, generate
from ablatio.training.load import load_run
from ablatio.training.run_spec import untrained_tokenizer

PROMPTS = ["the people", "of the Union, and"]
NATIVE = {
    "llama": [],
    "gpt2": ["preset=gpt2"],
    "opt": ["preset=opt"],
    "bloom": ["preset=bloom"],
    "gpt_neox": ["preset=gpt2", "position=rope", "position.fraction=0.5"],
    "t5": ["preset=t5", "tokenizer=bytes"],
}
OWN = {
    "post-norm": ["preset=gpt2", "placement=post"],
    "alibi": ["position=alibi", "attention=mqa"],
    "hashed": ["embedding=bigram_hash", "shortcut=value_embeddings", "head=softcap", "head.cap=2"],
    "narrow": ["embedding=factorized", "shortcut=denseformer"],
    "prefix": ["architecture=prefix", "objective=prefix_lm"],
    "t5-bias": ["position=t5", "model.tied=false", "activation=geglu", "model.vocab_size=300"],
}
CHILD = """
import json, sys, torch
{extra}
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
folder, request = sys.argv[1], json.loads(sys.argv[2])
auto = AutoModelForSeq2SeqLM if request["two"] else AutoModelForCausalLM
model = auto.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
tokens = torch.tensor(request["tokens"])
with torch.no_grad():
    inputs = dict(input_ids=tokens, **(dict(decoder_input_ids=tokens) if request["two"] else {{}}))
    logits = model(**inputs).logits
    texts = []
    for prompt in request["prompts"]:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        made = model.generate(ids, max_new_tokens=12, do_sample=False)[0]
        texts.append(made.tolist()[0 if request["two"] else ids.shape[1]:])
    batch = tokenizer(request["prompts"], return_tensors="pt", padding=True)
    together = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=12,
                              do_sample=False)
    together = together[:, 0 if request["two"] else batch.input_ids.shape[1]:].tolist()
print(json.dumps(dict(logits=logits.tolist(), texts=texts, together=together, type=type(model).__name__,
                      ids=[tokenizer(p).input_ids for p in request["prompts"]],
                      back=[tokenizer.decode(tokenizer(p).input_ids, skip_special_tokens=True)
                            for p in request["prompts"]],
                      ours="ablatio" in sys.modules)))
"""


def trained(folder: Path, text_file: Path, options: list[str]) -> Path:
    given = {o.split("=")[0] for o in options}
    tiny = [o for o in TINY if o.split("=")[0] not in given and "max_len" not in o]
    settings = [*tiny, "model.max_len=64", f"source.path={text_file}", f"out={folder}", "name=run", *options]
    ended = ablatio(["train", *settings], folder / "log")
    assert ended.code == 0, ended.err
    return folder / "run"


def in_a_child(folder: Path, model: torch.nn.Module, extra: str = "") -> dict:
    request = {"tokens": [[3, 5, 7, 11, 13, 17, 19]], "prompts": PROMPTS, "two": hasattr(model, "encoder")}
    command = [sys.executable, "-c", CHILD.format(extra=extra), str(folder), json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    with torch.no_grad():
        ours = model(torch.tensor(request["tokens"]))
    if not getattr(model, "opens", False):
        torch.testing.assert_close(torch.tensor(found["logits"]), ours, rtol=1e-5, atol=1e-5)
    return found


def continued(run, prompts):
    rows = [[run.tokenizer.eos, *map(int, ids)] for ids in run.tokenizer.encode(prompts)]
    return rows, generate(run.model, rows, 12, Sampling(temperature=0), stop=run.tokenizer.eos)


def until_end(tokens: list[int], run) -> list[int]:
    tokens = tokens[1:] if hasattr(run.model, "encoder") else tokens  # a decoder's text begins with its start sign
    return tokens[: tokens.index(run.tokenizer.eos)] if run.tokenizer.eos in tokens else tokens


@pytest.mark.matrix
@pytest.mark.parametrize("name", [*NATIVE, *OWN])
def test_transformers_loads_the_export_with_equal_outputs(name, tmp_path, text_file):
    options, own = (NATIVE | OWN)[name], name in OWN
    folder = trained(tmp_path, text_file, options)
    ended = ablatio(["export", str(folder), "--to", str(tmp_path / "out")], tmp_path / "log2")
    assert ended.code == 0, ended.err
    assert f"as {'ablatio' if own else name}, logits within" in ended.out
    run, _ = load_run(folder)
    found = in_a_child(tmp_path / "out", run.model, "import ablatio.interop.transformers_model" if own else "")
    assert found["type"].startswith("Ablatio") == own
    rows, texts = continued(run, PROMPTS)
    assert found["ids"] == rows and found["back"] == PROMPTS
    assert [until_end(t, run) for t in found["texts"]] == texts
    assert [until_end(t, run) for t in found["together"]] == texts  # of unequal lengths, padded on the left


def test_trained_tokenizer_is_exported(tmp_path, text_file):
    options = ["tokenizer=bpe", "tokenizer.vocab_size=300"]
    folder = trained(tmp_path, text_file, options)
    assert ablatio(["export", str(folder), "--to", str(tmp_path / "out")], tmp_path / "log2").code == 0
    from transformers import AutoTokenizer

    run, _ = load_run(folder)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ["the people  of\n\n  España, \t 12345 <|endoftext|> 中文", "", " " * 40, "a" * 300]:
        (ids,) = run.tokenizer.encode([text])
        assert theirs(text).input_ids == [run.tokenizer.eos, *ids.tolist()]
        assert theirs.decode(ids.tolist()) == text


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    text = folder / "text.txt"
    text.write_text("".join(f"the people of the united states, number {i}\n\n" for i in range(60)))
    run = trained(folder, text, ["position=alibi"])
    assert ablatio(["export", str(run), "--to", str(folder / "out")], folder / "log2").code == 0
    return folder / "out"


def changed(exported: Path, to: Path, **keys) -> Path:
    to.mkdir()
    for path in exported.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | keys))
    return to


def test_code_in_a_folder_is_refused_and_never_run(exported, tmp_path):
    from ablatio.interop.transformers_model import load

    assert load(exported) is not None
    proof = tmp_path / "it ran"
    evil = changed(exported, tmp_path / "evil", auto_map={"AutoModelForCausalLM": "evil.Evil"})
    (evil / "evil.py").write_text(f"open({str(proof)!r}, 'w')")
    with pytest.raises(UserError, match="`auto_map`, which refers to code"):
        load(evil)
    with pytest.raises(UserError, match="_attn_implementation_internal"):
        load(changed(exported, tmp_path / "b", _attn_implementation_internal="someone/kernel"))
    beside = changed(exported, tmp_path / "c")
    (beside / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match="could run code"):
        load(beside)
    assert not proof.exists()


def test_parts_of_a_config_json_are_checked(exported, tmp_path):
    from ablatio.interop.transformers_model import load

    parts = json.loads((exported / "config.json").read_text())["parts"]
    with pytest.raises(UserError, match="_target_"):
        load(changed(exported, tmp_path / "a", parts=parts | {"norm": {"_target_": "os.system", "name": "rmsnorm"}}))
    with pytest.raises(ConfigError, match="there is no `rmsnrom`"):
        load(changed(exported, tmp_path / "b", parts=parts | {"norm": {"name": "rmsnrom"}}))
    with pytest.raises(ConfigError, match="heads"):
        load(changed(exported, tmp_path / "c", parts=parts | {"model": parts["model"] | {"n_heads": 3}}))


def test_exported_config_has_no_paths_of_the_training_machine(exported):
    text = (exported / "config.json").read_text()
    assert "text.txt" not in text and "source" not in json.loads(text)["parts"]


def test_beam_search_and_sampling_work(exported):
    from ablatio.interop.transformers_model import load

    model = load(exported).eval()
    tokens = torch.tensor([[256, 116, 104, 101, 32]])
    beams = model.generate(tokens, num_beams=3, max_new_tokens=8, do_sample=False)
    plain = model.generate(tokens, num_beams=3, max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(beams, plain)
    assert model.generate(tokens, max_new_tokens=5, do_sample=True, num_return_sequences=3).shape == (3, 10)
    loss = model(tokens, labels=tokens).loss
    expected = torch.nn.functional.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:])
    torch.testing.assert_close(loss, expected)


def test_export_refusal_states_the_reason(exported, tmp_path, text_file):
    folder = trained(tmp_path, text_file, ["preset=t5", "tokenizer=bytes", "position=rope"])
    ended = ablatio(["export", str(folder), "--to", str(tmp_path / "x")], tmp_path / "log2")
    assert ended.code == 2 and "position=rope (it supports t5)" in ended.err and not (tmp_path / "x").exists()
    ended = ablatio(["export", str(folder), "--to", str(exported)], tmp_path / "log3")
    assert ended.code == 2 and "is not empty" in ended.err
    ended = ablatio(["export", str(folder), "--to", str(tmp_path / "x"), "--as", "gpt2"], tmp_path / "log4")
    assert ended.code == 2 and "gpt2 does not support" in ended.err


@pytest.mark.parametrize("options", [["preset=gpt2"], ["preset=gpt2", "placement=post"]], ids=["native", "own"])
def test_a_context_of_a_few_tokens_is_exported(options: list[str], tmp_path: Path) -> None:
    sizes = ["model.d_model=32", "model.n_layers=1", "model.n_heads=4", "model.max_len=4", "tokenizer=bytes"]
    config = compose_run([*options, *sizes]).config
    tokenizer = untrained_tokenizer(config)
    model = build_model(config, tokenizer.vocab_size, tokenizer.eos).eval()
    export(config, model, tokenizer, tmp_path / "to")
    assert difference(tmp_path / "to", model) < 1e-5
