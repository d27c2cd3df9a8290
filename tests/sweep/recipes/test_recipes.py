"""recipe=: all stages are checked before the first runs, pass on their results, resume after a kill."""

import json
from pathlib import Path

import pytest
import torch
from helpers.runs import Finished, ablatio, metrics, summary

from ablatio.cli.main import main
from ablatio.config import yaml_files
from ablatio.errors import ConfigError, UserError
from ablatio.registry.registry import ContractError, Distribution
from ablatio.sweep.recipes.plan import merge_overrides, plan_recipe
from ablatio.sweep.recipes.schema import FILE, RECIPE, load

SMALL = (
    "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "tokenizer=bytes", "data.val_fraction=0.3",
    "train.batch_size=4", "train.log_every=2", "train.val_every=null", "train.checkpoint_every=2",
    "trainer.threads=1", "trainer.progress=false",
)  # fmt: skip
INSTRUCT = (
    "recipe=instructgpt", *SMALL, "source.size=40", "model.max_len=256", "train.steps=6", "stages.sft.task.share=0",
    "stages.ppo.train.steps=4", "stages.ppo.task.answer_tokens=8",
)  # fmt: skip
FOLDERS = ("01-sft", "02-reward", "03-ppo")


def train(folder: Path, *overrides: str, kill_when: Path | None = None) -> Finished:
    return ablatio(["train", *overrides, f"out={folder}"], folder / "log", kill_when)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted recipe run."""
    folder = tmp_path_factory.mktemp("recipes")
    ended = train(folder, *INSTRUCT, "name=r")
    assert ended.code == 0, ended.err
    assert all(word in ended.out for word in ("stage 1 of 3, sft", "reward, sft", "accuracy"))
    return folder / "r"


def test_stages_start_from_earlier_stages(whole: Path) -> None:
    recorded = json.loads((whole / FILE).read_text())
    assert [s["status"] for s in recorded["stages"]] == ["done"] * 3
    assert [s["takes"] for s in recorded["stages"]] == [[], ["sft"], ["reward", "sft"]]
    assert [s["score"]["name"] for s in recorded["stages"]] == ["val/loss", "val/accuracy", "val/reward"]
    origins = [json.loads((whole / f / "manifest.json").read_text()).get("origin") for f in FOLDERS]
    assert origins[0] is None
    assert all(o["origin"] == str(whole / "01-sft") and o["taken"] and not o["anew"] for o in origins[1:])
    assert recorded["stages"][2]["score"]["value"] == summary(whole / "03-ppo")["val/reward"]


def test_ppo_reward_equals_the_reward_model_score(whole: Path) -> None:
    """reward=model gives the scores that task=reward computes for the same answers."""
    from ablatio.model.rl.answers import Answer
    from ablatio.training.load import load_run
    from ablatio.training.reward_model import open_reward

    run = load_run(whole / "02-reward")[0]
    run.model.eval()
    task = run.task
    chosen = [task.set.answers[i] for i in range(6)]
    judge = open_reward(str(whole / "02-reward"), task.tokenizer)
    found = judge([Answer("", "", a.ids[: a.first].tolist(), a.ids[a.first :].tolist(), "", {}) for a in chosen])
    with torch.no_grad():
        batch = task.set.batch(range(6))
        expected = task.rewards(run.model, task.example(batch, torch.Generator()))
    assert torch.allclose(found, expected, atol=1e-5) and found.std() > 0


@pytest.mark.matrix
@pytest.mark.parametrize("last", ["01-sft/summary.json", "02-reward/checkpoints/step-00000002.json",
                                  "03-ppo/checkpoints/step-00000002.json"])  # fmt: skip
def test_killed_recipe_resumes_to_the_same_metrics(whole: Path, tmp_path: Path, last: str) -> None:
    """The same command, or `resume`, continues between and within stages; metrics equal an uninterrupted run's."""
    place = tmp_path / "r"
    train(tmp_path, *INSTRUCT, "name=r", kill_when=place / last)
    begun = json.loads((place / FILE).read_text())
    assert begun["stages"][2]["status"] != "done"
    again = train(tmp_path, *INSTRUCT, "name=r") if "ppo" not in last else resume(place)
    assert again.code == 0, again.err
    assert "01-sft is finished" in again.out
    assert [metrics(place / f) for f in FOLDERS] == [metrics(whole / f) for f in FOLDERS]


def resume(folder: Path, *more: str) -> Finished:
    return ablatio(["resume", str(folder), *more], folder.parent / "log")


def test_finished_recipe_is_unchanged_and_keeps_its_settings(whole: Path) -> None:
    before = {f: (whole / f / "metrics.csv").stat().st_mtime_ns for f in FOLDERS}
    assert resume(whole, "trainer.threads=2").code == 0
    assert {f: (whole / f / "metrics.csv").stat().st_mtime_ns for f in FOLDERS} == before
    other = train(whole.parent, *INSTRUCT, "stages.ppo.train.steps=5", "name=r")
    assert other.code == 2 and "differ in ppo" in other.err
    assert "keeps its settings" in resume(whole, "seed=2").err


def test_staged_pretraining_continues_with_longer_rows(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(f"The state of the year {n} is good." * 3 for n in range(120)))
    text = ("source=text", f"source.path={tmp_path / 'text.txt'}", "source.separator='\\n\\n'")
    ended = train(tmp_path, "recipe=staged_pretraining", *SMALL, *text, "train.steps=4", "name=r")
    assert ended.code == 0, ended.err
    configs = [json.loads((tmp_path / "r" / f / "config.json").read_text()) for f in ("01-core", "02-longer")]
    assert [c["model"]["max_len"] for c in configs] == [64, 256]
    scores = [summary(tmp_path / "r" / f) for f in ("01-core", "02-longer", "03-anneal")]
    assert scores[2]["before"]["bpb"] == pytest.approx(scores[1]["after"]["bpb"])  # type: ignore[index]


