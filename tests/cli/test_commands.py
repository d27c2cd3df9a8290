"""The command line as a person (or a shell, or a program) uses it."""

import json
import resource
import subprocess
import sys
from importlib.metadata import version as installed
from pathlib import Path

import pytest
from helpers.runs import TINY, ablatio

from ablatio.cli.completion import candidates
from ablatio.config import yaml_files
from ablatio.config.schema import SECTIONS, section_knobs
from ablatio.registry.registry import REGISTRIES

NO_TORCH = (
    "import sys; from ablatio.cli.main import main; code = main({arguments}); "
    "heavy = [m for m in ('torch', 'lightning', 'transformers') if m in sys.modules]; "
    "sys.exit(f'imported {{heavy}}' if heavy else code)"
)


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["list", "--json"],
        ["show", "position=rope"],
        ["show", "preset=bloom"],
        ["train", "--help"],
        ["train", "--cfg", "job"],
        ["train", "norm=nothing"],
        ["__complete", "train", "norm="],
    ],
)
def test_looking_and_checking_import_no_torch(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH.format(arguments=arguments)], capture_output=True, text=True, check=False
    )
    assert "imported" not in done.stderr, done.stderr
    assert done.returncode == (2 if arguments[-1] == "norm=nothing" else 0), done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
@pytest.mark.parametrize("columns", [80, 100])
def test_help_fits_the_terminal(
    arguments: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is lost: the words are those of a page without breaks."""
    from ablatio.cli.main import main
    from ablatio.cli.pages import fitted

    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert columns - 10 < max(map(len, shown.splitlines())) <= columns
    monkeypatch.setenv("COLUMNS", "80")
    row = "  word      " + "meaning " * 20
    lines = fitted(f"A title\n\n{row}\n{'prose ' * 30}").splitlines()
    assert " ".join(" ".join(lines).split()) == " ".join(f"A title {row} {'prose ' * 30}".split())
    assert lines[2].startswith("  word      meaning") and lines[3].startswith(" " * 12 + "meaning")
    assert max(map(len, lines)) <= 80


def test_the_catalogue_as_json_knows_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    from ablatio.cli.main import main

    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    files = {group: set(options) for group, options in yaml_files.files().items()}
    assert {k: set(v) for k, v in found.items()} == {k: set(r.names()) for k, r in REGISTRIES.items()} | files
    bloom = found["preset"]["bloom"]
    assert bloom["paper"] == "arXiv:2211.05100" and "176b" in bloom["sizes"] and bloom["parts"]["position"] == "alibi"
    assert bloom["doc"].startswith("BLOOM") and bloom["dist"] == "ablatio"
    rope = found["position"]["rope"]
    assert rope["dist"] == "ablatio" and {k["name"] for k in rope["knobs"]} >= {"base", "fraction", "layout"}


def test_show_says_formula_knobs_source_and_provider(capsys: pytest.CaptureFixture[str]) -> None:
    from ablatio.cli.main import main

    assert main(["show", "position=rope"]) == 0
    out = capsys.readouterr().out
    for part in (
        "t * base^(-2i/d)",
        "position.fraction",
        "(0, 1]",
        "arXiv:2104.09864",
        f"ablatio {installed('ablatio')}",
    ):
        assert part in out
    for section, knobs in SECTIONS.items():
        assert main(["show", section]) == 0
        out = capsys.readouterr().out
        assert all(f"{section}.{k.name}" in out for k in section_knobs(knobs))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], "train"),
        (["tr"], "train"),
        (["train", "no"], "norm="),
        (["train", "norm=rm"], "norm=rmsnorm"),
        (["train", "-m", "norm=layernorm,rm"], "norm=layernorm,rmsnorm"),
        (["train", "norm=layernorm", "norm.b"], "norm.bias="),
        (["train", "optimizer=sgd", "optimizer."], "optimizer.momentum="),
        (["train", "optimizer."], "optimizer.betas="),
        (["train", "train.st"], "train.steps="),
        (["train", "trainer.device="], "trainer.device=cuda"),
        (["train", "stabilizer.cl"], "stabilizer.clip.max_norm="),
        (["show", "position=al"], "position=alibi"),
        (["list", "opt"], "optimizer"),
    ],
)
def test_completion(words: list[str], expected: str) -> None:
    assert expected in candidates(words)


def test_completion_in_a_real_bash() -> None:
    script = (
        'eval "$(ablatio completion bash)"; COMP_LINE="ablatio train norm=rm"; COMP_POINT=${#COMP_LINE}; _ablatio; '
        'echo "${COMPREPLY[@]}"'
    )
    path = str(Path(sys.executable).parent)
    done = subprocess.run(["bash", "-c", f'PATH="{path}:$PATH"; {script}'], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "rmsnorm", done


@pytest.mark.slow
def test_a_run_is_evaluated_and_sampled(tmp_path: Path, text_file: Path) -> None:
    run = tmp_path / "run with spaces é"
    arguments = ["train", *TINY, f"source.path={text_file}", f"out='{tmp_path / 'run with spaces é'}'", "name=run"]
    ended = ablatio([*arguments, "train.steps=150", "optimizer.lr=0.02"], tmp_path / "log")
    assert ended.code == 0, ended.err
    scored = ablatio(["evaluate", str(run / "run"), "--length", "16,32", "--json"], tmp_path / "log")
    scores = json.loads(scored.out)["scores"]
    assert [s["length"] for s in scores] == [16, 32] and all(0 < s["bpb"] < 5 for s in scores)
    twice = [
        ablatio(["generate", str(run / "run"), "the people", "--tokens", "30", "--seed", "3"], tmp_path / "log").out
        for _ in range(2)
    ]
    assert twice[0] == twice[1] and twice[0].startswith("the people") and len(twice[0]) > 20
    bad = ablatio(["generate", str(run / "run"), "--temperature", "-1"], tmp_path / "log")
    assert bad.code == 2 and "--temperature 0.8" in bad.err
    manifest = json.loads((run / "run/manifest.json").read_text())
    assert manifest["size"]["parameters"] > 0 and "norm/rmsnorm" in manifest["code"]["parts"]


@pytest.mark.slow
def test_size_tells_without_allocating(capsys: pytest.CaptureFixture[str]) -> None:
    from ablatio.cli.main import main

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["size", "preset=bloom", "size=176b", "--json"]) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB, of modules
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 176_247_271_424 and found["weights"] == 4 * found["parameters"]
    assert found["optimizer"] >= 2 * found["weights"]
    assert main(["size", "preset=bloom", "size=176b"]) == 0
    out = capsys.readouterr().out
    assert "176,247,271,424" in out and "705 GB" in out and "state of adamw" in out


@pytest.mark.slow
def test_what_cannot_fit_is_not_begun(tmp_path: Path) -> None:
    ended = ablatio(["train", "preset=bloom", "size=176b", f"out={tmp_path}", "name=run"], tmp_path / "log")
    assert ended.code == 5
    assert "176,247,271,424 parameters" in ended.err and "2,820.0 GB" in ended.err and "try: size=small" in ended.err
    assert not (tmp_path / "run").exists(), "a failed start leaves no folder"


def test_doctor_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    from ablatio.cli.main import main

    assert main(["doctor"]) == 0
    assert "no problems found" in capsys.readouterr().out
