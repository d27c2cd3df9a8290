"""Names of version 0.1: old configs load; old parts and imports get an error with the new name."""

import json
import subprocess
import sys

import pytest

from ablatio.config import schema
from ablatio.registry import discovery, renamed
from ablatio.registry.registry import REGISTRIES, ContractError
from ablatio.training.run_folder import resolved


@pytest.fixture(autouse=True)
def _loaded() -> None:
    discovery.load()


def test_every_new_knob_exists() -> None:
    for where, table in renamed.KNOBS.items():
        kind, _, option = where.partition("=")
        for old, new in table.items():
            assert REGISTRIES[kind][option].knob(new), (where, new)
            assert not REGISTRIES[kind][option].knob(old), (where, old)


def test_every_new_fact_and_module_exists() -> None:
    for kind, table in renamed.FACTS.items():
        assert set(table.values()) <= set(REGISTRIES[kind].facts), kind
    code = "import importlib, sys; [importlib.import_module('ablatio.' + m) for m in sys.stdin.read().split()]"
    modules = " ".join(renamed.MODULES.values())
    run = subprocess.run([sys.executable, "-c", code], input=modules, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("where", renamed.KNOBS)
def test_an_old_config_is_read_with_todays_names(where: str) -> None:
    kind, _, option = where.partition("=")
    for old, new in renamed.KNOBS[where].items():
        value = REGISTRIES[kind][option].defaults[new]
        node = {option: {old: value}} if REGISTRIES[kind].multiple else {"name": option, old: value}
        found, told = renamed.current_config({kind: node})
        inner = found[kind][option] if REGISTRIES[kind].multiple else found[kind]
        assert inner[new] == value and old not in inner
        assert len(told) == 1 and told[0].endswith(f".{new}")
        assert renamed.first_names(found) == {kind: node}
        assert renamed.current_config(found) == (found, [])


def test_a_written_config_with_old_keys_loads_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    from ablatio.config.compose import compose_run

    config = compose_run(["quantization=int4", "peft=lora", "quantization.qat=false"]).public
    old = json.loads(json.dumps(config))
    old["quantization"]["aware"] = old["quantization"].pop("qat")
    assert resolved(old, "runs/x/config.json") == resolved(config, "runs/y/config.json")
    assert "quantization.aware -> quantization.qat" in capsys.readouterr().err


def test_the_id_of_a_run_is_that_of_the_first_names() -> None:
    from ablatio.config.compose import compose_run
    from ablatio.training.run_folder import run_id

    config = compose_run(["mlp=deepseek_moe", "mlp.normalize=true"]).config
    before = {**config, "mlp": {**{k: v for k, v in config["mlp"].items() if k != "normalize"}, "normalise": True}}
    assert run_id(config) == run_id(renamed.current_config(before)[0])
    assert renamed.first_names(schema.changed(config))["mlp"]["normalise"] is True


def test_the_command_line_is_told_the_new_name() -> None:
    from ablatio.config.compose import compose_run
    from ablatio.errors import ConfigError

    with pytest.raises(ConfigError, match=r"is now called quantization\.qat"):
        compose_run(["quantization=int4", "peft=lora", "quantization.aware=true"])


def test_overrides_of_an_old_study_are_translated() -> None:
    assert renamed.override("quantization.aware=false,true") == "quantization.qat=false,true"
    assert renamed.override("stages.ppo.alignment.vf=0.2") == "stages.ppo.alignment.vf_coef=0.2"
    assert renamed.override("stabilizer.spike_rewind.back=3") == "stabilizer.spike_rewind.rewind_steps=3"
    assert renamed.override("norm.eps=1e-5") == "norm.eps=1e-5"


def test_a_part_with_an_old_fact_is_refused_with_the_new_one() -> None:
    class Turning:
        late = True

        def rotate(self, q: object, k: object, pos: object) -> None: ...

    with pytest.raises(ContractError, match="`late` is now called `rotates_cached_keys`"):
        REGISTRIES["position"].register("turning")(Turning)


def test_an_architecture_with_the_old_parameter_is_refused_with_the_new_one() -> None:
    class Old:
        def __init__(self, assembly: object) -> None: ...

    with pytest.raises(ContractError, match="`assembly` is now called `builder`"):
        REGISTRIES["architecture"].register("old")(Old)


@pytest.mark.parametrize(
    ("statement", "hint"),
    [
        ("from ablatio.model.roles import describe", "ablatio.model.roles is now ablatio.model.parameter_roles"),
        ("import ablatio.alignment", "ablatio.alignment is now ablatio.registry.kinds.alignment_inputs"),
        ("from ablatio.model.build import Choice", "Choice is now PartChoice"),
    ],
)
def test_an_import_of_an_old_name_is_told_the_new_one(statement: str, hint: str) -> None:
    with pytest.raises(ImportError) as caught:
        exec(statement, {})
    assert hint in renamed.import_hint(caught.value)
