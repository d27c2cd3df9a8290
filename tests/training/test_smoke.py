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
}


@pytest.mark.parametrize("task", tasks.names())
def test_short_run_of_each_task_succeeds(tmp_path: Path, text_file: Path, task: str) -> None:
    source = {"source=chats": CHAT, "source=feedback": FEEDBACK}.get(next(iter(SETTINGS[task]), ""))
    data = text_file
    if source is not None:
        data = tmp_path / "lines.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in source), encoding="utf-8")
    plain = [s for s in TINY if source is None or not s.startswith(("source", "model.max_len"))]
    words = [*plain, f"task={task}", *SETTINGS[task], f"source.path={data}", f"out={tmp_path}", "train.steps=4"]
    ended = ablatio(["train", *words, "name=run"], tmp_path / "log")
    assert ended.code == 0, ended.err
    found = summary(tmp_path / "run")
    scores = [score for score in found["after"].values() if isinstance(score, float)]
    assert found["steps"] == 4 and scores and all(map(math.isfinite, scores))
