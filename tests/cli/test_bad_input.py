"""Invalid settings: all problems at once, with the reason and a command that runs; exit code 2, no traceback."""

import re
import shlex

import pytest

from ablatio.cli.main import main
from ablatio.config.compose import compose_run
from ablatio.errors import ConfigError, UserError

CASES = {
    "misspelt group": (["nrom=rmsnorm"], "did you mean norm", "norm=rmsnorm"),
    "misspelt option": (["norm=rmsnrom"], "did you mean rmsnorm", "norm=rmsnorm"),
    "option of another kind": (["norm=rope"], "there are derf, dyt", None),
    "misspelt knob": (["optimizer.lrr=0.1"], "did you mean lr", "optimizer.lr=0.1"),
    "misspelt section key": (["train.step=10"], "did you mean steps", "train.steps=10"),
    "knob of another option": (["norm=rmsnorm", "norm.bias=true"], "there is no `bias`", "norm=layernorm"),
    "knob of several others": (["attention=mqa", "attention.n_kv_heads=2"], "knob of bigbird, conv", "attention=gqa"),
    "added knob": (["+norm.foo=1"], "there is no `foo`", None),
    "text for a number": (["optimizer.lr=abc"], "expected float, got 'abc' (str)", "optimizer.lr=0.006"),
    "negative rate": (["optimizer.lr=-1"], "expected a value > 0, got -1", "optimizer.lr=0.006"),
    "nan rate": (["optimizer.lr=nan"], "expected a finite number, got nan", "optimizer.lr=0.006"),
    "missing value": (["seed=???"], "expected int, but no value is set", "seed=1"),
    "bad choice": (["position.layout=diagonal"], "one of interleaved, half", "position.layout=interleaved"),
    "wrong length": (["optimizer.betas=[0.9]"], "expected 2 values, got 1", "optimizer.betas=[0.9,0.95]"),
    "heads that do not divide": (["model.n_heads=3"], "3 does not divide it", "model.n_heads=2"),
    "kv heads that do not divide": (
        ["attention=gqa", "attention.n_kv_heads=3"],
        "must divide",
        "attention.n_kv_heads=2",
    ),
    "odd rotary width": (["model.n_heads=128"], "must be even: 1 * 1 = 1", None),
    "odd rotary share": (["position.fraction=0.16"], "32 * 0.16 = 5", "position.fraction=0.1875"),
    "longer than a learned table": (
        ["position=learned", "data.length=512"],
        "has only model.max_len=256 positions",
        None,
    ),
    "two position signals": (["position=[rope,alibi]"], "got 2 options (rope, alibi)", "position=rope"),
    "two positions in a row": (["position=rope", "position=alibi"], "got two options", "position=alibi"),
    "deepnorm with pre-norm": (["placement=[deepnorm,pre]"], "a model has one placement", "placement=deepnorm"),
    "deepnorm in parallel": (["placement=deepnorm", "block=parallel"], "two sublayers in sequence", "block=sequential"),
    "several values without -m": (["norm=rmsnorm,layernorm"], "-m runs one after the other", None),
    "no setting at all": (["rmsnorm"], "write key=value", None),
    "a run name that leaves": (["name=../../x"], "is not a valid folder name", "name=my-run"),
    "a group as a number": (["norm=3"], "there is no `3`", None),
    "an object": (["+norm._target_=os.system"], "chosen by name", None),
    "an object, deep": (["+sweep.a.b._target_=os.system"], "chosen by name", None),
}


