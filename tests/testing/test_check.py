"""`ablatio check` finds a part that breaks one promise, and says which: the suites are tested with bad parts."""

import re
from pathlib import Path

import pytest

from ablatio.cli.scaffold.plugin import new_plugin
from ablatio.cli.scaffold.templates import STARTS
from ablatio.errors import UserError

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
def verdict(site):
    return site.add("careless", "careless").check("careless")


@pytest.mark.parametrize("part", FOUND)
def test_bad_part_is_found(verdict, part):
    assert re.search(rf"{part} of careless 1.0: .*{FOUND[part]}", verdict.stdout), verdict.stdout[-3000:]
    assert re.search(rf"^{part}: BROKEN, \d+ of \d+ checks failed$", verdict.stdout, re.MULTILINE)


def test_exit_code_is_that_of_a_user_error(verdict):
    assert verdict.returncode == 2


def test_only_the_distribution_is_tried(verdict):
    assert "of ablatio 0.1.0" not in verdict.stdout and "norm=rmsnorm:" not in verdict.stdout


def test_a_kind_of_a_plugin_gets_the_common_suite(site):
    verdict = site.add("kindly", "newkind").check("kindly")
    assert "sampler=steady: keeps its contract" in verdict.stdout, verdict.stdout + verdict.stderr
    assert "sampler=stuck of kindly 1.0: the knob `temperature` has no effect" in verdict.stdout


COMPOSE = """
from ablatio.config.compose import compose_run
answer = [compose_run(words).config.get("sampler") for words in ([], ["sampler=steady", "sampler.temperature=0.5"])]
"""


def test_a_kind_of_a_plugin_can_be_left_out_or_chosen(tmp_path, new_site):
    site = new_site(tmp_path).add("kindly", "newkind")
    assert site.ask(COMPOSE) == [None, {"name": "steady", "temperature": 0.5}]


def test_unusual_but_honest_parts_pass(tmp_path, new_site):
    verdict = (
        new_site(tmp_path)
        .add("unusual", "unusual", origin=Path(__file__).parents[1] / "helpers" / "plugins" / "unusual")
        .check("unusual")
    )
    assert verdict.returncode == 0, verdict.stdout[-5000:]


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("kind", [kind for kind in STARTS if kind != "norm"])  # whose wheel is tried in test_wheels
def test_what_new_plugin_writes_keeps_its_contract(tmp_path, new_site, kind):
    """The part, the experiment, and the tests that lie beside them."""
    place = new_plugin(f"my-{kind}", tmp_path, kind)
    site = new_site(tmp_path / "site").add(f"my-{kind}", f"my_{kind}", origin=place)
    report = site.check(f"my-{kind}")
    assert report.returncode == 0, report.stdout[-3000:] + report.stderr
    for part in (f"{kind}=my_{kind}", f"experiment=my_{kind}"):
        assert f"{part}: keeps its contract" in report.stdout
    its_own = [str(place / "tests"), "-k", "beyond_the_margin or gain_per_output or finished_sentence"]
    own = site.run("-m", "pytest", "-p", "no:cacheprovider", *its_own)
    assert own.returncode == 0 and " passed" in own.stdout, own.stdout


def test_new_plugin_begins_with_a_kind_that_it_knows(tmp_path):
    with pytest.raises(UserError, match=r"did you mean alignment\? there are norm, alignment, peft, reward"):
        new_plugin("my-losses", tmp_path, "aligment")
    with pytest.raises(UserError, match="would register alignment=dpo, which ablatio"):
        new_plugin("dpo", tmp_path, "alignment")


def test_nothing_to_try_is_no_success(tmp_path, new_site):
    suite = ["-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "ablatio.testing.suites.test_schedule"]
    run = new_site(tmp_path).run(*suite, "--ablatio-dist", "nonesuch")
    assert run.returncode != 0 and "no installed distribution `nonesuch` provides parts" in run.stdout
