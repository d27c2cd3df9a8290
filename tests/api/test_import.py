"""`import ablatio` is light and gives every name."""

import os
import subprocess
import sys

import pytest

import ablatio
from ablatio.registry import kinds
from ablatio.registry.registry import Registry

HEAVY = "heavy = [m for m in ('torch', 'hydra', 'omegaconf', 'lightning', 'pandas', 'rich') if m in sys.modules]"
CALLS = {
    "build_model", "list_parts", "load_parts", "open_run", "open_study", "resume_run", "resume_study",
    "run_study", "train",
}  # fmt: skip
ERRORS = {"AblatioError", "ConfigError", "Diverged", "EnvironmentFault", "Preempted", "SweepFailed", "UserError"}


@pytest.mark.parametrize("looks", ["dir(ablatio)", "ablatio.norms.names()", "ablatio.UserError", "ablatio.list_parts"])
def test_an_import_needs_neither_torch_nor_hydra(looks: str) -> None:
    code = f"import sys, ablatio; {looks}; {HEAVY}; sys.exit(str(heavy) if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_registry_can_be_imported_from_the_top() -> None:
    registries = {name for name, value in vars(kinds).items() if isinstance(value, Registry)}
    assert {"tasks", "templates", "norms", "launchers"} <= registries
    assert registries <= set(ablatio.__all__)
    assert all(getattr(ablatio, name) is getattr(kinds, name) for name in registries)


def test_the_calls_are_listed_and_resolve() -> None:
    assert set(ablatio.__all__) & set(dir(ablatio)) >= CALLS | ERRORS
    assert all(callable(getattr(ablatio, name)) for name in CALLS)
    assert all(issubclass(getattr(ablatio, name), ablatio.AblatioError) for name in ERRORS)
    namespace: dict[str, object] = {}
    exec("from ablatio import *", namespace)
    assert set(ablatio.__all__) <= namespace.keys()


def test_no_call_has_the_name_of_a_package() -> None:
    from importlib.util import find_spec

    assert not [name for name in CALLS if find_spec(f"ablatio.{name}")]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        ablatio.trian  # noqa: B018


@pytest.mark.parametrize("own", ["", "active"])
def test_the_api_sets_what_torch_reads_and_an_import_alone_nothing(own: str) -> None:
    """Waiting threads leave the cores to other programs; what the user has set stays."""
    code = (
        "import os, ablatio\nalone = os.environ.get('OMP_WAIT_POLICY', '')\n"
        "ablatio.list_parts\nprint(alone, os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": own} if own else {}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ([own, own] if own else ["passive"])
