"""Any words after `ablatio train`: a config, or an error that says what is wrong, never a traceback."""

import random
import string
from collections.abc import Iterator

import pytest

from ablatio.config.compose import compose_run
from ablatio.config.schema import SECTIONS, section_knobs
from ablatio.config.yaml_files import files
from ablatio.errors import AblatioError, ConfigError
from ablatio.registry.registry import REGISTRIES

USUAL, ALL = 20, 5000
SIGNS = ",=[]{}()'\"$:.@+~*#\\/ \t\n-_%&|;<>?!^`é中\u200b\ud800"
VALUES = (
    "", "null", "true", "-1", "0", "1e400", "nan", "9" * 400, "[]", "[[]]", "{}", "{a:1}", "[1,2", "'",
    "${oc.env:HOME}", "${x}", "${oc.env:NO_SUCH}", "a,b", "range(1,9)", "linear(0,1)", "stages(1@0,2@0.5)", "stages(",
    "x" * 3000, "???",
    "_target_", "{_target_:os.system}", "../../etc/passwd", "./gone.yaml", "\ud800", "a=b", "[[[[[[[[[[[[[[[[[[[[1",
)  # fmt: skip


def keys() -> list[str]:
    """Kinds, options, knobs, sections and settings, and keys that need care."""
    found = [
        *REGISTRIES,
        *files(),
        "resume",
        "extend",
        "seeds",
        "layers",
        "layers.at",
        "hydra",
        "hydra.run.dir",
        "sweep",
    ]
    found += [f"{name}.{knob.name}" for name, section in SECTIONS.items() for knob in section_knobs(section)]
    found += [f"{kind}.{knob.name}" for kind, registry in REGISTRIES.items() for e in registry for knob in e.knobs]
    return [*dict.fromkeys(found)]


def overrides(rng: random.Random) -> Iterator[str]:
    """Overrides without end: settings with odd values, real options in wrong places, other signs, noise."""
    known, options = keys(), [e.name for registry in REGISTRIES.values() for e in registry]
    while True:
        key, value = rng.choice(known), rng.choice((rng.choice(VALUES), rng.choice(options)))
        text = (
            rng.choice(("", "", "", "+", "~", "++"))
            + key
            + rng.choice(("=", "=", "=", "", "==", "@a=", ".x=", "/y="))
            + value
        )
        for _ in range(rng.choice((0, 0, 0, 1, 3))):
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(SIGNS + string.ascii_letters) + text[place + rng.randrange(2) :]
        yield text


@pytest.mark.parametrize(
    ("seed", "count"), [(1, USUAL), *(pytest.param(seed, ALL // 10, marks=pytest.mark.long) for seed in range(2, 12))]
)
def test_any_override_is_a_config_or_an_error(seed: int, count: int) -> None:
    made, refused = overrides(random.Random(seed)), 0
    for text in (next(made) for _ in range(count)):
        try:
            compose_run([text])
        except AblatioError as error:
            refused += 1
            assert str(error).strip() and len(str(error)) < 20_000, text[:200]
        except Exception as error:
            raise AssertionError(f"{text[:300]!r}: {type(error).__name__}: {error}") from error
    assert refused > count / 3


@pytest.mark.parametrize(
    "text",
    [
        "logger=range(1,9)", "logger=choice(csv)", "eval=range(1,9)", "stabilizer=interval(0,1)", "logger=glob(*)",
        "metric=sort(1,2)", "logger=[csv,range(1,3)]", "norm=range(1,9)",
    ],
)  # fmt: skip
def test_a_function_of_the_grammar_is_no_option(text: str) -> None:
    """Found by the test above: Hydra itself raised a TypeError for the first of them."""
    with pytest.raises(ConfigError) as refused:
        compose_run([text])
    (problem,) = refused.value.problems
    assert problem.where == text.split("=")[0]
    assert not problem.fix or compose_run([problem.fix])
