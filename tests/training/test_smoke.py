"""One short command line run of each task: the only trainings of `make fast`."""

import json
import math
from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio, summary

from ablatio.registry.kinds import tasks

CHAT = [{"prompt": f"{i} and {j}?", "completion": "even" if (i + j) % 2 else "odd"} for i in range(6) for j in range(6)]
FEEDBACK = [{"prompt": f"{i} and {j}?", "chosen": "yes!", "rejected": "no"} for i in range(6) for j in range(6)]
GRPO = ["alignment=grpo", "alignment.group=4", "reward=length", "reward.target=3", "task.answer_tokens=4"]
SETTINGS = {
    "pretrain": [],
    "sft": ["source=chats", "model.max_len=64"],
    "reward": ["source=feedback", "model.max_len=64"],
    "preference": ["source=feedback", "model.max_len=64", "alignment=dpo"],
    "policy": ["model.max_len=32", *GRPO],
    "process_reward": ["source=worked_sums", "source.size=60", "data.val_fraction=0.3", "model.max_len=64"],
}
FROM_A_RUN = {"evaluate", "self_training"}  # in files of their own


def test_each_task_has_a_run() -> None:
    assert SETTINGS.keys() | FROM_A_RUN == set(tasks.names())


@pytest.mark.parametrize("task", SETTINGS)
def test_short_run_of_each_task_succeeds(tmp_path: Path, text_file: Path, task: str) -> None:
    first = next(iter(SETTINGS[task]), "")
    source = {"source=chats": CHAT, "source=feedback": FEEDBACK}.get(first)
    data = text_file
    if source is not None:
        data = tmp_path / "lines.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in source), encoding="utf-8")
    plain = [s for s in TINY if not first.startswith("source=") or not s.startswith(("source", "model.max_len"))]
    path = [] if first == "source=worked_sums" else [f"source.path={data}"]
    words = [*plain, f"task={task}", *SETTINGS[task], *path, f"out={tmp_path}", "train.steps=4"]
    ended = ablatio(["train", *words, "name=run"], tmp_path / "log")
    assert ended.code == 0, ended.err
    found = summary(tmp_path / "run")
    scores = [score for score in found["after"].values() if isinstance(score, float)]
    assert found["steps"] == 4 and scores and all(map(math.isfinite, scores))
