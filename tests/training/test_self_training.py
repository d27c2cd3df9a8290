"""task=self_training: answers that the model writes, which of them are trained on, and a recipe of its rounds."""

import json
from pathlib import Path

import pytest
from helpers.runs import ablatio, metrics, summary

SMALL = (
    "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_len=64", "tokenizer=bytes",
    "source=worked_sums", "source.size=40", "data.val_fraction=0.3", "train.batch_size=4", "train.val_every=null",
    "train.checkpoint_every=2", "trainer.threads=1", "trainer.progress=false", "train.steps=4", "train.log_every=1",
)  # fmt: skip
WRITE = ("task=self_training", "task.answer_tokens=8", "task.held_out=4", "reward=length", "reward.target=16")


def train(folder: Path, *overrides: str, **how: Path) -> tuple[int, str]:
    ended = ablatio(["train", *SMALL, *overrides, f"out={folder}"], folder / "log", **how)
    return ended.code, ended.err


def test_best_accepted_answers_are_trained_on(tmp_path: Path) -> None:
    """Oracle: the reward of each conversation that the task holds, computed again."""
    assert train(tmp_path, *WRITE, "task.answers=3", "task.least=0.4", "name=r") == (0, "")
    from ablatio.model.rl.answers import Answer
    from ablatio.registry.kinds import rewards
    from ablatio.training.load import load_run

    run = load_run(tmp_path / "r")[0]
    task = run.task
    task.prepare(run.model)
    held = task.held["train"]
    length = rewards.build("length", {"target": 16})
    scores = [length(Answer("", c.messages[-1].text, (), tuple(c.messages[-1].text.encode()))) for c in held]
    assert scores and min(scores) > 0.4
    assert {c.messages[0].text for c in held} <= {c.messages[0].text for c in task.questions["train"]}
    found = summary(tmp_path / "r")
    assert found["score"]["name"] == "val/reward" and found["after"]["loss"] > 0


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    assert train(tmp_path, *WRITE, "task.revise=[Shorter.]", "name=whole")[0] == 0
    cut = tmp_path / "cut"
    train(tmp_path, *WRITE, "task.revise=[Shorter.]", "name=cut", kill_when=cut / "checkpoints/step-00000002.json")
    assert ablatio(["train", f"resume={cut}"], tmp_path / "log").code == 0
    drop = ("seconds", "tokens_per_second")
    whole, again = ([{k: v for k, v in row.items() if k not in drop} for row in metrics(f)] for f in
                    (tmp_path / "whole", cut))  # fmt: skip
    assert whole == again


def test_a_model_without_any_accepted_answer_is_told_so(tmp_path: Path) -> None:
    code, said = train(tmp_path, *WRITE[:3], "reward=exact_answer", "task.hint=' ({answer})'", "name=r")
    assert code == 2 and "no answer of" in said and "try: more training of the model that writes" in said


@pytest.mark.long
def test_star_solves_more_sums_after_each_round(tmp_path: Path) -> None:
    """The shipped recipe, shortened: the held-out share of solved sums rises over that of the model it began with."""
    ended = ablatio(["train", "recipe=star", f"out={tmp_path}", "name=r", "trainer.progress=false"], tmp_path / "log")
    assert ended.code == 0, ended.err
    stages = json.loads((tmp_path / "r/recipe.json").read_text())["stages"]
    few, first, second = (stage["score"] for stage in stages)
    assert few["name"] == "val/loss" and first["value"] > first["before"] + 0.05
    assert second["value"] > second["before"] + 0.05
