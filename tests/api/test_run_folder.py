"""`ablatio.open_run`: what stands in a run folder, and what its model says."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers.runs import ablatio as command

import ablatio


def test_a_run_tells_what_stands_in_its_folder(run: "ablatio.RunFolder") -> None:
    opened = ablatio.open_run(str(run.folder))
    assert opened.config["norm"]["name"] == "rmsnorm" and opened.config["train"]["steps"] == 12
    assert opened.summary == json.loads((run.folder / "summary.json").read_text())
    assert opened.manifest["size"]["parameters"] == sum(p.numel() for p in opened.model.parameters())
    frame = opened.metrics
    assert list(frame.columns[:3]) == ["step", "tokens", "train/loss"]
    assert frame["val/loss"].dropna().iloc[-1] == pytest.approx(opened.summary["val/loss"], rel=1e-8)
    assert frame["step"].dtype.kind == "i" and frame["step"].max() == 12
    assert f"{run.folder}: done, 12 of 12 steps, val/loss {opened.summary['val/loss']:.4f}" in repr(opened)


def test_the_model_and_the_tokenizer_are_ready_to_be_used(run: "ablatio.RunFolder") -> None:
    opened = ablatio.open_run(run.folder)
    assert isinstance(opened.model, torch.nn.Module) and not opened.model.training and opened.model is opened.model
    ids = [int(i) for i in opened.tokenizer.encode(["the people"])[0]]
    assert opened.tokenizer.decode(ids) == "the people"
    assert opened.model(torch.tensor([ids])).shape == (1, len(ids), opened.tokenizer.vocab_size)
    assert opened.step == 12 and ablatio.open_run(run.folder, step=8).step == 8
    with pytest.raises(ablatio.UserError, match="no checkpoint of step 7"):
        _ = ablatio.open_run(run.folder, step=7).model


def test_it_generates_what_the_command_generates(run: "ablatio.RunFolder", tmp_path: Path) -> None:
    text = run.generate("the people", tokens=20, seed=3)
    done = command(["generate", str(run.folder), "the people", "--tokens", "20", "--seed", "3"], tmp_path)
    assert done.out == text + "\n" and text.startswith("the people")
    assert run.generate("the people", tokens=20, seed=3) == text
    many = run.generate_many(["the people", "peace"], tokens=5, temperature=0)
    assert [t.startswith(p) for t, p in zip(many, ("the people", "peace"), strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, ["--temperature", "-1"]),
        ({"chat": True}, ["--chat"]),
    ],
)
def test_wrong_options_of_generate_raise_the_error_of_the_command(
    run: "ablatio.RunFolder", options: dict[str, object], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ablatio.UserError) as raised:
        run.generate(**options)  # type: ignore[arg-type]
    assert command(["generate", str(run.folder), *words], tmp_path).err == f"ablatio: {raised.value}\n"


def test_its_scores_are_those_of_the_command(run: "ablatio.RunFolder", tmp_path: Path) -> None:
    words = ["evaluate", str(run.folder), "--length", "8,16", "--quantization", "int8", "--json"]
    told = json.loads(command(words, tmp_path).out)
    assert told["step"] == 12
    opened = ablatio.open_run(run.folder)
    before = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
    assert [opened.evaluate(8), opened.evaluate(16)] == told["scores"][:2]
    assert opened.evaluate_lengths([8, 16], quantization="int8") == told["scores"]
    assert opened.evaluate()["loss"] == opened.evaluate(16)["loss"]
    assert opened.evaluate(8, quantization="int8") == told["scores"][2]
    assert all(torch.equal(before[name], tensor) for name, tensor in opened.model.state_dict().items())


def test_scores_are_of_the_model_as_it_is_now(run: "ablatio.RunFolder") -> None:
    opened = ablatio.open_run(run.folder)
    before = opened.evaluate(16)["loss"]
    with torch.no_grad():
        for parameter in opened.model.parameters():
            parameter.zero_()
    uniform = torch.log(torch.tensor(float(opened.tokenizer.vocab_size))).item()
    assert opened.evaluate(16)["loss"] == pytest.approx(uniform) != before
    assert opened.evaluate(16, objective="lm")["loss"] == pytest.approx(uniform)  # a second model, the same weights


def test_a_length_that_a_model_cannot_read_is_refused(settings: tuple[str, ...], tmp_path: Path) -> None:
    learned = ablatio.train(*settings, "position=learned", "train.steps=1", name="r", out=tmp_path, quiet=True)
    with pytest.raises(ablatio.UserError, match="length 32 is refused"):
        learned.evaluate(32)
    assert [sorted(row) == ["length", "refused"] for row in learned.evaluate_lengths([16, 32])] == [False, True]


def test_without_pandas_the_frames_say_how_to_get_it_and_all_else_works(
    run: "ablatio.RunFolder", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    opened = ablatio.open_run(run.folder)
    with pytest.raises(ablatio.UserError, match=r"(?s)metrics is a pandas table.*pip install 'ablatio\[notebook\]'"):
        _ = opened.metrics
    assert opened.summary["status"] == "done" and opened.evaluate(8)["loss"] > 0


def test_a_folder_without_a_run_and_a_run_without_results(run: "ablatio.RunFolder", tmp_path: Path) -> None:
    with pytest.raises(ablatio.UserError, match="is no run folder"):
        ablatio.open_run(tmp_path)
    shutil.copy(run.folder / "config.json", tmp_path)
    begun = ablatio.open_run(tmp_path)
    assert begun.summary == {} and begun.manifest == {} and "not finished" in repr(begun)
    with pytest.raises(ablatio.UserError, match="has logged nothing yet"):
        _ = begun.metrics
    with pytest.raises(ablatio.UserError, match="no checkpoint"):
        begun.generate("a")


def test_a_damaged_summary_is_an_error_of_the_house(run: "ablatio.RunFolder", tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "r")
    (tmp_path / "r/summary.json").write_text("{")
    with pytest.raises(ablatio.EnvironmentFault, match=r"summary\.json cannot be read"):
        _ = ablatio.open_run(tmp_path / "r").summary
