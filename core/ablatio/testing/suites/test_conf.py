"""The YAML options of a plugin: each composes into a config that may run."""

from pathlib import Path

import pytest

from ablatio.errors import AblatioError

KINDS = ()


def test_composes(conf: Path) -> None:
    from ablatio.compose import compose_run

    try:
        compose_run([f"+{conf.parent.name}={conf.stem}"])
    except AblatioError as error:
        pytest.fail(f"{conf}: {error}")