@pytest.mark.parametrize("name", list(yaml_files.options_of(RECIPE)))
def test_each_shipped_recipe_can_be_planned(name: str, tmp_path: Path) -> None:
    plan = plan_recipe([f"recipe={name}", f"out={tmp_path}", "name=r", "size=small", "seed=3", "norm=layernorm"])
    for stage in plan.stages:
        config = stage.composed.config
        assert config["seed"] == 3 and config["model"]["d_model"] == 128 and config["norm"]["name"] == "layernorm"
        assert stage.what and stage.folder.parent == tmp_path / "r"
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "wrong, messages",
    [
        (
            ["stages.ppo.alignment.clip=-1", "stages.reward.task.margin=x"],
            ["stages.ppo.alignment.clip", "margin: expected float, got 'x'"],
        ),
        (["norm=rmsnrom"], ["  norm: there is no `rmsnrom`; did you mean rmsnorm"]),
        (["stages.reward.model.path=${stage.ppo}"], ["reward has no earlier stage `ppo`"]),
        (["stages.reward.model.path=${stage.sft}/x"], ["a reference is the whole value"]),
        (["stages.reward.model.path=/nowhere"], ["there is no folder /nowhere"]),
        (["stages.stf.seed=1"], ["no stage `stf`; did you mean sft", "stages.sft"]),
        (["sft.train.steps=3"], ["try: stages.sft.train.steps=3"]),
        (["task=sft"], ["each has its own task"]),
        (["source=sotu"], ["accepts conversations"]),
        (["name=../x"], ["is not a valid folder name"]),
        (["stages.sft.name=x"], ["follows from the recipe's"]),
        (["recipe=staged_pretraining"], ["2 recipes came"]),
        (["--cfg"], ["try: ablatio show recipe=instructgpt"]),
    ],
)
def test_invalid_recipes_are_rejected_before_the_first_stage(
    wrong: list[str], messages: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "recipe=instructgpt", f"out={tmp_path}", "name=r", *wrong]) == 2
    error = capsys.readouterr().err
    assert all(words in error for words in messages), error
    assert not any(tmp_path.iterdir())


def test_folder_that_is_no_recipe_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "mine.txt").write_text("mine")
    assert main(["train", "recipe=instructgpt", f"out={tmp_path}", "name=r"]) == 2
    assert "no recipe's folder" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["mine.txt"]


def test_unknown_recipe_suggests_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recipe=instructgt"]) == 2
    assert "did you mean instructgpt" in capsys.readouterr().err


def test_later_settings_replace_earlier_ones() -> None:
    assert merge_overrides(["train.steps=1", "seed=1"], ["train.steps=2"]) == ("seed=1", "train.steps=2")
    assert merge_overrides(["optimizer.lr=1", "seed=1"], ["optimizer=lion"]) == ("seed=1", "optimizer=lion")
    assert merge_overrides(["optimizer=lion", "optimizer.lr=1"]) == ("optimizer=lion", "optimizer.lr=1")


def test_later_stages_use_the_tokenizer_of_their_start_model(tmp_path: Path) -> None:
    plan = plan_recipe(["recipe=instructgpt", "tokenizer=bytes", f"out={tmp_path}", "name=r"])
    assert [s.composed.config["tokenizer"]["name"] for s in plan.stages] == ["bytes", "pretrained", "pretrained"]
    assert plan.stages[1].composed.config["tokenizer"]["path"] == str(tmp_path / "r" / "01-sft")


def test_a_folder_with_a_space_is_quoted(tmp_path: Path) -> None:
    plan = plan_recipe(["recipe=instructgpt", f"out='{tmp_path}/my runs'", "name=r"])
    assert plan.stages[2].composed.config["reward"]["path"] == f"{tmp_path}/my runs/r/02-reward"


@pytest.mark.parametrize(
    "text, what",
    [
        ("stages: []", "a list of one stage or more"),
        ("stage: []", "`stage` came"),
        ("stages: [{stage: a/b}]", "a name of letters"),
        ("stages: [{stage: a}, {stage: a}]", "two stages are called a"),
        ("stages: [{stage: a, overrides: {seed: 1}}]", "a list of settings"),
        ("stages: [{stage: a, _target_: os.system}]", "would build an object"),
    ],
)
def test_invalid_recipe_file_is_rejected(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ContractError, match=what):
        load(yaml_files.File(RECIPE, "bad", tmp_path / "bad.yaml", Distribution("x", "1")))


def test_problems_of_all_stages_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_recipe(["recipe=instructgpt", "stages.ppo.reward.scale=x", "stages.reward.seed=-1"])
    assert {p.where for p in caught.value.problems} == {"stages.ppo.reward.scale", "stages.reward.seed"}
    assert all(p.fix.startswith("stages.") for p in caught.value.problems)


def test_moved_recipe_cannot_be_resumed(whole: Path, tmp_path: Path) -> None:
    from ablatio.sweep.recipes.run import resumed

    (tmp_path / FILE).write_text((whole / FILE).read_text())
    with pytest.raises(UserError, match="was begun as"):
        resumed(tmp_path, [])
