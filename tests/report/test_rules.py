"""Registered rules in the report: margin, target, scores that disagree, deviations; settings that carry a unit."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tests.helpers.studies import ACTIVATIONS, Fake, write_study

from ablatio.errors import ConfigError, UserError
from ablatio.report.analysis.findings import find
from ablatio.report.html.page_data import content
from ablatio.report.markdown import markdown_text
from ablatio.report.read.run import Run
from ablatio.report.read.table import Table, read_table
from ablatio.report.shrunk_table import shrunk_csv
from ablatio.sweep.plan import plan_sweep
from ablatio.sweep.registration import amount_in, read_amount
from ablatio.sweep.study import RUNS, Axis, Study

STEPS = [10, 20, 30, 40]


def _table(arms: dict[str, list[float]], *, baseline: str | None = None, more: dict[str, list[float]] | None = None,
           curves: dict[str, np.ndarray] | None = None, **study: object) -> Table:  # fmt: skip
    """In-memory study: losses of each arm by seed; more: bits per byte; curves: (seeds, STEPS) per arm."""
    runs = []
    for arm, losses in arms.items():
        for seed, loss in enumerate(losses):
            scores = {"val/loss": loss} | ({"val/bpb": more[arm][seed]} if more else {})
            drawn = {"val/loss": (STEPS, curves[arm][seed].tolist())} if curves else {}
            done = math.isfinite(loss)
            state = "done" if done else "diverged"
            run = Run(Path("gone"), "s", f"{arm}{seed}", {"norm": arm}, seed, "run", state, curves=drawn)
            runs.append(replace(run, scores=scores if done else {}, main={"name": "val/loss", "better": "lower"}))
    base = {"norm": baseline} if baseline else None
    made = Study("s", axes=[Axis("norm", tuple(arms))], seeds=range(9), baseline=base, **study)  # type: ignore[arg-type]
    return Table(made, [Path("gone")], runs)


def _around(mean: float, n: int = 5) -> list[float]:
    return [mean + 0.002 * x for x in (-1, 1, 0, 2, -2)[:n]]


def _said(found: object, start: str) -> list[str]:
    return [s for s in found.said() if s.startswith(start)]  # type: ignore[attr-defined]


def test_margin_sentences_carry_unit_p_and_n() -> None:
    """Parameter Golf's rule: better by more than 0.005 nats at p < 0.01."""
    arms = {"base": _around(3.2), "good": _around(3.15), "same": [*_around(3.2)[1:], 3.1985], "bad": _around(3.26)}
    arms["good"][0] += 0.003
    arms["bad"][1] += 0.003
    settings = {"margin": "0.005", "alpha": 0.01}
    found = find(_table(arms, baseline="base", settings=settings))
    good, same, bad = _said(found, "Margin 0.005 nats: ")
    assert "good beats base by more than the margin" in good and "base beats bad by more than the margin" in bad
    gain = np.subtract(arms["base"], arms["good"])
    p = 3 * stats.ttest_1samp(gain, 0.005, alternative="greater").pvalue
    assert p < 0.001 and "one-sided Holm p < 0.001, n = 5" in good and f"{-gain.mean():+.3f}"[:6] in good
    assert "for same and base neither a difference beyond the margin nor equality within it is shown" in same
    page = content(found)["verdict"]
    assert good in page["en"]["notes"] and good in markdown_text(found).replace("\\", "").replace("&lt;", "<")
    assert any("界限 0.005 nats：good 优于 base" in s for s in page["zh"]["notes"])


def test_margin_is_not_tested_on_the_survivors_of_divergence() -> None:
    arms = {"base": _around(3.2), "lucky": [3.1, 3.101, 3.102, math.nan, math.nan]}
    found = find(_table(arms, baseline="base", settings={"margin": "0.005nats"}))
    assert _said(found, "Margin") == ["Margin 0.005 nats: no test of lucky and base, because runs diverged"]


