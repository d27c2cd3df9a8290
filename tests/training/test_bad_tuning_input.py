"""Invalid input of tuning and alignment runs: the error names it, what was expected, and a command that works."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import Finished, ablatio, summary

SMALL = (
    "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_len=64", "tokenizer=bytes",
    "data.val_fraction=0.3", "train.batch_size=4", "train.val_every=null", "train.checkpoint_every=2",
    "train.steps=4", "trainer.threads=1", "trainer.progress=false",
)  # fmt: skip
PAIR = {"prompt": "Who?", "chosen": "You.", "rejected": "Nobody."}
CHAT = {"prompt": "Who?", "completion": "You."}
PREFERENCE, SFT, REWARD = ["task=preference", "alignment=dpo"], ["task=sft"], ["task=reward"]


def train(folder: Path, *overrides: str, kill_when: Path | None = None) -> Finished:
    return ablatio(["train", *SMALL, f"out={folder}", *overrides], folder / "log", kill_when)


def write_lines(folder: Path, *records: Any, name: str = "lines.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_pairs(folder: Path) -> Path:
    return write_lines(folder, *({**PAIR, "prompt": f"Who is {n}?"} for n in range(30)), name="pairs.jsonl")


@pytest.mark.parametrize(
    ("task", "source", "bad", "what"),
    [
        (SFT, "chats", {"prompt": "Who?"}, "match no layout"),
        (SFT, "chats", {"instruction": "Who?"}, "the answer in turn 2 is missing"),
        (SFT, "chats", {"messages": [{"role": "user", "content": "Who?"}]}, "no answer of the assistant"),
        (SFT, "chats", {**CHAT, "completion": "  "}, "the answer in turn 2 is '  '; expected text"),
        (PREFERENCE, "feedback", {"prompt": "Who?", "chosen": "You."}, "`rejected` is missing"),
        (PREFERENCE, "feedback", {**PAIR, "rejected": "You."}, "`chosen` and `rejected` are the same answer"),
        (PREFERENCE, "feedback", {**PAIR, "chosen": ""}, "answer 1 is empty"),
        (REWARD, "feedback", {**PAIR, "rejected": None}, "`rejected` is missing"),
        (
            [*REWARD, "source.split_by=all", "data.val_fraction=0.1"],
            "feedback",
            {"prompt": "Who?", "answers": ["You.", "You."], "scores": [1, 0]},
            "are the same: 'You.'",
        ),
    ],
)
def test_invalid_line_is_reported_before_training(
    tmp_path: Path, task: list[str], source: str, bad: Any, what: str
) -> None:
    path = write_lines(tmp_path, CHAT if source == "chats" else PAIR, bad)
    ended = train(tmp_path, *task, f"source={source}", f"source.path={path}", "name=run")
    assert ended.code == 2 and what in ended.err, ended.err
    assert "line 2" in ended.err or "lines.jsonl:2" in ended.err
    assert "try: " in ended.err and not (tmp_path / "run" / "checkpoints").exists()


def test_suggested_command_prints_the_invalid_line(tmp_path: Path) -> None:
    import subprocess

    place = tmp_path / "my data"
    place.mkdir()
    path = write_lines(place, PAIR, {"prompt": "Who?", "chosen": "only this"})
    ended = train(tmp_path, *PREFERENCE, "source=feedback", f"source.path='{path}'", "name=run")
    command = ended.err.split("try: ")[1].split(", then")[0]
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    assert "only this" in shown and PAIR["rejected"] not in shown


@pytest.mark.parametrize(
    ("task", "source"),
    [(PREFERENCE, "feedback"), (REWARD, "feedback"), (SFT, "chats")],
    ids=["prefer", "reward", "sft"],
)
def test_too_long_prompts_are_rejected_or_counted(tmp_path: Path, task: list[str], source: str) -> None:
    """If no prompt fits, the error suggests a length that works; if some do not fit, they are dropped and counted."""
    asked = [f"{n} {'why ' * 40}?" for n in range(20)]
    every = [{**(CHAT if source == "chats" else PAIR), "prompt": text} for text in asked]
    given = *task, f"source={source}", f"source.path={write_lines(tmp_path, *every)}", "task.too_long=drop"
    refused = train(tmp_path, *given, "name=run")
    assert refused.code == 2 and "do not fit into 64 tokens, the longest has" in refused.err, refused.err
    fix = refused.err.split("try: ")[1].split()[0]
    assert train(tmp_path, *given, fix, "name=fixed").code == 0
    more = write_lines(tmp_path, *every[:3], *({**every[0], "prompt": f"Who is {n}?"} for n in range(30)))
    some = train(tmp_path, *given, f"source.path={more}", "name=some")
    assert some.code == 0, some.err
    content = json.loads((tmp_path / "some" / "manifest.json").read_text())["data"]
    left_out = (
        content["dropped"] if source == "feedback" else sum(content[s]["dropped"] for s in ("train", "validation"))
    )
    assert left_out == 3


def test_unmatched_peft_targets_list_available_layers(tmp_path: Path) -> None:
    given = *PREFERENCE, "source=feedback", f"source.path={write_pairs(tmp_path)}", "peft=lora"
    refused = train(tmp_path, *given, "peft.targets=[c_attn]", "name=run")
    assert refused.code == 2 and "c_attn matches no layer of this model; available layers" in refused.err, refused.err
    assert "q_proj (1)" in refused.err and "down_proj (1)" in refused.err
    assert train(tmp_path, *given, refused.err.split("try: ")[1].split()[0], "name=fixed").code == 0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text("\n\n".join(f"The {n} people of the state want peace." for n in range(60)))
    text = "source=text", f"source.path={folder / 'text.txt'}", "source.separator='\\n\\n'", "data.val_tokens=64"
    for seed in (1, 2):
        ended = train(folder, *text, f"seed={seed}", f"name=base{seed}")
        assert ended.code == 0, ended.err
    return folder


def test_resume_requires_the_original_reference_model(base: Path, tmp_path: Path) -> None:
    """A resumed run must compare with its original reference; a missing or different one is rejected."""
    origin, run = tmp_path / "sft", tmp_path / "run"
    shutil.copytree(base / "base1", origin)
    given = *PREFERENCE, "source=feedback", f"source.path={write_pairs(tmp_path)}", "model=run", f"model.path={origin}"
    place = f"train.steps=8 name=run out={tmp_path}".split()
    settings = [s for s in SMALL if not s.startswith(("model.", "tokenizer", "train.steps"))]
    command = ["train", *settings, *given, *place]
    ablatio(command, tmp_path / "log", kill_when=run / "checkpoints/step-00000002.json")
    assert "status" not in (summary(run) if (run / "summary.json").exists() else {})

    origin.rename(tmp_path / "away")
    lost = ablatio(["resume", str(run)], tmp_path / "log")
    assert lost.code == 2 and "needs its reference" in lost.err and str(origin) in lost.err, lost.err
    shutil.copytree(base / "base2", origin)
    other = ablatio(["resume", str(run)], tmp_path / "log")
    assert other.code == 2 and "holds another model than the one that" in other.err, other.err

    shutil.rmtree(origin)
    (tmp_path / "away").rename(origin)
    assert ablatio(["resume", str(run)], tmp_path / "log").code == 0
    assert summary(run)["status"] == "done"


def test_preference_task_without_alignment_suggests_one(tmp_path: Path) -> None:
    given = "source=feedback", f"source.path={write_pairs(tmp_path)}"
    refused = train(tmp_path, "task=preference", *given, "name=run")
    assert refused.code == 2 and "is not set, and task=preference needs it" in refused.err
    assert train(tmp_path, "task=preference", *given, refused.err.split("try: ")[1].split()[0], "name=fixed").code == 0


def test_adapter_of_another_base_model_names_its_base(base: Path, tmp_path: Path) -> None:
    """LoRAHub mixes adapters on the base model that they were trained on only."""
    text = "source=text", f"source.path={base / 'text.txt'}", "source.separator='\\n\\n'", "data.val_tokens=64"
    settings = [s for s in SMALL if not s.startswith(("model.", "tokenizer"))]

    def tuned(name: str, number: int, *peft: str) -> Finished:
        model = "model=run", f"model.path={base / f'base{number}'}"
        return ablatio(["train", *settings, *text, *model, *peft, f"out={tmp_path}", f"name={name}"], tmp_path / "log")

    assert tuned("lora", 1, "peft=lora").code == 0
    exported = ablatio(["export", str(tmp_path / "lora"), "--to", str(tmp_path / "hf"), "--adapter",
                        str(tmp_path / "adapter")], tmp_path / "log")  # fmt: skip
    assert exported.code == 0, exported.err
    mixed = "peft=lorahub", f"peft.adapters=[{tmp_path / 'adapter'}]"
    refused = tuned("hub", 2, *mixed)
    assert refused.code == 2 and "trained on another base model" in refused.err, refused.err
    assert f"try: model=run model.path={base / 'base1'}" in refused.err
    assert tuned("hub1", 1, *mixed).code == 0


def test_task_without_reference_resumes_without_its_start_model(base: Path, tmp_path: Path) -> None:
    origin, run = tmp_path / "sft", tmp_path / "run"
    shutil.copytree(base / "base1", origin)
    chats = write_lines(tmp_path, *({**CHAT, "prompt": f"Who is {n}?"} for n in range(30)))
    settings = [s for s in SMALL if not s.startswith(("model.", "tokenizer", "train.steps"))]
    given = *SFT, "source=chats", f"source.path={chats}", "model=run", f"model.path={origin}", "train.steps=8"
    command = ["train", *settings, *given, f"out={tmp_path}", "name=run"]
    ablatio(command, tmp_path / "log", kill_when=run / "checkpoints/step-00000002.json")
    shutil.rmtree(origin)
    again = ablatio(["resume", str(run)], tmp_path / "log")
    assert again.code == 0, again.err
