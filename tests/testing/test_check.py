"""`ablatio check` finds a part that breaks one promise, and says which: the suites are tested with bad parts."""

import json
import re
from pathlib import Path

import pytest

from ablatio.cli.main import main
from ablatio.errors import UserError
from ablatio.testing import check_run
from ablatio.testing.check_table import render
from ablatio.testing.outcomes import DISTRIBUTION, Outcome

FOUND = {
    "norm=narrow": r"\(16,\) went in, \(15,\) came out",
    "norm=scribbler": "input 0 was changed in place",
    "norm=deadknob": "the knob `strength` has no effect",
    "norm=seeder": "sets torch's global seed",
    "norm=mixer": "tokens from 15 on change the logits before them",
    "norm=fragile": "values are NaN or infinite for a zero input",
    "norm=silent": "the docstring starts with ''",
    "activation=wrong_slope": "autograd's gradient differs from finite differences",
    "position=unbuffered": r"\['model.position.slopes'\] are not moved by .to\('meta'\)",
    "mlp=lookahead": "tokens from 15 on change the logits before them",
    "init=deaf": "draws from torch's global random state although it receives a generator",
    "objective=eraser": "input 0 was changed in place",
    "optimizer=forgetful": r"after state_dict and load_state_dict, parameters \[.*\] go on differently",
    "schedule=doubling": r"gives [\d.]+; expected 0 ... 1",
    "stabilizer=chatty": r"after_step gives \['train/surprise'\], which `metrics` \[\] does not name",
    "task=restless": "batch 0 depends on the order of requests",
    "source=stutter": r"the ids \['same'\] occur more than once",
    "tokenizer=shouting": "'the quick brown fox, the lazy dog' comes back as 'THE QUICK",
}


@pytest.fixture(scope="module")
def outcomes(site):
    """Outcomes of all checks of the distribution `careless`."""
    run = site.add("careless", "careless").run("-m", "ablatio.cli", "check", "careless", "--json")
    assert run.returncode == 2, run.stderr
    return [Outcome(**said) for said in json.loads(run.stdout)["outcomes"]]


@pytest.mark.parametrize("part", FOUND)
def test_bad_part_is_found(outcomes, part):
    said = [o.reason for o in outcomes if o.part == part and o.state == "failed"]
    assert any(re.search(rf"{part} of careless 1.0: .*{FOUND[part]}", reason) for reason in said), said


def test_only_the_distribution_is_tried(outcomes):
    assert {o.part for o in outcomes} == {*FOUND, DISTRIBUTION}


def test_the_table_has_a_row_for_each_part_and_its_first_reason(outcomes):
    lines = render(outcomes)
    assert len(lines) < 120 and max(map(len, lines)) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in lines[1 : 1 + len(FOUND)]}
    assert rows.keys() == FOUND.keys()
    row = rows["norm=deadknob"]
    assert (row.pop(5)[:2], row.pop(3)) == ("1/", "1/1") and {*row} == {"ok"}  # of its contract one check
    failed, of = rows["norm=narrow"][-1].split("/")
    assert rows["source=stutter"][1] == "-" and failed == of
    at = lines.index("norm=narrow: BROKEN, {} of {} checks failed".format(*counts(outcomes, "norm=narrow")))
    assert lines[at + 1].startswith("  keeps shape and dtype: (16,) went in, (15,) came out")
    every = "\n".join(render(outcomes, verbose=1))
    assert every.count("went in, (15,) came out") == 1 and "causality: RuntimeError" in every
    failed, tried = counts(outcomes)
    assert lines[-1] == f"1 of {len(FOUND) + 1} keep their contract: {tried} checks, {failed} failed"


def counts(outcomes, part=None):
    """(checks that failed, all that were made), of one part or of all."""
    made = [o.state for o in outcomes if o.state in ("passed", "failed") and part in (None, o.part)]
    return made.count("failed"), len(made)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("checks", [1, 30])
def test_the_table_of_twenty_broken_parts_is_short(width, checks):
    reason = "a value that is long enough for many lines " * 20
    names = [f"optimizer={'x' * 16}_{i}" for i in range(20)]
    broken = [
        Outcome(f"{n} {c}", n, "test_optimizer", f"check_{c}", "failed", reason, "detail")
        for n in names
        for c in range(checks)
    ]
    assert len(render(broken, width)) < 120 and max(map(len, render(broken, width))) <= width
    assert "detail" not in "\n".join(render(broken, width, 1)) and "detail" in "\n".join(render(broken, width, 2))