def test_target_that_arms_reach_with_the_step_and_those_that_do_not() -> None:
    """The speedrun's rule: mean below 3.28, p < 0.001; all seeds stop at one step."""
    arms = {"fast": _around(3.2), "slow": _around(3.25), "never": _around(3.4)}
    shape = {"fast": [4.0, 3.22, 3.21, 3.2], "slow": [4.0, 3.5, 3.26, 3.25], "never": [4.0, 3.6, 3.5, 3.4]}
    curves = {arm: np.array(arms[arm])[:, None] - arms[arm][2] + np.array(shape[arm]) for arm in arms}
    found = find(_table(arms, curves=curves, settings={"target": "3.28", "alpha": 0.001}))
    fast, slow = (_said(found, f"{arm} reaches the target of 3.28 nats")[0] for arm in ("fast", "slow"))
    assert "from step 20 on" in fast and "from step 30 on" in slow and "n = 5" in fast
    assert _said(found, "never reaches") == []
    assert "never (mean 3.4000 nats, p = 1.00, n = 5)" in _said(found, "Not shown to reach it")[0]
    stops = _said(found, "At their stopping steps, fast at 20 and slow at 30")
    assert len(stops) == 1 and "n = 5" in stops[0] and "proves nothing" in stops[0]


def test_target_that_no_arm_reaches_names_the_nearest() -> None:
    found = find(_table({"a": _around(3.31), "b": _around(3.36)}, settings={"target": "3.28nats"}))
    (line,) = _said(found, "No arm reaches the target of 3.28 nats at alpha 0.05; the nearest is a (mean 3.3100 nats")
    assert "n = 5" in line
    lost = find(_table({"a": [3.0, 3.01, math.nan], "b": [3.3, 3.4, 3.5]}, settings={"target": "3.28"}))
    assert "1 of 3 runs that diverged" in _said(lost, "No arm reaches the target")[0]
    single = find(_table({"a": [3.0]}, settings={"target": "3.28"}))
    assert "n = 1, no test" in _said(single, "No arm reaches the target")[0]


def test_scores_that_disagree_are_named() -> None:
    loss = {"bytes": _around(1.4), "bpe": [x + 0.001 * i for i, x in enumerate(_around(4.9))]}
    bits = {"bytes": _around(2.1), "bpe": [x + 0.001 * i for i, x in enumerate(_around(1.9))]}
    found = find(_table(loss, more=bits))
    (line,) = _said(found, "The scores disagree: by val/loss bytes beats bpe, by val/bpb bpe beats bytes")
    assert "bits/byte" in line and "n = 5" in line
    assert _said(find(_table(loss, more=loss)), "The scores disagree") == []


def test_deviations_from_the_registration_are_named() -> None:
    arms = {"a": _around(3.2), "b": _around(3.3)}
    registered = {"metric": "val/loss", "unit": "nats", "alpha": 0.01, "margin": 0.005}
    settings = {"alpha": 0.01, "margin": "0.005nats"}
    kept = find(_table(arms, more=arms, settings=settings, registered=registered))
    assert _said(kept, "This deviates") == []
    found = find(
        _table(arms, more=arms, settings=settings, registered=registered), "val/bpb", alpha=0.05, margin="0.02"
    )
    (line,) = _said(found, "This deviates from what was registered before the first run: ")
    for words in ("score val/bpb instead of val/loss", "alpha 0.05 instead of 0.01", "margin 0.02 instead of 0.005"):
        assert words in line
    assert _said(found, "Margin 0.02 bits/byte")
    unmoved = find(_table(arms, more=arms, settings=settings, registered=registered), "val/bpb")
    assert (
        "0.005nats is in nats, and val/bpb is in bits/byte" in _said(unmoved, "A rule of the study was not applied")[0]
    )
    assert _said(unmoved, "Margin") == []
    with pytest.raises(UserError, match=r"--margin: 0.02nats is in nats, and val/bpb is in bits/byte\n.*try: --margin"):
        find(_table(arms, more=arms), "val/bpb", margin="0.02nats")


