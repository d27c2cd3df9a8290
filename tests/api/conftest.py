"""A tiny run and the settings that made it, by the API and by the command line."""

import pytest
from helpers.runs import TINY
from helpers.warm_pools import warm_pools  # noqa: F401  (fixture)

import ablatio

TEXT = "the people of a great nation want peace and work for all who live in it"


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """What each tiny run is given: twelve steps on a text of some hundred words."""
    words = TEXT.split()
    lines = [" ".join(words[(i * (n % 7 + 1) + n) % len(words)] for i in range(80)) for n in range(60)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(".\n\n".join(lines), encoding="utf-8")
    return (*TINY, f"source.path={path}")


@pytest.fixture(scope="session")
def run(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> "ablatio.RunFolder":
    """A run that is done."""
    return ablatio.train(*settings, name="done", out=tmp_path_factory.mktemp("runs"), quiet=True)
