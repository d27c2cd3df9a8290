"""What decides which code runs is not believed from the cache; no plugin changes the parts of others."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.plugin_sites import Site

pytestmark = pytest.mark.slow  # each scan imports all plugins

REPLACING = {
    "entry": "r.entries['rmsnorm'] = replace(r.entries['rmsnorm'], module=__name__, qualname='Mine')",
    "target": "r._targets['rmsnorm'] = Mine",
    "registry": "REGISTRIES['norm'] = r2 = copy(r); r2.entries = dict(r.entries); r2._targets = {'rmsnorm': Mine}",
    "removal": "del r.entries['rmsnorm']",
    "kind": "del REGISTRIES['norm']",
}
HEAD = """
from copy import copy
from dataclasses import replace
from torch import nn
from ablatio.registry.registry import REGISTRIES
class Mine(nn.Module): pass
r = REGISTRIES['norm']
"""
ONCE = """
import os, signal, time
from pathlib import Path
mark = Path(__file__).with_suffix(".seen")
if not mark.exists():
    mark.touch()
    {do}
"""
INHERITING = """
from ablatio import norms
from ablatio_std.norms.rmsnorm import RMSNorm
@norms.register("mine", paper="none")
class Mine(RMSNorm):
    \"\"\"As rmsnorm.\"\"\"
"""
PRESETS = {
    "good": "# A preset that works.\nnorm: layernorm\nmodel: {d_model: 64}\n",
    "list": "- norm\n",
    "number": "3\n",
    "text": "some words\n",
    "unknown": "norms: rmsnorm\n",
    "no_name": "norm: {eps: 1}\n",
    "section": "model: 3\n",
    "sizes": "sizes: [a, b]\n",
    "size": "sizes: {a: 3}\n",
    "part": "norm: [1]\n",
    "syntax": "norm: {\n",
    "bytes": "norm: caf\udce9\n",
    "keys": "1: 2\n",
    "deep": "[" * 5000,
}
ASK = """
from ablatio.registry import discovery
from ablatio.registry.kinds import norms
answer = {"failures": {f.distribution.name: str(f) for f in discovery.failures()},
          "builds": type(norms.build("rmsnorm", d_model=4)).__module__,
          "sources": [s.distribution.name for s in discovery.sources()]}
"""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, list[Any]]:
    """A site with all plugins of this file, and what two commands after one another see."""
    folder = tmp_path_factory.mktemp("belief")
    site, origin = Site(folder), folder / "origin"
    origin.mkdir()
    for name, code in REPLACING.items():
        (origin / f"replaces_{name}.py").write_text(HEAD + code + "\n")
        site.add(f"replaces-{name}", f"replaces_{name}", origin=origin)
    for name, do in {"slow": "time.sleep(60)", "killed": "os.kill(os.getpid(), signal.SIGKILL)"}.items():
        (origin / f"once_{name}.py").write_text(ONCE.format(do=do))
        site.add(f"once-{name}", f"once_{name}", origin=origin)
    (origin / "presets_of" / "conf/preset").mkdir(parents=True)
    (origin / "presets_of" / "__init__.py").write_text("")
    for name, text in PRESETS.items():
        (origin / "presets_of/conf/preset" / f"their_{name}.yaml").write_bytes(text.encode(errors="surrogateescape"))
    site.add("presets-of", "presets_of", origin=origin)
    return site, [site.ask(ASK), site.ask(ASK)]


def test_a_plugin_that_replaces_a_part_is_left_out_and_named(state: tuple[Site, list[Any]]) -> None:
    for seen in state[1]:
        for name in REPLACING:
            text = seen["failures"][f"replaces-{name}"]
            what = "the kind norm" if name == "kind" else "norm=rmsnorm of ablatio"
            assert "is left out: it replaces" in text and (what in text or name == "registry"), text
        assert seen["builds"].startswith("ablatio_std.")


def test_a_plugin_that_was_slow_or_killed_once_is_there_at_the_next_command(state: tuple[Site, list[Any]]) -> None:
    first, second = state[1]
    assert "did not finish loading" in first["failures"]["once-slow"]
    assert "once-killed" in first["sources"]
    assert {"once-slow", "once-killed"} <= set(second["sources"])


def test_a_broken_preset_costs_itself_alone(state: tuple[Site, list[Any]]) -> None:
    site = state[0]
    answer: Any = site.ask(f"""