def test_a_study_names_its_primary_score() -> None:
    arms = {"a": _around(3.2), "b": _around(3.3)}
    assert find(_table(arms, more=arms, settings={"primary": "val/bpb"})).metric == "val/bpb"
    assert find(_table(arms, settings={"primary": "val/bpb"})).metric == "val/loss"  # no run has it


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [("0.005", 0.005, ""), ("0.005nats", 0.005, "nats"), ("5e-3 nats", 0.005, "nats"), ("'.5 bpb'", 0.5, "bpb")],
)
def test_amounts(text: str, value: float, unit: str) -> None:
    found = read_amount("margin", text)
    assert (found.value, found.unit) == (value, unit)


@pytest.mark.parametrize(
    ("name", "text", "metric", "what"),
    [
        ("margin", "0.005bits/byte", "val/loss", "0.005bits/byte is in bits/byte, and val/loss is in nats"),
        ("margin", "0.005nats", "val/accuracy", "is in nats, and val/accuracy is in accuracy"),
        ("margin", "0", "val/loss", "a margin is a difference above 0, got 0"),
        ("margin", "small", "val/loss", "expected a number and the unit of the score, got 'small'"),
        ("target", "nan", "val/loss", "expected a number"),
    ],
)
def test_amounts_that_are_refused(name: str, text: str, metric: str, what: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(what)) as error:
        amount_in(name, text, metric)
    fix = error.value.problems[0].fix.partition("=")[2]
    assert amount_in(name, fix, metric if "is in" in what else "val/loss").value == read_amount(name, fix).value


def test_plan_registers_and_refuses_units() -> None:
    arms = ["norm=rmsnorm,layernorm", "seed=1,2"]
    plan = plan_sweep([*arms, "margin=0.005", "target=3.28nats", "alpha=0.01"])
    assert plan.study.registered == {
        "metric": "val/loss", "unit": "nats", "alpha": 0.01, "margin": 0.005, "target": 3.28,
    }  # fmt: skip
    bits = plan_sweep([*arms, "primary=val/bpb", "margin=0.01bits/byte"]).study.registered
    assert (bits["metric"], bits["unit"], bits["margin"]) == ("val/bpb", "bits/byte", 0.01)
    with pytest.raises(ConfigError, match=r"margin: 0.005bits/byte is in bits/byte, and val/loss is in nats"):
        plan_sweep([*arms, "margin=0.005bits/byte"])
    with pytest.raises(ConfigError, match="has no score val/bbp; did you mean val/bpb"):
        plan_sweep([*arms, "primary=val/bbp"])


def test_the_score_that_all_arms_name_is_registered() -> None:
    """Else the report of a study with `score=` would call its own score a deviation."""
    arms = ["norm=rmsnorm,layernorm", "seed=1,2", "eval=[copying]", "score=eval/copying/accuracy"]
    assert plan_sweep(arms).study.registered == {"metric": "eval/copying/accuracy", "unit": "accuracy", "alpha": 0.05}
    assert plan_sweep([*arms, "primary=val/bpb"]).study.registered["metric"] == "val/bpb"
    axis = [*arms[:-1], "score=eval/copying/accuracy,val/bpb"]
    assert plan_sweep(axis).study.registered["metric"] == "val/loss"


def test_arms_that_never_differ_by_chance_are_said_so() -> None:
    """Greedy answers of one model: each seed gives the same difference, and there is no chance to test against."""
    arms = {"base": [3.25, 3.25, 3.25], "other": [3.0, 3.0, 3.0], "third": [3.5, 3.5, 3.5]}
    headline, *rest = find(_table(arms, baseline="base")).said()
    assert headline == "No test possible: each difference is the same in every seed, so its chance is unknown."
    assert "other and base: exactly -0.250 nats in each of 3 seeds, no test possible" in rest
    lone = find(_table({arm: losses[:1] for arm, losses in arms.items()}, baseline="base")).said()[0]
    assert lone.startswith("No test possible: a comparison needs two arms with at least two shared seeds")


@pytest.mark.parametrize("steps", [0, 100])
def test_only_trained_arms_could_have_had_a_tuned_rate(steps: int) -> None:
    table = _table({"base": _around(3.2), "other": _around(3.1)}, baseline="base")
    table.runs[:] = [replace(run, size={**run.size, "steps": steps}) for run in table.runs]
    assert bool(_said(find(table), "The learning rate was not tuned")) == (steps > 0)


