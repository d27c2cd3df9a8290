"""`show KIND --author` prints a contract that is complete, and an example that registers and is shown nowhere else."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.doc_pages import blocks, pages
from helpers.plugin_sites import Site

from ablatio.cli.author_page import author_page
from ablatio.cli.main import main
from ablatio.cli.scaffold import templates
from ablatio.cli.scaffold.plugin import new_plugin
from ablatio.errors import UserError
from ablatio.registry import contract, signatures
from ablatio.registry.registry import REGISTRIES

OURS = list(REGISTRIES)
OWN_KIND = Path(__file__).parents[1] / "helpers" / "plugins" / "own_kind"


def printed(kind: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["show", kind, "--author"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", OURS)
def test_the_contract_is_complete(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each word that is handed over, each method and each fact stands there with its meaning; the example is whole."""
    registry, text = REGISTRIES[kind], printed(kind, capsys)
    for word, meaning in contract.wiring(registry).items():
        assert meaning and re.search(rf"^  {word}\b", text, re.M), word
    for fact, (default, meaning) in contract.facts(registry).items():
        assert meaning and f"  {fact} = {default!r}" in text
    for method, (signature, _, meaning) in contract.methods(registry).items():
        assert meaning and f"  {signature.split('(')[0].split(':')[0]}" in text, method
    for required in (*registry.methods, *registry.any_of):
        assert f"  {required}(" in text
    assert text.endswith(f"{templates.example(kind)}\ntry: ablatio new-plugin my-parts --kind {kind}\n")
    page, example = text.split("\nEXAMPLE")
    assert max(map(len, page.splitlines())) <= 80 and max(map(len, example.splitlines())) <= 120


@pytest.mark.parametrize("kind", [kind for kind in OURS if REGISTRIES[kind].contract])
def test_the_words_of_a_docstring_agree_with_its_signatures(kind: str) -> None:
    """`score(q, k, q_pos, k_pos)` in the text has the parameters of the method."""
    known = signatures.methods_of(REGISTRIES[kind].contract)
    words = [word for section in contract.described(REGISTRIES[kind]).sections.values() for word in section]
    called = re.findall(r"(\w+)\(([^()]*)\)", "  ".join(words))
    for name, inside in called:
        if name in known and not known[name].attribute and "*args" not in str(known[name]):
            assert [p.name for p in known[name].parameters] == [w for w in inside.split(", ") if w], (kind, name)
    missing = {n for n, m in known.items() if not m.attribute} - {name for name, _ in called}
    assert missing <= {"__call__"} and (not missing or kind == "activation"), missing


def test_a_rule_about_a_fact_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(printed("optimizer", capsys).split())
    assert "refused: init.name == 'mup' and not facts.optimizer.entrywise muP's learning rates hold for" in text


def test_what_is_no_kind_gets_a_command_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    for word, kind in (("norm=rmsnorm", "norm"), ("optimiser", "optimizer"), ("xyz", "norm")):
        assert main(["show", word, "--author"]) == 2
        assert capsys.readouterr().err.endswith(f"try: ablatio show {kind} --author\n")
        assert main(["show", kind, "--author"]) == 0
        capsys.readouterr()


def test_the_guide_shows_the_same_examples() -> None:
    shown = {
        Path(block.file).stem: block.body
        for page in pages()
        if page.startswith("plugins/")
        for block in blocks(page)
        if block.file.startswith("guide")
    }
    assert shown == {kind: templates.example(kind) for kind in OURS}


def test_every_kind_has_an_example_and_a_test_of_it() -> None:
    assert templates.TRIED.keys() == set(OURS)
    for kind in OURS:
        tree = ast.parse(templates.test_of(kind))
        tests = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
        assert any(isinstance(n, ast.Assert) for t in tests for n in ast.walk(t)) or "assert_close" in ast.unparse(tree)


@pytest.mark.parametrize("kind", OURS)
def test_a_plugin_of_any_kind_has_the_part_under_its_own_name(kind: str, tmp_path: Path) -> None:
    place = new_plugin("my-Parts", tmp_path, [kind])
    part, own = (place / "my_parts" / f"{kind}s.py").read_text(), (place / "tests" / f"test_{kind}.py").read_text()
    old = templates.option_of(templates.example(kind))
    assert templates.option_of(part) == "my_parts" and f'"{old}"' not in part + own
    assert "my_parts" in own and compile(part, "part", "exec") and compile(own, "test", "exec")
    readme = (place / "README.md").read_text()
    assert f"ablatio show {kind}=my_parts" in readme and "$" not in readme
    experiment = place / "my_parts" / "conf" / "experiment" / "my_parts.yaml"
    assert experiment.exists() == (kind not in ("design", "launcher", "decode", "prompt"))