from ablatio.config.compose import compose_run
from ablatio.errors import ConfigError
answer = {{"plain": compose_run([]).config["norm"]["name"]}}
for name in {list(PRESETS)}:
    try:
        answer[name] = compose_run([f"preset=their_{{name}}"]).config["norm"]["name"]
    except ConfigError as error:
        answer[name] = str(error)
""")
    assert (answer["plain"], answer["good"]) == ("rmsnorm", "layernorm")
    for name in PRESETS.keys() - {"good"}:
        assert f"their_{name}.yaml" in answer[name] and "presets-of 1.0" in answer[name], (name, answer[name])
    doctor = site.run("-m", "ablatio.cli", "doctor")
    assert doctor.returncode == 5 and "Traceback" not in doctor.stderr
    for name in PRESETS:
        assert (f"preset=their_{name} cannot be used" in doctor.stderr) is (name != "good"), doctor.stderr


def test_a_catalogue_with_a_recomputed_digest_is_not_believed(state: tuple[Site, list[Any]]) -> None:
    site = state[0]
    code = """
from ablatio.config.compose import compose_run
from ablatio.errors import AblatioError
from ablatio.registry.kinds import optimizers
try:
    answer = [compose_run([]).config["optimizer"]["lr"], optimizers.target("adamw").__module__]
except AblatioError as error:
    answer = str(error)
"""
    lr, module = site.ask(code)
    path = rewrite(site.cache, "optimizer", "adamw", {"default": 6.0})
    refused: Any = site.ask(code)
    assert "does not describe optimizer=adamw as its source does: knobs" in refused and not path.exists()
    assert site.ask(code) == [lr, module]
    rewrite(site.cache, "optimizer", "adamw", {}, module="antigravity")
    assert site.ask(code) == [lr, module], "a module outside the plugin is never imported: the plugins are read again"


def test_a_part_of_ours_that_a_plugin_imports_stays_ours(new_site: type[Site], tmp_path: Path) -> None:
    """Our parts are listed before the plugins are read, so a plugin may be the first to import one."""
    (tmp_path / "inheriting.py").write_text(INHERITING)
    site = new_site(tmp_path / "x").add("inheriting", "inheriting", origin=tmp_path)
    found: Any = site.ask(
        "from ablatio.registry import discovery\nfrom ablatio.registry.kinds import norms\n"
        "answer = {n: [norms[n].distribution.name, norms[n].module] for n in ('rmsnorm', 'layernorm', 'mine')}\n"
        "answer['failures'] = [str(f) for f in discovery.failures()]"
    )
    assert found == {
        "rmsnorm": ["ablatio", "ablatio_std.norms.rmsnorm"],
        "layernorm": ["ablatio", "ablatio_std.norms.layernorm"],
        "mine": ["inheriting", "inheriting"],
        "failures": [],
    }


def rewrite(cache: Path, kind: str, name: str, knob: dict[str, Any], **changes: str) -> Path:
    """Change a part in the cached catalogue, with a digest that is right."""
    # The newest: our own parts have a catalogue of their own, to which the plugins' was added.
    path = max((cache / "catalogue").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
    stored = json.loads(path.read_text())
    entry = next(e for e in stored["catalogue"]["entries"] if (e["kind"], e["name"]) == (kind, name))
    entry.update(changes)
    next(k for k in entry["knobs"] if k["name"] == "lr").update(knob)
    stored["digest"] = hashlib.sha256(json.dumps(stored["catalogue"], sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(stored))
    return path
