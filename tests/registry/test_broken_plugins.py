"""A plugin that fails is reported with its distribution and leaves nothing behind; the others work."""

import tomllib
from importlib.metadata import version as installed
from pathlib import Path

import pytest

BROKEN = Path(__file__).parents[1] / "helpers" / "plugins" / "broken"

STATE = """
import sys
from ablatio import norms
from ablatio.registry import discovery as plugins
from ablatio.registry import rules
from ablatio.registry.registry import REGISTRIES
names = norms.names()
answer = {
    "failures": {f.plugin: [str(f), f.distribution.name] for f in plugins.failures()},
    "norms": {e.name: e.distribution.name for e in norms},
    "kinds": list(REGISTRIES),
    "rules": [r.when for r in rules.RULES],
    "builds": type(norms.build("rmsnorm", d_model=4)).__name__,
    "imported": [m for m in sys.modules if m.startswith("broken_")],
    "sources": sorted(s.distribution.name for s in plugins.sources()),
}
"""
REASONS = {
    "callbacks": "`hydra` changes a setting of Hydra",
    "exits": "ended the process with code 1",
    "missing": "No module named 'a_package_that_nobody_has'",
    "raises": "RuntimeError: this plugin fails on purpose",
    "shadows": f"norm=rmsnorm already exists, provided by ablatio {installed('ablatio')}",
    "sleeps": "did not finish loading within 8 s",
    "sysexit": "SystemExit: 3",
    "target": "`train.steps._target_` would build an object",
    "untyped": "the knob `eps` has no type; write `eps: float = ...`",
    "wiring": "has the parameter `vocab_size`, which the framework does not pass to a norm",
}
LEFT_OUT = {  # where it is less than the plugin
    "callbacks": "experiment=calls, with the other YAML files,",
    "shadows": "norm=rmsnorm",
    "target": "experiment=evil, with the other YAML files,",
    "untyped": "norm=untyped",
    "wiring": "norm=greedy",
}


def test_every_broken_plugin_is_expected():
    """REASONS covers every entry point of the distribution `ablatio-broken`."""
    points = tomllib.loads((BROKEN / "pyproject.toml").read_text())["project"]["entry-points"]["ablatio.plugins"]
    assert {name: f"broken_{name}" for name in REASONS} == points


@pytest.fixture(scope="module")
def state(site):
    """State with all broken plugins installed, and two distributions that register the same name."""
    site.add("ablatio-broken", *(f"broken_{name}" for name in REASONS))
    site.add("twin-one", "broken_twin")
    (site.folder.parent / "second_twin.py").write_text((BROKEN / "broken_twin.py").read_text())
    site.add("twin-two", "second_twin", origin=site.folder.parent)
    return site.ask(STATE)


@pytest.mark.parametrize("name", REASONS)
def test_is_named_with_its_reason(state, name):
    text, dist = state["failures"][name]
    assert dist == "ablatio-broken"
    what = LEFT_OUT.get(name, f"plugin {name}")
    assert text.startswith(f"{what} of ablatio-broken 1.0 is left out: ")
    assert REASONS[name] in text


def test_place_of_an_exception_is_named(state):
    source = (BROKEN / "broken_raises.py").read_text()
    line = 1 + [text[:5] for text in source.splitlines()].index("raise")
    assert f"broken_raises.py:{line}" in state["failures"]["raises"][0]


def test_second_of_two_names_is_refused_naming_both(state):
    text, dist = state["failures"]["second_twin"]
    assert dist == "twin-two"
    assert "norm=twin already exists, provided by twin-one 1.0" in text and "twin-two 1.0 (" in text
    assert state["norms"]["twin"] == "twin-one"


def test_the_rest_works(state):
    assert state["failures"].keys() == REASONS.keys() | {"second_twin"}
    assert state["norms"]["rmsnorm"] == "ablatio" and state["builds"] == "RMSNorm"
    assert state["sources"] == ["ablatio", *["ablatio-broken"] * len(LEFT_OUT), "twin-one", "twin-two"]


def test_no_trace_of_a_half_registered_plugin(state):
    assert "half_registered" not in state["norms"] and "half" not in state["kinds"]
    assert not [when for when in state["rules"] if "half" in when]
    assert state["imported"] == []


