"""Invalid policy commands: the exit code, the message, and that the suggested command works."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import Finished, ablatio, metrics, summary

from ablatio.registry.kinds import rewards

SMALL = (
    "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_len=64", "tokenizer=bytes", "task=policy",
    "alignment=grpo", "alignment.group=4", "data.val_fraction=0.3", "train.batch_size=8", "train.val_every=null",
    "train.checkpoint_every=null", "train.steps=4", "train.log_every=1", "task.answer_tokens=6", "task.held_out=4",
    "trainer.threads=1", "trainer.progress=false",
)  # fmt: skip


def write_corpus(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("\n\n".join(f"The {n} people of the state want peace, and work." for n in range(80)))
    return path


def train(folder: Path, *overrides: str) -> Finished:
    chosen = {o.split("=")[0] for o in overrides}
    kept = [s for s in SMALL if s.split("=")[0] not in chosen]
    if "source" not in chosen:
        kept += ["source=text", f"source.path={write_corpus(folder)}", "source.separator='\\n\\n'"]
    return ablatio(["train", *kept, f"out={folder}", *overrides], folder / "log")


def suggested_fix(ended: Finished) -> str:
    return ended.err.split("try: ")[1].split("\n")[0].split(", ")[0]


FAULTY: dict[str, Any] = {
    "says_nan": (lambda answers: torch.full((len(answers),), math.nan), "returned nan for 4 of 4 answers"),
    "says_a_table": (
        lambda answers: torch.zeros(len(answers), 2),
        "returned 4x2 for 4 answers; expected one number for each",
    ),
    "says_one": (lambda answers: 1.0, "returned one number for 4 answers"),
    "says_no_number": (lambda answers: [None] * len(answers), "returned list '[None"),
    "raises": (lambda answers: 1 / 0, "raised ZeroDivisionError: division by zero"),
}


@pytest.fixture
def faulty(request: pytest.FixtureRequest) -> Iterator[str]:
    """Register a plugin reward that returns invalid values, for the duration of the test."""
    name = str(request.param)
    judge = FAULTY[name][0]

    class Faulty:
        """Invalid reward for tests.  N answers -> invalid values"""

        def __call__(self, answers: Any) -> Any:
            return judge(answers)

    rewards.register(name, paper="doi:10.0/0")(Faulty)
    yield name
    del rewards.entries[name], rewards._targets[name]


@pytest.mark.parametrize("faulty", FAULTY, indirect=True)
def test_invalid_reward_values_end_the_run(tmp_path: Path, faulty: str) -> None:
    ended = train(tmp_path, f"reward={faulty}", "name=run")
    assert ended.code == 2 and f"reward={faulty} {FAULTY[faulty][1]}" in ended.err, ended.err
    assert "Traceback" not in ended.err
    command = suggested_fix(ended)
    assert command == f"ablatio show reward={faulty}"
    shown = ablatio(command.split()[1:], tmp_path / "log")
    assert shown.code == 0 and "Invalid reward for tests" in shown.out, shown.err


def test_too_long_prompts_are_rejected_or_counted(tmp_path: Path) -> None:
    """If no prompt fits beside an answer, the error suggests a length; if some do not fit, they are counted."""
    lines = [{"prompt": f"{n} {'why ' * 40}?", "completion": "So."} for n in range(20)]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = "source=chats", f"source.path={path}", "reward=length"
    refused = train(tmp_path, *given, "name=run")
    assert refused.code == 2 and "20 of 20 prompts are longer than the 58 tokens" in refused.err, refused.err
    assert train(tmp_path, *given, suggested_fix(refused), "train.steps=1", "name=fixed").code == 0
    short = [{**line, "prompt": f"Who is {n}?"} for n, line in enumerate(lines)]
    path.write_text("".join(json.dumps(line) + "\n" for line in (*lines[:3], *short)))
    some = train(tmp_path, *given, "train.steps=1", "name=some")
    assert some.code == 0 and "3 of 23 prompts are longer" in some.err, some.err
    assert json.loads((tmp_path / "some/manifest.json").read_text())["data"]["left_out"] == 3


def test_prompt_and_answer_must_fit_into_max_len(tmp_path: Path) -> None:
    refused = train(tmp_path, "task.answer_tokens=80", "reward=length", "name=run")
    assert refused.code == 2 and "have 96 tokens, more than model.max_len=64" in refused.err, refused.err
    assert train(tmp_path, suggested_fix(refused), "reward=length", "train.steps=1", "name=fixed").code == 0


def test_collapsed_policy_is_reported_and_the_run_continues(tmp_path: Path) -> None:
    """Too high a learning rate: the run completes, warns once, logs the collapse, and suggests a lower rate."""
    given = "reward=length", "reward.target=6", "train.steps=8", "schedule=constant"
    ended = train(tmp_path, *given, "optimizer.lr=1.0", "name=run")
    assert ended.code == 0, ended.err
    assert ended.err.count("the policy has collapsed") == 1 and "answers are" in ended.err, ended.err
    assert any(float(row["train/collapsed"] or 0) == 1 for row in metrics(tmp_path / "run"))
    assert summary(tmp_path / "run")["status"] == "done"
    assert suggested_fix(ended) == "optimizer.lr=0.1"
    calm = train(tmp_path, *given, "optimizer.lr=0.001", "name=calm")
    assert calm.code == 0 and "collapsed" not in calm.err


def test_missing_reward_model_suggests_a_command(tmp_path: Path) -> None:
    refused = train(tmp_path, "reward=model", "name=run")
    assert refused.code == 2 and "reward.path is empty" in refused.err, refused.err
    assert train(tmp_path, "reward=length", "train.steps=1", "name=other").code == 0
    wrong = train(tmp_path, "reward=model", f"reward.path={tmp_path / 'other'}", "name=run")
    assert wrong.code == 2 and "is a run of task=policy, which has no reward model" in wrong.err, wrong.err
    assert "try: ablatio train task=reward name=reward" in wrong.err


def test_policy_without_method_or_reward_suggests_defaults(tmp_path: Path) -> None:
    text = "source=text", f"source.path={write_corpus(tmp_path)}", "source.separator='\\n\\n'", f"out={tmp_path}"
    kept = [s for s in SMALL if not s.startswith("alignment")]
    refused = ablatio(["train", *kept, *text, "name=run"], tmp_path / "log")
    assert refused.code == 2, refused.err
    proposed = [line.split("try: ")[1] for line in refused.err.splitlines() if line.strip().startswith("try: ")]
    assert proposed == ["alignment=ppo", "reward=length"], refused.err
    given = *proposed, "train.batch_size=16", "train.steps=1", "name=fixed"
    fixed = ablatio(["train", *[s for s in kept if "batch_size" not in s], *text, *given], tmp_path / "log")
    assert fixed.code == 0, fixed.err


def test_knob_without_its_method_lists_methods_that_have_it(tmp_path: Path) -> None:
    kept = [s for s in SMALL if not s.startswith("alignment=")]
    refused = ablatio(["train", *kept, "reward=length", f"out={tmp_path}", "name=run"], tmp_path / "log")
    assert refused.code == 2 and "alignment.group: sets a knob, but no alignment is chosen" in refused.err, refused.err
    assert "grpo" in refused.err and "rloo" in refused.err