def test_several_kinds_make_one_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "new-plugin",
        "my-parts",
        "--in",
        str(tmp_path),
        "--kind",
        "mlp,norm",
        "--kind",
        "optimizer",
        "--kind=mlp",
    ]
    assert main(command) == 0
    assert f"pip install -e {tmp_path / 'my-parts'}" in capsys.readouterr().out
    modules = sorted(p.name for p in (tmp_path / "my-parts" / "my_parts").glob("*.py"))
    assert modules == ["__init__.py", "mlps.py", "norms.py", "optimizers.py"]
    names = sorted(p.stem for p in (tmp_path / "my-parts").rglob("*.yaml"))
    assert names == ["my_parts_mlp", "my_parts_norm", "my_parts_optimizer"]


def test_new_plugin_names_the_kinds_and_the_part_that_is_taken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no kind aligment; did you mean alignment or placement\? there are"):
        new_plugin("my-losses", tmp_path, ["norm", "aligment"])
    with pytest.raises(UserError, match="would register alignment=dpo, which ablatio"):
        new_plugin("dpo", tmp_path, ["norm", "alignment"])
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.slow
def test_a_kind_of_a_plugin_has_a_page_and_an_example(tmp_path: Path) -> None:
    """Its page is made from its registry, and its example from its shortest part; what is made from that works."""
    site = Site(tmp_path / "site").add("ablatio-own-kind", "ablatio_own_kind", origin=OWN_KIND)
    page = site.run("-m", "ablatio.cli", "show", "residual_gate", "--author")
    assert page.returncode == 0, page.stderr
    assert "  from ablatio_own_kind import residual_gates\n" in page.stdout
    assert (
        "  forward(x: Tensor) -> Tensor   [required]\n      (..., D) -> (..., D), called on the output of each sublayer"
        in (page.stdout)
    )
    assert re.search(r"^  d_model +D, width of the residual stream$", page.stdout, re.M)
    made = site.run("-m", "ablatio.cli", "new-plugin", "my-gates", "--kind", "residual_gate")
    assert made.returncode == 0, made.stderr
    site.add("my-gates", "my_gates", origin=site.folder.parent / "my-gates")
    check = site.check("my-gates")
    assert check.returncode == 0 and re.search(r"^residual_gate=my_gates +ok", check.stdout, re.M), check.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [OURS[::6], pytest.param(OURS, marks=pytest.mark.long)], ids=["a sixth", "all"])
def test_what_new_plugin_writes_keeps_its_contract(tmp_path: Path, kinds: list[str]) -> None:
    """Many kinds at once: the parts and the experiments pass `ablatio check`."""
    place = new_plugin("my-parts", tmp_path, kinds)
    site = Site(tmp_path / "site").add("my-parts", "my_parts", origin=place)
    check = site.run("-m", "ablatio.cli", "check", "my-parts", seconds="60")
    assert check.returncode == 0, check.stdout[-6000:] + check.stderr[-2000:]
    tried = re.findall(r"^(\w+)=\S+ +(?:\S+ +){6}\S+$", check.stdout, re.M)
    run = [kind for kind in kinds if templates.tried(kind).run]
    assert {*kinds} - {*run} <= {"design", "launcher", "decode", "prompt"}  # tried by a command of their own
    assert sorted(tried) == sorted([*kinds, *["experiment"] * len(run)]), check.stdout


@pytest.mark.long
@pytest.mark.slow
def test_the_tests_that_new_plugin_writes_pass(tmp_path: Path) -> None:
    place = new_plugin("my-parts", tmp_path, OURS)
    site = Site(tmp_path / "site").add("my-parts", "my_parts", origin=place)
    own = [str(path) for path in sorted((place / "tests").glob("test_*.py")) if path.name != "test_my_parts.py"]
    # Plain: the warm process (helpers/warm_python.py) has imported a plugin that pytest would rewrite.
    usual = ("-p", "no:cacheprovider", "--assert=plain")
    run = site.run("-m", "pytest", *usual, "-c", str(place / "pyproject.toml"), *own)
    assert run.returncode == 0 and f"{len(OURS)} passed" in run.stdout, run.stdout


def test_the_page_of_a_kind_without_a_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of this session that says little about itself still has its words, its method and a part."""
    from ablatio.registry.registry import Registry, transaction

    with pytest.raises(RuntimeError, match="undo"), transaction():
        things: Registry[Any] = Registry(
            "thing", "For tests.", wiring=("width",), methods=("go",), facts={"big": False}
        )

        @things.register("small")
        class Small:
            """Goes.  Source: here."""

            def go(self) -> None: ...

        monkeypatch.setattr(templates, "part_source", lambda entry: "# Small\n")
        text = author_page("thing")
        assert (
            "  width\n" in text and "  go(...)   [required]" in text and "  big = False" in text and "# Small" in text
        )
        raise RuntimeError("undo")
