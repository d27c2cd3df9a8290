"""Oracle records: every built-in part has one, and the tests of a plugin can write its own."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from helpers import warm_python

from ablatio.cli import list as list_command
from ablatio.cli import show as show_command
from ablatio.registry.oracles import FILE, checked_against
from ablatio.registry.registry import REGISTRIES, PartSpec
from ablatio.testing.compatibility_table import paired_kinds

RECORD = Path(__file__).parents[2] / "plugins" / "ablatio_std" / FILE
KINDS = (*paired_kinds(), "source", "tokenizer")
BUILT_IN = [e for kind in KINDS for e in REGISTRIES[kind] if e.distribution.name == "ablatio"]


@pytest.mark.parametrize("entry", BUILT_IN, ids=lambda e: f"{e.kind}={e.name}")
def test_each_part_has_a_current_oracle_record(entry: PartSpec) -> None:
    found = json.loads(RECORD.read_text(encoding="utf-8")).get(f"{entry.kind}={entry.name}")
    assert found, "no oracle test that passed names it: mark one with pytest.mark.oracle, then run `make oracles`"
    assert found["digest"] == entry.digest, "its source has changed since: run `make oracles`"
    assert found["against"] and checked_against(entry) == tuple(found["against"])


def test_oracle_records_name_only_existing_parts() -> None:
    known = {f"{e.kind}={e.name}" for registry in REGISTRIES.values() for e in registry}
    assert json.loads(RECORD.read_text(encoding="utf-8")).keys() <= known, "run `make oracles`"


def test_list_and_show_print_the_oracles(capsys: pytest.CaptureFixture[str]) -> None:
    against = checked_against(REGISTRIES["norm"]["gemma_rmsnorm"])
    assert "transformers GemmaRMSNorm" in against
    list_command.run(["norm", "--json"])
    assert json.loads(capsys.readouterr().out)["norm"]["gemma_rmsnorm"]["oracles"] == list(against)
    list_command.run(["norm", "-v"])
    assert "checked against" in capsys.readouterr().out
    show_command.run(["norm=gemma_rmsnorm"])
    assert f"checked with   {'; '.join(against)}" in capsys.readouterr().out


PART = """
from ablatio import activations
@activations.register("halved")
def halved(x):
    return x / 2
@activations.register("wrong")
def wrong(x):
    return x / 3
"""
TESTS = """
import pytest
import torch
from ablatio.registry.kinds import activations

@pytest.mark.oracle("activation", "multiplication")
@pytest.mark.parametrize("name", ["halved", "wrong"])
def test_it(name):
    x = torch.randn(5)
    assert torch.allclose(activations.build(name)(x), 0.5 * x)

@pytest.mark.oracle("activation=wrong", "nothing")
def test_nothing():
    pass
"""
PRINT_RECORDS = """
from ablatio.registry.oracles import checked_against
from ablatio.registry.registry import REGISTRIES
print(checked_against(REGISTRIES["activation"]["halved"]), checked_against(REGISTRIES["activation"]["wrong"]))
"""


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("processes", [[], ["-n", "1"]], ids=["here", "another process"])
def test_plugin_package_records_its_own_oracles(tmp_path: Path, processes: list[str]) -> None:
    """A part with a failing oracle is not recorded; a changed source or damaged file invalidates the record."""
    package, info = tmp_path / "my_norms", tmp_path / "my_norms-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-norms\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ablatio.plugins]\nmy_norms = my_norms\n")
    (package / "__init__.py").write_text(PART)
    (tmp_path / "test_mine.py").write_text(TESTS)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "ABLATIO_CACHE": str(tmp_path / "cache")}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return warm_python.run(arguments, env=environment, cwd=tmp_path)

    tests = python("-m", "pytest", "-q", *processes, "test_mine.py", "--ablatio-record", str(package / FILE))
    assert "1 failed, 2 passed" in tests.stdout, tests.stdout + tests.stderr
    assert json.loads((package / FILE).read_text()).keys() == {"activation=halved"}
    assert python("-c", PRINT_RECORDS).stdout.strip() == "('multiplication',) ()"
    (package / "__init__.py").write_text(PART.replace("x / 2", "x * 0.5"))
    assert python("-c", PRINT_RECORDS).stdout.strip() == "() ()"
    (package / "__init__.py").write_text(PART)
    (package / FILE).write_text("[1, {")
    assert python("-c", PRINT_RECORDS).stdout.strip() == "() ()"
