"""Exported chat runs: transformers formats their conversations and gives the same answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.llamas import END, small_llama
from helpers.runs import TINY, ablatio, summary

from ablatio.data.chat import sign_id, write
from ablatio.data.types import Message
from ablatio.model.decoding.generate import Sampling, generate
from ablatio.training.load import load_run

QUESTIONS = ["1 and 2?", "Größe"]
CHILD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, questions = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
ids, answers = [], []
for question in questions:
    chat = [{"role": "user", "content": question}]
    given = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**given, max_new_tokens=12, do_sample=False)[0, given["input_ids"].shape[1]:]
    ids.append(given["input_ids"][0].tolist())
    answers.append(made.tolist())
print(json.dumps(dict(ids=ids, answers=answers, ours="ablatio" in sys.modules)))
"""


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    pairs = [(i, j) for i in range(9) for j in range(9)]
    lines = [{"prompt": f"{i} and {j}?", "completion": "even" if (i + j) % 2 == 0 else "odd"} for i, j in pairs]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def taught(folder: Path, chats: Path, options: list[str]) -> Path:
    given = {o.split("=")[0] for o in options} | {"source", "source.separator", "model.max_len"}
    sizes = ("model.d_model", "model.n_layers", "model.n_heads", "tokenizer") if "model=hf" in options else ()
    plain = [o for o in TINY if o.split("=")[0] not in given | set(sizes)]
    more = ["task=sft", "source=chats", f"source.path={chats}", "model.max_len=96", "optimizer.lr=0.02"]
    ended = ablatio(["train", *plain, *more, *options, f"out={folder}", "name=run"], folder / "log")
    assert ended.code == 0, ended.err
    return folder / "run"


def own_answers(run: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of the prompts and the greedy answers."""
    rows = write(run.tokenizer, run.setup.template, [[Message("user", q)] for q in QUESTIONS], answering=True)
    ids = [row.ids.tolist() for row in rows]
    stop = sign_id(run.tokenizer, run.setup.template.end)
    return ids, [generate(run.model, [i], 12, Sampling(temperature=0), stop)[0] for i in ids]


@pytest.mark.matrix
@pytest.mark.parametrize("template, tokenizer", [("chatml", "bytes"), ("llama3", "bpe"), ("plain", "bpe")])
def test_transformers_chat_equals_the_run(tmp_path: Path, chats: Path, template: str, tokenizer: str) -> None:
    """Oracle: transformers' own chat renderer, tokenizer and generate, in a process that never imports ablatio."""
    options = [f"template={template}", f"tokenizer={tokenizer}"]
    folder = taught(tmp_path, chats, [*options, *(["tokenizer.vocab_size=700"] if tokenizer == "bpe" else [])])
    compare(folder, tmp_path)


def test_tuned_transformers_model_keeps_its_special_tokens(tmp_path: Path, chats: Path) -> None:
    """Loaded with model=hf, tuned with LoRA in its own ChatML, merged and exported as LLaMA with its end tokens."""
    options = [
        "model=hf",
        f"model.path={small_llama(tmp_path / 'llama')}",
        "template=chatml",
        "template.system='Be brief.'",
        "peft=lora",
    ]
    folder = taught(tmp_path, chats, options)
    assert len(summary(folder)["samples"]) == 4  # type: ignore[arg-type]
    compare(folder, tmp_path)
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert settings["eos_token"] == END
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == [2, 0]


def compare(folder: Path, place: Path) -> None:
    ended = ablatio(["export", str(folder), "--to", str(place / "out")], place / "log2")
    assert ended.code == 0 and "as llama" in ended.out, ended.err
    command = [sys.executable, "-c", CHILD, str(place / "out"), json.dumps(QUESTIONS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    run, _ = load_run(folder)
    ids, answers = own_answers(run)
    assert found["ids"] == ids
    ends = {sign_id(run.tokenizer, run.setup.template.end), run.tokenizer.eos}
    for theirs, ours in zip(found["answers"], answers, strict=True):
        assert until(theirs, ends) == until(ours, ends)


def until(tokens: list[int], ends: set[int]) -> list[int]:
    return tokens[: next((n for n, token in enumerate(tokens) if token in ends), len(tokens))]
