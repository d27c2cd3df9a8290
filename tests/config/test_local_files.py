"""YAML files of the user: named by their path, or in a folder; found everywhere, checked like those of a plugin."""

import os
from pathlib import Path

import pytest

from ablatio.cli.completion import candidates
from ablatio.cli.main import main
from ablatio.config import local_files, yaml_files
from ablatio.config.compose import compose_run
from ablatio.config.compose_many import Composer
from ablatio.errors import ConfigError, UserError
from ablatio.registry.registry import REGISTRIES
from ablatio.storage.paths import shipped
from ablatio.sweep.plan import plan_sweep
from ablatio.sweep.recipes.plan import plan_recipe

FILES = {
    "experiment": "# Mine.\ndefaults:\n  - override /size: tiny\noptimizer: {lr: 3e-4}\ntrain: {steps: 7}\n",
    "sweep": "# Mine.\nsweep:\n  axes: {norm: [rmsnorm, layernorm], optimizer.lr: [1e-3]}\ntrain: {steps: 7}\n",
    "preset": "# Mine.\nnorm: {name: layernorm, eps: 1e-4}\n"
    "sizes:\n  mini: {model: {d_model: 24, n_layers: 1, n_heads: 2}}\n",
    "recipe": "# Mine.\noverrides: [size=tiny]\nstages:\n  - {stage: only, overrides: [train.steps=7]}\n",
    "size": "# Mine.\nd_model: 24\nn_layers: 1\nn_heads: 2\n",
    "optimizer": "# Mine.\nname: adamw\nlr: 0.5\n",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(local_files.VARIABLE, raising=False)
    monkeypatch.setattr(local_files, "_named", {})
    return tmp_path


def write(path: str, text: str) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def numbers(group: str, option: str) -> tuple[object, ...]:
    """What choosing the option sets."""
    word = f"{group}={option}"
    if group == "sweep":
        plan = plan_sweep([f"+{word}"])
        return plan.study.name, [job.arm for job in plan.jobs], plan.jobs[0].config["train"]["steps"]
    if group == "recipe":
        return tuple((stage.name, stage.composed.config["train"]["steps"]) for stage in plan_recipe([word]).stages)
    more = ["size=mini"] if group == "preset" else []
    config = compose_run([word, *more]).config
    return config["optimizer"]["lr"], config["train"]["steps"], config["model"]["d_model"], config["norm"]["eps"]


EXPECTED = {
    "experiment": (0.0003, 7, 64, 1e-6),
    "sweep": (
        "mine",
        [{"norm": "rmsnorm", "optimizer.lr": "0.001"}, {"norm": "layernorm", "optimizer.lr": "0.001"}],
        7,
    ),
    "preset": (0.006, 2400, 24, 1e-4),
    "recipe": (("only", 7),),
    "size": (0.006, 2400, 24, 1e-6),
    "optimizer": (0.5, 2400, 128, 1e-6),
}


@pytest.mark.parametrize("group", FILES)
def test_a_file_is_an_option_wherever_it_lies(group: str, here: Path) -> None:
    write("mine.yaml", FILES[group])
    relative = {"experiment": "./mine.yaml", "preset": "mine.yaml"}  # and an absolute path
    found = [numbers(group, relative.get(group, str(here / "mine.yaml")))]
    Path("mine.yaml").rename("other.yml")
    write(f"conf/{group}/mine.yaml" if group != "sweep" else "sweeps/mine.yaml", Path("other.yml").read_text())
    found.append(numbers(group, "mine"))
    assert found == [EXPECTED[group]] * 2


@pytest.mark.matrix
@pytest.mark.parametrize("group", ["preset", "size", "experiment", "optimizer"])
def test_a_file_is_a_value_of_an_axis(group: str) -> None:
    """An axis of files gives the arms that each file gives alone, composed by Hydra or in a frame."""
    write("a.yaml", FILES[group])
    write("b.yaml", FILES[group].replace("0.5", "0.25").replace("24", "48").replace("steps: 7", "steps: 9"))
    more = ["size=mini"] if group == "preset" else []
    plan = plan_sweep([f"{group}=./a.yaml,./b.yaml", *more])
    assert [job.arm[group] for job in plan.jobs] == ["./a.yaml", "./b.yaml"]
    for job in plan.jobs:
        words = [f"{group}={job.arm[group]}", *more]
        assert job.config == compose_run([*words, "seed=1"]).public
        assert Composer().compose([*words, "norm=layernorm"]).config == compose_run([*words, "norm=layernorm"]).config


def test_a_folder_is_named_by_a_flag_or_by_a_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("first/experiment/one.yaml", FILES["experiment"])
    write("second/sweeps/two.yaml", FILES["sweep"])
    assert main(["show", "experiment=one", "--config-dir", "first"]) == 0
    assert "first/experiment/one.yaml" in capsys.readouterr().out.replace("\n", "")
    assert local_files.VARIABLE not in os.environ
    monkeypatch.setenv(local_files.VARIABLE, os.pathsep.join(["first", "second"]))
    assert {"one"} <= set(yaml_files.options_of("experiment")) and "two" in yaml_files.options_of("sweep")
    monkeypatch.setenv(local_files.VARIABLE, "third")
    with pytest.raises(UserError, match="names third, and there is no such folder"):
        yaml_files.files()
    monkeypatch.delenv(local_files.VARIABLE)
    assert main(["list", "--config-dir=nowhere"]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_where_a_file_comes_from_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    write("conf/preset/mine.yaml", FILES["preset"])
    assert main(["list", "preset"]) == 0
    told = capsys.readouterr().out
    assert "mine" in told and "from: ./conf" in told
    assert "preset=mine" in candidates(["train", "preset="])
    write("sub/x.yaml", FILES["preset"])
    assert candidates(["train", "preset=./s"]) == ["preset=./sub/"]
    assert candidates(["train", "+experiment=sub/"]) == ["+experiment=sub/x.yaml"]


@pytest.mark.matrix
@pytest.mark.parametrize("words", [["+experiment=./mine.yaml"], ["experiment=mine"]])
@pytest.mark.parametrize("text", ["optimizer: {lr: fast}", "train: {stepps: 3}", "nrom: x"])
def test_an_error_names_the_file_that_sets_the_value(words: list[str], text: str) -> None:
    write("mine.yaml", text)
    write("conf/experiment/mine.yaml", text)
    place = "mine.yaml" if "./" in words[0] else "conf/experiment/mine.yaml"
    for compose in (compose_run, Composer().compose):
        with pytest.raises(ConfigError) as raised:
            compose([*words, "norm=layernorm"])
        assert f"(set in {place})" in str(raised.value)


BAD = {
    "builds an object": ("norm: {_target_: os.system}", "would build an object"),
    "sets hydra": ("hydra: {run: {dir: x}}", "changes a setting of Hydra"),
    "chooses of hydra": ("defaults:\n  - override /hydra/job_logging: default", "changes a setting of Hydra"),
    "names code": ("parts: ./evil.py", "would name a file of code"),
    "names code deeper": ("parts.file: ./evil.py", "would name a file of code"),
    "is no mapping": ("- a\n- b", "expected settings"),
    "is no YAML": ("a: [1,", "expected"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_may_not_stand_in_a_file_is_refused(case: str) -> None:
    text, why = BAD[case]
    write("evil.py", "raise SystemExit('executed')")
    write("bad.yaml", text)
    for word in ("+experiment=./bad.yaml", "preset=bad.yaml", "+sweep=./bad.yaml", "recipe=./bad.yaml"):
        with pytest.raises(Exception, match=why):
            (plan_recipe if word.startswith("recipe") else plan_sweep)([word])
    write("conf/experiment/bad.yaml", text)
    assert "bad" not in yaml_files.options_of("experiment")
    assert [file.path for file in yaml_files.left_out()] == ["./conf/experiment/bad.yaml"]
    assert why in str(yaml_files.left_out()[0])


def test_the_error_of_an_unknown_option_names_the_file_that_is_left_out() -> None:
    write("conf/experiment/bad.yaml", "parts: ./evil.py")
    with pytest.raises(
        ConfigError, match=r"\./conf/experiment/bad\.yaml is left out: `parts` would name a file of code"
    ):
        compose_run(["experiment=bad"])
    write("sweeps/bad.yaml", "parts: ./evil.py")
    with pytest.raises(UserError, match=r"there is no sweep bad; \./sweeps/bad\.yaml is left out"):
        plan_sweep(["+sweep=bad"])


def test_a_name_that_exists_is_taken_only_by_a_file_that_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    write("conf/size/tiny.yaml", FILES["size"])
    assert not yaml_files.options_of("size")["tiny"].local
    assert compose_run(["size=tiny"]).config["model"]["d_model"] == 64
    assert "# @replaces ablatio" in str(yaml_files.left_out()[0])
    write("conf/size/tiny.yaml", f"# @replaces ablatio\n{FILES['size']}")
    assert compose_run(["size=tiny"]).config["model"]["d_model"] == 24
    write("conf/experiment/uses.yaml", "defaults:\n  - override /size: tiny\nnorm: {epsilon: 1}\n")
    assert main(["train", "experiment=uses"]) == 2  # the size is chosen by the file
    assert "size=tiny is conf/size/tiny.yaml, which replaces that of ablatio" in capsys.readouterr().err
    assert yaml_files.options_of("size")["tiny"].summary == "Mine."


def test_a_file_may_never_take_the_name_of_a_part() -> None:
    write("conf/norm/rmsnorm.yaml", "# @replaces ablatio\nname: layernorm\n")
    assert compose_run([]).config["norm"]["name"] == "rmsnorm"
    assert "is a part of ablatio" in yaml_files.left_out()[0].why


def test_the_folders_of_other_programs_are_left_alone() -> None:
    """./conf is a usual name; what stands in it for another program is neither read nor reported."""
    write("conf/config.yaml", "db: {_target_: x}")
    write("conf/database/mysql.yaml", "_target_: x")
    write("conf/experiments/mine.yaml", FILES["experiment"])  # a slip of the pen
    (Path("conf") / "size").mkdir()
    (Path("conf") / "size" / "tiny.yaml").write_bytes((shipped("conf") / "size/tiny.yaml").read_bytes())  # a copy
    assert [file.path for file in yaml_files.left_out()] == ["./conf/experiments/mine.yaml"]
    assert "did you mean experiment" in yaml_files.left_out()[0].why


def test_a_folder_that_cannot_be_read_costs_nothing_else(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Path.iterdir

    def refused(path: Path) -> object:
        if path.name == "conf":
            raise PermissionError(13, "Permission denied")
        return inside(path)

    (here / "conf").mkdir()
    monkeypatch.setattr(Path, "iterdir", refused)
    assert [str(file) for file in yaml_files.left_out()] == ["./conf is left out: Permission denied"]
    assert "demo" in yaml_files.options_of("experiment")
    monkeypatch.setattr(Path, "iterdir", inside)
    gone = here / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "demo" in yaml_files.options_of("experiment")


def test_a_stage_of_a_recipe_may_name_a_file() -> None:
    write("p.yaml", FILES["preset"])
    write("r.yaml", "stages:\n  - {stage: only, overrides: [preset=./p.yaml, size=mini]}\n")
    assert plan_recipe(["recipe=./r.yaml"]).stages[0].composed.config["model"]["d_model"] == 24
    plan = plan_sweep(["recipe=./r.yaml", "seed=1,2"])
    assert [job.config["norm"]["eps"] for job in plan.jobs] == [1e-4] * 2


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("+experiment=./gone.yaml", "there is no file"),
        ("preset=gpt2.yaml", "try: preset=gpt2"),
        ("+experiment=./notes/plan.txt", "expected a YAML file"),
        ("+experiment='./a b.yaml'", "may not contain ' '"),
    ],
)
def test_a_path_that_cannot_be_used_is_refused(word: str, message: str) -> None:
    write("notes/plan.txt", "x")
    write("a b.yaml", FILES["experiment"])
    with pytest.raises(UserError, match=message):
        compose_run([word])


def test_every_kind_is_a_group_of_files() -> None:
    """An option of any kind may be a file: the part with other defaults."""
    for kind, registry in REGISTRIES.items():
        if registry.in_run and registry.usual:
            write(f"conf/{kind}/mine.yaml", f"name: {registry.usual[0] if registry.multiple else registry.usual}\n")
    assert not yaml_files.left_out()
    found = [kind for kind in REGISTRIES if "mine" in yaml_files.options_of(kind)]
    assert len(found) > 10 and any(REGISTRIES[kind].multiple for kind in found)
    words = [f"{kind}=[mine]" if REGISTRIES[kind].multiple else f"{kind}=mine" for kind in found]
    assert compose_run(words).config == compose_run([]).config
    write("conf/optimizer/mine.yaml", "name: adamw\nweight_decay: 0.25\n")
    changed = compose_run(["optimizer=mine", "optimizer.lr=0.5"]).config["optimizer"]
    assert changed == {**compose_run([]).config["optimizer"], "weight_decay": 0.25, "lr": 0.5}


def test_a_file_beside_is_named_by_its_path(here: Path) -> None:
    """The name of a file without its path, as the other programs of Hydra take it."""
    (here / "mine.yaml").write_text("train: {steps: 3}\n", encoding="utf-8")
    (here / "study.yaml").write_text("sweep: {axes: {seed: [1, 2]}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"named by its path: experiment=\./mine\.yaml"):
        compose_run(["experiment=mine"])
    assert compose_run(["experiment=./mine.yaml"]).config["train"]["steps"] == 3
    with pytest.raises(UserError, match=r"try: \+sweep=\./study\.yaml"):
        plan_sweep(["+sweep=study"])
    assert len(plan_sweep(["+sweep=./study.yaml"]).jobs) == 2


@pytest.mark.parametrize("words", [["list"], ["list", "preset"], ["list", "--json"]])
def test_a_preset_that_cannot_be_used_is_named_and_the_others_are_listed(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder, and named by its path before in the same process, as in a notebook."""
    write("conf/preset/bad.yaml", "norm: []\n")
    write("other.yaml", "norm: [[]]\n")
    with pytest.raises(ConfigError, match="other"):
        compose_run(["preset=./other.yaml"])
    assert main(words) == 0
    said = capsys.readouterr()
    assert "llama2" in said.out and "bad.yaml" not in said.out
    assert "ablatio: preset=bad is left out: " in said.err and "`norm` is []; expected the name" in said.err