def test_registration_stays_once_there_is_a_run(tmp_path: Path) -> None:
    study = Study("s", registered={"metric": "val/loss", "unit": "nats", "alpha": 0.05})
    study.write(tmp_path)
    changed = replace(study, registered=dict(study.registered) | {"alpha": 0.2})
    changed.write(tmp_path)
    assert Study.read(tmp_path).registered["alpha"] == 0.2  # nothing has run
    (tmp_path / RUNS).mkdir()
    replace(study, registered=dict(study.registered) | {"alpha": 0.5}).write(tmp_path)
    assert Study.read(tmp_path).registered["alpha"] == 0.2
    old = json.loads((tmp_path / "study.json").read_text())
    del old["registered"]
    (tmp_path / "study.json").write_text(json.dumps(old))
    assert Study.read(tmp_path).registered == {}


def test_folder_with_curves_gives_tokens_bytes_and_seconds(tmp_path: Path) -> None:
    """The costs at the stopping step come from metrics.csv, unthinned."""
    fake = Fake(axes={"norm": ["rmsnorm", "layernorm"]}, seeds=(1, 2, 3, 4), noise=0.001, seed_sd=0.001, steps=400)
    found = find(read_table([write_study(tmp_path / "s", fake)]), target="3.4")
    (line,) = _said(found, "rmsnorm reaches the target of 3.4 nats")
    step = int(re.search(r"from step (\d+) on", line)[1])  # type: ignore[index]
    tokens = step * 2048
    assert f"{tokens / 1e3:.3g} k tokens" in line
    assert f"about {tokens * 2.9 / math.log(2) / 1e6:.3g} M bytes of text" in line and re.search(r"[\d.]+ s", line)


def test_shrunk_means_stand_in_page_and_markdown(tmp_path: Path) -> None:
    found = find(read_table([write_study(tmp_path / "s", ACTIVATIONS)]), method="moderated")
    arms = content(found)["arms"]
    assert sum(arm["shrunk"]["best"] for arm in arms) == pytest.approx(1)
    header, best, *rest = shrunk_csv(found).splitlines()
    assert header.split(",")[-1] == "probability_best" and len(rest) == len(arms) - 1
    assert best.startswith("activation=swiglu,5,") and float(best.split(",")[-1]) > 0.5
    assert "## Shrunk means" in markdown_text(found) and "best with probability" in markdown_text(found)
    assert any("moderated t-test" in s for s in found.said())


def test_of_a_seed_that_is_there_twice_the_first_run_counts_for_every_score() -> None:
    """The verdict, another score, and the curves of a target all read the same runs."""
    rng = np.random.default_rng(2)
    loss = {"bpe": _around(3.2), "bytes": _around(2.9)}
    bits = {"bpe": _around(1.1), "bytes": _around(1.3)}
    loss["bytes"][0], bits["bytes"][1] = loss["bytes"][0] + 0.003, bits["bytes"][1] + 0.003
    curves = {arm: np.linspace(4, np.array(of), 4).T for arm, of in loss.items()}
    table = _table(loss, more=bits, curves=curves, settings={"target": "3.0"})
    again = []
    for run in table.runs:  # repeated with values that would turn every sentence
        other = {"val/loss": 6 - run.scores["val/loss"], "val/bpb": 2.4 - run.scores["val/bpb"] + 0.01 * rng.normal()}
        again.append(replace(run, id=run.id + "again", scores=other, curves={"val/loss": (STEPS, [9.0] * 4)}))
    once = find(_table(loss, more=bits, curves=curves, settings={"target": "3.0"}))
    twice = find(replace(table, runs=[*table.runs, *again]))
    assert list(twice.said()) == list(once.said())
    assert _said(once, "The scores disagree") and any("from step" in s for s in _said(once, "bytes reaches the target"))
    assert sum("is there twice" in note for note in twice.table.notes) == len(again)
