"""Shipped recipes from end to end with a tiny model: every stage is done and starts from what it names."""

import json
from pathlib import Path

import pytest
from helpers.runs import ablatio, summary

TINY = (
    "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "train.batch_size=4", "train.val_every=null",
    "train.checkpoint_every=null", "train.log_every=2", "trainer.threads=1", "trainer.progress=false",
    "tokenizer=bytes", "train.steps=2", "data.val_tokens=1024",
)  # fmt: skip
SENTIMENT = ("source.size=40", "data.val_fraction=0.3")
SCORED = tuple(f"stages.{stage}.{word}" for stage in ("good", "bad") for word in (
    "task.held_out=4", "source.size=40", "train.batch_size=8"))  # fmt: skip
WRITTEN = tuple(f"stages.{stage}.{word}" for stage in ("first", "second") for word in (
    "source.size=40", "data.val_fraction=0.3", "reward=length", "task.held_out=4"))  # fmt: skip
JUDGED = tuple(f"stages.{stage}.{word}" for stage in ("revised", "feedback") for word in (
    "task.answer_tokens=8", "task.held_out=4", "train.batch_size=8"))  # fmt: skip
# recipe: (more settings, task and source of its last stage)
RECIPES: dict[str, tuple[tuple[str, ...], tuple[str, str]]] = {
    "causal_to_prefix": ((), ("pretrain", "sotu")),
    "u_palm": ((), ("pretrain", "sotu")),
    "staged_instruction": (("stages.tasks.source.size=40", "data.val_fraction=0.3"), ("sft", "worked_sums")),
    "star": (WRITTEN, ("self_training", "worked_sums")),
    "constitutional": ((*SENTIMENT, *JUDGED, "model.max_len=256", "stages.helpful.task.share=0"),
                       ("policy", "sentiment")),
    "preference_pretraining": ((*SCORED, "stages.tagged.source.reward=length"), ("policy", "sentiment")),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs_from_end_to_end(tmp_path: Path, name: str) -> None:
    more, last = RECIPES[name]
    ended = ablatio(["train", f"recipe={name}", *TINY, *more, f"out={tmp_path}", "name=r"], tmp_path / "log")
    assert ended.code == 0, ended.err
    stages = json.loads((tmp_path / "r/recipe.json").read_text())["stages"]
    assert [stage["status"] for stage in stages] == ["done"] * len(stages)
    assert all(stage["takes"] for stage in stages[1:])
    folder = tmp_path / "r" / stages[-1]["folder"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["task"]["name"], config["source"]["name"]) == last
    origin = json.loads((folder / "manifest.json").read_text())["origin"]
    assert origin["taken"] and summary(folder)["score"]["value"] is not None