@pytest.mark.parametrize("case", CASES)
def test_a_problem_is_reported_with_a_fix(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    overrides, message, fix = CASES[case]
    assert main(["train", *overrides]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err, err
    if fix:
        assert f"try: {fix}" in err, err
    if match := re.search(r"This runs: ablatio train(.*)", err):
        compose_run(shlex.split(match[1]))  # the printed command composes and passes the check
    assert match or not fix, err


def test_all_problems_come_at_once() -> None:
    bad = [
        "nrom=x",
        "norm=rmsnrom",
        "optimizer.lrr=1",
        "optimizer.lr=abc",
        "model.n_heads=3",
        "seed=???",
        "train.steps=0",
    ]
    with pytest.raises(ConfigError) as caught:
        compose_run(bad)
    assert {p.where for p in caught.value.problems} == {
        "nrom", "norm", "optimizer.lrr", "optimizer.lr", "model.n_heads", "seed", "train.steps"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--experimental-rerun=x.pickle"], "loads a pickle"),
        (["train", "--config-name=x"], "--config-name is refused"),
        (["train", "-m", "norm=layernorm,rmsnorm", "--cfg", "job"], "it cannot be combined with -m"),
        (["train", "--flag"], "no flag --flag"),
        (["train", "--config-dir=x"], "there is no such folder"),
        (["train", "--config-dir"], "needs a folder"),
        (["train", "parts=gone.py"], "parts=gone.py cannot be read"),
        (["train", "parts=gone.yaml"], "expected one Python file"),
        (["train", "parts=a.py", "parts=b.py"], "one file of parts was expected"),
        (["train", "++parts=a.py"], "try: parts=a.py"),
        (["doctor", "parts=a.py"], "uses no parts"),
        (["check"], "a file of parts\n    try: ablatio check parts=my_parts.py"),
        (["train", "+experiment=./gone.yaml"], "there is no file"),
        (["train", "--package=x"], "no flag --package"),
        (["train", "+hydra.job_logging.handlers.x.class=os.system"], "hydra.job_logging would build handlers"),
        (["train", "-m", "seed=1,2", "+hydra.hydra_logging.handlers.x.class=os.system"], "would build handlers"),
        (["trian"], "did you mean train"),
        (["show", "position=rpoe"], "did you mean rope"),
        (["show", "positoin"], "did you mean position"),
        (["list", "nrom"], "did you mean norm"),
        (["evaluate", "/nowhere"], "is no run folder"),
        (["evaluate", "/nowhere", "eval=[dyck]", "--tokens", "8"], "--tokens has no effect on eval="),
        (["evaluate", "/nowhere", "eval=[dyck]", "--limit", "8"], "--limit has no effect on eval="),
        (["evaluate", "/nowhere", "lm_eval=x", "--length", "8"], "--length has no effect on lm_eval="),
        (["evaluate", "/nowhere", "--run-code"], "--run-code has no effect on held-out text"),
        (["generate", "/nowhere"], "is no run folder"),
        (["train", "resume=/nowhere"], "is no run folder"),
        (["train", "-m", "+sweep=nothing"], "there is no sweep nothing"),
        (["train", "-m", "norm=rmsnorm,nothing", "seed=1,2"], "there is no `nothing`"),
        (
            ["train", "-m", f"seed={','.join(map(str, range(200)))}", f"model.d_model={','.join(map(str, range(99)))}"],
            "10,000",
        ),
        (["train", "-m", "seed=1,2", "launcher=rya"], "did you mean ray"),
        (["train", "-m", "seed=1,2", "launcher.thread=2"], "did you mean threads"),
        (["train", "-m", "seed=1,2", "launcher=slurm", "launcher.cluster=pbs"], "one of slurm, local, debug"),
        (["train", "-m", "seed=1,2", "retry=everything"], "one of failed, running, user"),
        (["train", "hydra.callbacks.x._target_=os.system"], "hydra"),
        (["train", "+hydra.callbacks.x.y=1"], "parts are chosen by name"),
    ],
)
def test_other_bad_commands(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err, err


def test_a_secret_from_the_environment_is_used_and_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_NAME", "hunter2")
    composed = compose_run(["name='${oc.env:SECRET_NAME}'"])
    assert composed.config["name"] == "hunter2"
    assert composed.public["name"] == "${oc.env:SECRET_NAME}"


@pytest.mark.parametrize("name", ["../x", "/abs", "~", "a/b", "a\x00b", "x" * 300, "", ".hidden", "-flag", "a b", "é"])
def test_run_names_cannot_leave_their_root(name: str) -> None:
    with pytest.raises(UserError):
        compose_run([f"name='{name}'"])