def test_check_names_the_failures_and_refuses(site, state):
    run = site.check("Ablatio.Broken")
    assert run.returncode == 2 and run.stderr == ""
    assert run.stdout.count("ablatio-broken 1.0 is left out: ") == len(REASONS)
    assert "norm=untyped of ablatio-broken 1.0 is left out" in run.stdout


def test_check_of_what_is_not_there_lists_what_is(site, state):
    run = site.check("twin-on")
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert "no installed distribution `twin-on` provides parts; did you mean twin-one or twin-two?" in run.stderr
    assert "with parts: ablatio, ablatio-broken, twin-one, twin-two" in run.stderr


def test_equal_entry_points_of_two_distributions(tmp_path, new_site):
    """One fails and one works: only the failing one is left out."""
    site = new_site(tmp_path)
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "parts.py").write_text((BROKEN / "broken_twin.py").read_text())
    site.add("good", "parts", origin=tmp_path / "good")
    site.add("bad", "broken_raises")
    (site.folder / "bad-1.0.dist-info" / "entry_points.txt").write_text("[ablatio.plugins]\nparts = broken_raises\n")
    state = site.ask(STATE)
    assert list(state["failures"]) == ["parts"] and state["failures"]["parts"][1] == "bad"
    assert state["norms"]["twin"] == "good"


SEVERAL = {
    "__init__": "",
    "a_broken": "import several.z_good\nraise RuntimeError('on purpose')",
    "faulty": """
from torch import Tensor, nn
from ablatio import mlps, norms
from ablatio.registry import rules

@norms.register("worst", wrong=1)
class Worst(nn.Module):
    \"\"\"x.  (..., d_model) -> same.\"\"\"
    def __init__(self, d_model: int, height: int, *, eps=1e-6, affine: object = True) -> None:
        super().__init__()

@mlps.register("late")
class Late(nn.Module):
    \"\"\"x.  (B, T, D) -> same.\"\"\"
    def forward(self, x: Tensor) -> Tensor:
        return x

@norms.register("between")
class Between(nn.Module):
    \"\"\"x.  (..., d_model) -> same.\"\"\"
    def forward(self, x: Tensor) -> Tensor:
        return x
""",
    "z_good": """
from torch import Tensor, nn
from ablatio import norms

@norms.register("good")
class Good(nn.Module):
    \"\"\"x.  (..., d_model) -> same.\"\"\"
    def forward(self, x: Tensor) -> Tensor:
        return x
""",
}
SEEN = """
from ablatio import mlps, norms
from ablatio.registry import discovery
known = {"norm": norms.names(), "mlp": mlps.names()}
answer = {
    "failures": sorted(map(str, discovery.failures())),
    "good": [type(norms.build(n, d_model=4)).__name__ for n in ("good", "between")],
    "known": {kind: [n for n in names if n in ("worst", "late")] for kind, names in known.items()},
}
"""


def test_all_faults_are_told_and_only_what_is_faulty_is_left_out(tmp_path, new_site):
    (tmp_path / "source" / "several").mkdir(parents=True)
    for name, text in SEVERAL.items():
        (tmp_path / "source" / "several" / f"{name}.py").write_text(text)
    answer = new_site(tmp_path).add("several", "several", origin=tmp_path / "source").ask(SEEN)
    assert answer["good"] == ["Good", "Between"] and answer["known"] == {"norm": [], "mlp": []}
    late, worst, broken = answer["failures"]
    assert late == (
        "mlp=late of several 1.0 is left out: several.faulty.Late: "
        "forward(x) was found, an mlp's forward(x, ctx) was expected"
    )
    assert broken.startswith("the module several.a_broken of several 1.0 is left out: RuntimeError: on purpose (")
    first, *rest = worst.splitlines()
    assert first == "norm=worst of several 1.0 is left out: several.faulty.Worst: 5 faults"
    for fault in (
        "`wrong` is not a fact",
        "`eps` has no type",
        "`affine` has the type",
        "parameter `height`",
        "`forward`",
    ):
        assert sum(fault in line for line in rest) == 1, worst