SOURCELESS = """
from ablatio import schedules

@schedules.register("{name}")
def {name}({parameters}) -> float:
    \"\"\"The factor is 1 in every step.\"\"\"
    return 1.0
"""


SWEEP = """
# @package _global_
sweep: {{axes: {{activation: [{options}], seed: [1, 2]}}}}
"""


def test_all_that_a_distribution_brings_is_tested(tmp_path, new_site):
    """A part that is left out is told before the table; one without a source is a warning; sweeps are planned."""
    good = SOURCELESS.format(name="flat", parameters="step, total")
    sweeps = tmp_path / "odd_parts" / "conf" / "sweep"
    sweeps.mkdir(parents=True)
    (tmp_path / "odd_parts" / "__init__.py").write_text(SOURCELESS.format(name="odd", parameters="step") + good)
    (sweeps / "right.yaml").write_text(SWEEP.format(options="relu, gelu"))
    (sweeps / "wrong.yaml").write_text(SWEEP.format(options="relu, gelou"))
    run = new_site(tmp_path / "site").add("half", "odd_parts", origin=tmp_path).check("half")
    first, second, *_ = run.stdout.splitlines()
    assert run.returncode == 2 and first.startswith("checking 1 part, 2 YAML options of half with ")
    assert second == (
        "schedule=odd of half 1.0 is left out: odd_parts.odd: odd(step) was found, "
        "a schedule function odd(step, total) or odd(step, total, scores) was expected"
    )
    assert re.search(r"^schedule=flat +ok +warn +ok +- +ok +ok +-$", run.stdout, re.M), run.stdout
    assert "schedule=flat: a warning\n  says where it comes from: no source; give register(" in run.stdout
    assert re.search(r"^sweep=right( +-){5} +ok +-$", run.stdout, re.M)
    assert re.search(r"^sweep=wrong: BROKEN, 1 of 1 checks failed\n  composes: .*gelou", run.stdout, re.M | re.S)
    assert "3 of 4 keep their contract" in run.stdout and "1 failed, 1 warned" in run.stdout


@pytest.mark.parametrize(("state", "code"), [("passed", 0), ("warned", 0), ("skipped", 0), ("failed", 2)])
def test_only_failures_count(monkeypatch, capsys, state, code):
    outcome = Outcome("test", "norm=rmsnorm", "test_norm", "keeps_shape", state, "why")
    monkeypatch.setattr(check_run, "_outcomes", lambda *given: [outcome])
    assert check_run.check("ablatio") == code
    assert (state in ("warned", "failed")) == ("keeps shape: why" in capsys.readouterr().out)


def test_what_it_needs_is_said_first(monkeypatch, capsys):
    monkeypatch.setattr(check_run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pytest, which is not installed\n    try: pip install 'ablatio\[test\]'"):
        check_run.check("no-such-distribution")
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    assert "It needs pytest: pip install 'ablatio[test]'" in " ".join(capsys.readouterr().out.split())


def test_a_kind_of_a_plugin_gets_the_common_suite(site):
    verdict = site.add("kindly", "newkind").check("kindly")
    assert verdict.returncode == 2 and re.search(r"^sampler=steady +ok +ok +ok +ok +ok +- +-$", verdict.stdout, re.M)
    assert (
        "sampler=stuck: BROKEN, 1 of 8" in verdict.stdout and "the knob `temperature` has no effect" in verdict.stdout
    )
    assert "warning: the kind `sampler` of kindly 1.0 is used by nothing that is installed" in verdict.stdout


COMPOSE = """
from ablatio.config.compose import compose_run
answer = [compose_run(words).config.get("sampler") for words in ([], ["sampler=steady", "sampler.temperature=0.5"])]
"""


def test_a_kind_of_a_plugin_can_be_left_out_or_chosen(tmp_path, new_site):
    site = new_site(tmp_path).add("kindly", "newkind")
    assert site.ask(COMPOSE) == [None, {"name": "steady", "temperature": 0.5}]


@pytest.mark.long
def test_unusual_but_honest_parts_pass(tmp_path, new_site):
    verdict = (
        new_site(tmp_path)
        .add("unusual", "unusual", origin=Path(__file__).parents[1] / "helpers" / "plugins" / "unusual")
        .check("unusual")
    )
    assert verdict.returncode == 0, verdict.stdout[-5000:]


def test_nothing_to_try_is_no_success(tmp_path, new_site):
    suite = ["-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "ablatio.testing.suites.test_schedule"]
    run = new_site(tmp_path).run(*suite, "--ablatio-dist", "nonesuch")
    assert run.returncode != 0 and "no installed distribution `nonesuch` provides parts" in run.stdout
