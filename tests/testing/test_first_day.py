"""Faults of a first day that once passed unseen or were told one at a time."""

import io
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ablatio.cli.scaffold.templates import EXAMPLES, option_of, renamed
from ablatio.config import schema
from ablatio.errors import UserError
from ablatio.interop.families import family_of
from ablatio.registry.parts_file import PartsFile, current, loaded
from ablatio.registry.registry import REGISTRIES, ContractError
from ablatio.registry.rules import violated_rules
from ablatio.testing import tiny_models
from ablatio.testing.suites import test_source as source_suite
from ablatio.training.run_summary import show_parts

NORM = '''
@norms.register("{name}", paper="arXiv:1803.01814")
class {name}(nn.Module):
    """y = x."""

    def __init__(self, d_model: int, *, eps{default}) -> None:
        super().__init__()

    def forward(self, x):
        return x
'''
SOURCE = '''
import hashlib

from ablatio import sources
from ablatio.data.types import Document


@sources.register("{name}")
class Numbers:
    """Numbers.  Source: generated."""

    def __init__(self, *, start: int = 1, count: int = 30) -> None:
        self.start, self.count = start, count

    def documents(self):
        yield from (Document(f"number {{i}}", str(i)) for i in range(self.start, self.start + self.count))

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{print}".encode()).hexdigest()
'''


def written(folder: Path, text: str) -> PartsFile:
    (folder / "mine.py").write_text(text)
    return PartsFile.read(str(folder / "mine.py"))


def test_all_faulty_parts_of_a_file_are_told_and_none_is_registered(tmp_path: Path) -> None:
    head = "from torch import nn\nfrom ablatio import norms\n"
    parts = [("good", ": float = 1.0"), ("bare", "=1.0"), ("open", ": float")]
    file = written(tmp_path, head + "".join(NORM.format(name=name, default=default) for name, default in parts))
    with pytest.raises(UserError) as caught, loaded(file):
        pass
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("2 parts do not keep their contract") and len(lines) == 4
    assert lines[1].startswith("    norm=bare (bare): the knob `eps` has no type")
    assert lines[2].startswith("    norm=open (open): the knob `eps` has no default")
    assert lines[3] == "    try: ablatio show norm --author"
    assert current() is None and not {"good", "bare", "open"} & {*REGISTRIES["norm"].entries}


@pytest.mark.parametrize(
    ("kind", "method", "hint"),
    [("stabilizer", "before_stop", "before_step"), ("stabilizer", "batch_row", "batch_rows"),
     ("position", "rotates", "rotate"), ("position", "biass", "bias")],
)  # fmt: skip
def test_a_slip_in_the_only_method_is_refused(kind: str, method: str, hint: str) -> None:
    part = type("Part", (), {method: lambda self, *arguments: {}})
    with pytest.raises(ContractError, match=rf"`{method}`.*did you mean [^?]*{hint}"):
        REGISTRIES[kind].register("slipped")(part)


def test_a_helper_beside_a_method_and_a_part_without_methods_are_fine() -> None:
    registry: Any = REGISTRIES["position"]
    try:
        for members in ({}, {"bias": lambda self, q_pos, k_pos: 0.0, "biases": lambda self: 1}):
            registry.register("allowed")(type("Part", (), members))
            del registry.entries["allowed"], registry._targets["allowed"]
    finally:
        registry.entries.pop("allowed", None)


@pytest.mark.parametrize(
    ("fingerprint", "fault"),
    [("{self.start} {self.count}", ""), ("{self.start}", "count="), ("numbers", "start=")],
)
def test_a_fingerprint_that_ignores_a_knob_is_found(tmp_path: Path, fingerprint: str, fault: str) -> None:
    with loaded(written(tmp_path, SOURCE.format(name="numbers", print=fingerprint))):
        part = REGISTRIES["source"]["numbers"]
        expected = pytest.raises(AssertionError, match=f"{fault}.*the same fingerprint") if fault else nullcontext()
        with expected:
            source_suite.test_fingerprint_follows_the_documents(part)


def test_a_plain_mlp_is_refused_under_gated_activations_alone() -> None:
    for entry in REGISTRIES["activation"]:
        made = tiny_models.config()
        made["activation"] = {"name": entry.name, **entry.defaults}
        view = schema.effective(made)
        view["facts"]["mlp"] = view["facts"]["mlp"] | {"wiring": ["d_model", "d_ff", "activation"]}
        told = [problem for problem in violated_rules(view) if "does not ask for `gated`" in str(problem)]
        assert bool(told) is bool(entry.facts["gated"]), entry.name


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_new_plugin_renames_the_option_and_no_word_of_a_description(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    old = option_of((EXAMPLES / path.name).read_text(encoding="utf-8"))
    new = renamed(text, old, "zzz")
    assert not re.search(r"[\"']zzz ", new), "a description that begins with the word is not an option"
    assert len(re.findall(rf"\b{old}\b", text)) - len(re.findall(rf"\b{old}\b", new)) == new.count("zzz")


def test_the_table_before_a_run_says_which_layers_and_what_is_frozen(tmp_path: Path) -> None:
    made = tiny_models.config() | {"freeze": ["embed", "layers.0"]}
    made["layers"] = {"at": {"attention": {0: "none"}}}
    console = Console(file=io.StringIO(), width=200)
    show_parts(console, made, tmp_path)
    rows = {" ".join(line.split()[:4]) for line in console.file.getvalue().splitlines()}  # type: ignore[attr-defined]
    assert "attention none layer 0" in rows and "attention mha layer 1" in rows and "freeze embed, layers.0" in rows


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_a_model_with_a_layer_without_a_sublayer_has_no_native_form(kind: str) -> None:
    made = tiny_models.config()
    made["layers"] = {"at": {kind: {0: "none"}}}
    assert family_of(made, 257) is None
