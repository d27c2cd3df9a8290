"""A kind of a plugin that nothing uses is named, and so is a choice that nothing reads; each use is recognized."""

from pathlib import Path
from typing import Annotated, Any

import pytest

from ablatio import OptionOf, mlps
from ablatio.registry import consumers, discovery
from ablatio.registry.catalogue import PluginSource
from ablatio.registry.registry import REGISTRIES, Distribution, Registry, provided_by, transaction

THEIRS = Distribution("my-parts", "1.0")
DECLARED = 'from ablatio.registry.registry import Registry\nfillers: Registry[int] = Registry("filler", "For tests.")\n'
BUILT = {
    "by the registry": "fillers.build('a')",
    "through its module": "import parts\nparts.fillers.target('a')",
    "by its name": "REGISTRIES['filler'].build('a')",
}
READ = {
    "a subscript": "config['filler']['name']",
    "get": "config.get('filler')",
    "its kind": "config[fillers.kind]",
    "a choice": "PartChoice.of(config['filler'])",
}


class Undo(Exception):
    """Takes back what was registered."""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function that installs a module as the only plugin besides ours; the kinds are restored afterwards."""
    kinds = dict(REGISTRIES)
    entries = dict(mlps.entries)

    def install(code: str) -> Registry[Any]:
        path = tmp_path / "filler_parts.py"
        path.write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        source = PluginSource("filler_parts", "filler_parts", THEIRS)
        monkeypatch.setattr(discovery, "sources", lambda: [source])
        consumers._parsed.cache_clear()
        with provided_by(THEIRS):
            REGISTRIES.pop("filler", None)
            return Registry("filler", "For tests.", optional=True)

    yield install
    REGISTRIES.clear()
    REGISTRIES.update(kinds)
    mlps.entries = entries


def chosen() -> list[str]:
    return consumers.without_effect({"filler": {"name": "a"}, "norm": {"name": "rmsnorm"}, "seed": 1})


def test_a_kind_that_nobody_uses(plugin: Any) -> None:
    registry = plugin(DECLARED)
    said = consumers.unused(registry)
    assert said.startswith("the kind `filler` of my-parts 1.0 is used by nothing that is installed")
    assert chosen() == [f"filler=a has no effect: {said}"]
    assert consumers.axes_without_effect(["+filler=a,b", "norm=rmsnorm", "seed=1,2"]) == chosen()
    assert (Path(__file__).parents[2] / consumers.GUIDE).exists()


@pytest.mark.parametrize("use", BUILT)
@pytest.mark.parametrize("read", READ)
def test_code_that_reads_and_builds_is_a_use(plugin: Any, use: str, read: str) -> None:
    registry = plugin(f"{DECLARED}{BUILT[use]}\n{READ[read]}\n")
    assert consumers.unused(registry) == "" and chosen() == []


def test_a_part_of_the_task_context_is_a_use(plugin: Any) -> None:
    assert consumers.unused(plugin(f"{DECLARED}self.setup.part('filler')\n")) == "" and chosen() == []


@pytest.mark.parametrize("code", ["other.build('a')", "fillers.register('a')", "print('filler')", "config['fillers']"])
def test_other_code_is_none(plugin: Any, code: str) -> None:
    assert consumers.unused(plugin(f"{DECLARED}{code}\n")) and chosen()


def test_a_build_without_a_reader_ignores_the_choice(plugin: Any) -> None:
    assert consumers.unused(plugin(f"{DECLARED}fillers.build('a')\n")) == ""
    assert chosen() == ["filler=a has no effect: nothing reads the choice of a `filler` in a config"]


def test_a_kind_that_attaches_is_used(plugin: Any) -> None:
    plugin(DECLARED)
    del REGISTRIES["filler"]
    with provided_by(THEIRS):
        registry = Registry[Any]("filler", "For tests.", optional=True, attaches="layer", methods=("forward",))
    assert consumers.unused(registry) == "" and chosen() == []


def test_a_kind_that_a_knob_names_is_chosen_by_the_knob(plugin: Any) -> None:
    registry = plugin(f"{DECLARED}fillers.build('a')\n")
    with pytest.raises(Undo), transaction():

        @mlps.register("filled")
        class Filled:
            """x.  (B, T, D) -> same."""

            def __init__(self, *, fill: Annotated[str, OptionOf("filler")] = "a") -> None: ...

            def forward(self, x: Any, ctx: Any) -> Any:
                return x

        assert consumers.knobs_of("filler") == ["mlp=filled.fill"] and consumers.unused(registry) == ""
        assert chosen() == [
            "filler=a has no effect: options of `filler` are chosen by a knob\n    try: mlp=filled mlp.fill=a"
        ]
        raise Undo


def test_ours_and_those_of_the_session_are_not_judged() -> None:
    assert [kind for kind, registry in REGISTRIES.items() if consumers.unused(registry)] == []
    assert consumers.without_effect({kind: {"name": "x"} for kind in REGISTRIES}) == []


def test_the_default_is_no_choice(plugin: Any) -> None:
    plugin(DECLARED)
    REGISTRIES["filler"].default = "none"
    assert consumers.without_effect({"filler": {"name": "none"}}) == [] == consumers.without_effect({"filler": None})
