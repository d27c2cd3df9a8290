"""A file of parts: executed only when the user names it, registered like a plugin's parts, forgotten afterwards."""

import hashlib
import importlib
import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ablatio.errors import UserError
from ablatio.registry import parts_file, rules
from ablatio.registry.parts_file import PartsFile, PartsNeeded, load, loaded, refuse_another
from ablatio.registry.registry import REGISTRIES, ContractError, Distribution, Registry, provided_by, transaction
from ablatio.registry.source_digest import source_digest

PART = '''\
import torch
from torch import nn

from ablatio import norms

FACTOR = 2


@norms.register("halved", paper="arXiv:0000.00000")
class Halved(nn.Module):
    """y = g * x / 2.  (..., d_model) -> same."""

    def __init__(self, d_model: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((d_model,), gain))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight / FACTOR
'''


def written(folder: Path, text: str = PART) -> PartsFile:
    (folder / "my_parts.py").write_text(text)
    return PartsFile.read(str(folder / "my_parts.py"))


def test_its_parts_are_registered_inside_the_context_alone(tmp_path: Path) -> None:
    file = written(tmp_path)
    before = {kind: dict(registry.entries) for kind, registry in REGISTRIES.items()}
    with loaded(file):
        entry = REGISTRIES["norm"]["halved"]
        assert parts_file.current() is file and file.parts == [entry]
        assert str(entry.distribution) == f"my_parts.py {file.sha256[:12]}"
        assert float(REGISTRIES["norm"].build("halved", {"gain": 3.0}, d_model=4).weight.detach().sum()) == 12.0
    assert parts_file.current() is None
    assert {kind: dict(registry.entries) for kind, registry in REGISTRIES.items()} == before
    with pytest.raises(UserError, match="there is no norm=halved"):
        REGISTRIES["norm"].target("halved")


def test_an_edited_file_replaces_its_parts(tmp_path: Path) -> None:
    digests = []
    with loaded(written(tmp_path)):
        digests.append(REGISTRIES["norm"]["halved"].digest)
        load(written(tmp_path, PART + "\nUNUSED = 1\n"))  # nothing that the part uses
        digests.append(REGISTRIES["norm"]["halved"].digest)
        load(written(tmp_path, PART.replace("FACTOR = 2", "FACTOR = 4")))
        digests.append(REGISTRIES["norm"]["halved"].digest)
        assert float(REGISTRIES["norm"].build("halved", d_model=1)(1.0).detach()) == 0.25
    assert digests[0] == digests[1] != digests[2] and all(len(digest) == 64 for digest in digests)


def test_a_digest_is_that_of_the_same_text_in_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "an_own_module.py").write_text(PART)
    monkeypatch.syspath_prepend(tmp_path)
    with loaded(written(tmp_path)):
        assert REGISTRIES["norm"]["halved"].digest == source_digest("an_own_module", "Halved")


def test_the_text_that_was_read_is_executed_and_hashed(tmp_path: Path) -> None:
    """Not what the file holds later, and no bytecode that lies beside it."""
    file = written(tmp_path)
    path = Path(file.path)
    path.write_text(PART.replace("FACTOR = 2", "FACTOR = 8"))
    subprocess.run([sys.executable, "-m", "py_compile", str(path)], check=True)
    assert Path(importlib.util.cache_from_source(str(path))).exists()
    with loaded(file):
        assert float(REGISTRIES["norm"].build("halved", d_model=1)(1.0).detach()) == 0.5
        assert file.record([])["sha256"] == hashlib.sha256(PART.encode()).hexdigest()
        with loaded(written(tmp_path)):
            assert REGISTRIES["norm"]["halved"].digest  # of the other text
    with loaded(pickle.loads(pickle.dumps(file))):  # as a process of a sweep gets it
        assert float(REGISTRIES["norm"].build("halved", d_model=1)(1.0).detach()) == 0.5


FAULTY = {
    "syntax": ("x = (", r"SyntaxError: .*my_parts\.py, line 1"),
    "error": ("x = 1\n1 / 0", r"ZeroDivisionError: .*my_parts\.py, line 2"),
    "exit": ("raise SystemExit(3)", r"SystemExit: 3"),
    "sibling": ("import no_such_sibling", r"ModuleNotFoundError"),
    "taken": (PART.replace('"halved"', '"rmsnorm"'), r"norm=rmsnorm already exists, provided by ablatio"),
    "signature": (PART.replace("d_model: int,", "width: int,"), r"has the parameter `width`"),
    "nothing": ("x = 1", r"registers no part"),
    "replaces": (
        "from ablatio.registry.registry import REGISTRIES as r\nr['norm'].entries['rmsnorm'] = r['norm']['layernorm']",
        r"it replaces norm=rmsnorm",
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_a_faulty_file_says_why_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    text, why = FAULTY[case]
    kinds, rules_before = {k: dict(r.entries) for k, r in REGISTRIES.items()}, list(rules.RULES)
    with pytest.raises(UserError, match=why):
        load(written(tmp_path, text))
    assert parts_file.current() is None and parts_file.MODULE not in sys.modules
    assert {k: dict(r.entries) for k, r in REGISTRIES.items()} == kinds and rules_before == rules.RULES


def test_kinds_and_rules_of_a_file_are_forgotten_too(tmp_path: Path) -> None:
    text = PART + (
        "\nfrom ablatio import rule\nfrom ablatio.registry.registry import Registry\n"
        "Registry('mood', 'Moods.', optional=True)\n"
        "rule(when=\"norm.name == 'halved'\", why='no', fix='norm=rmsnorm')\n"
    )
    count = len(rules.RULES)
    with loaded(written(tmp_path, text)):
        assert "mood" in REGISTRIES and len(rules.RULES) == count + 1
    assert "mood" not in REGISTRIES and len(rules.RULES) == count


@pytest.mark.parametrize("path", ["gone.py", "notes.txt", ".", "binary.py"])
def test_a_path_that_is_no_python_file_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"try: "):
        PartsFile.read(str(tmp_path / path))


def test_no_kind_may_be_called_as_the_setting_is() -> None:
    with pytest.raises(ContractError, match="cannot be called `parts`"):
        Registry("parts", "A kind.")


def test_the_refusal_shows_a_file_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded path if it still fits, else the copy, else none; never another file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    file = PartsFile.read(written(tmp_path).path)
    record = {"file": "my_parts.py", "sha256": file.sha256}
    for nothing in (None, {}, [], {"file": 3, "sha256": "0"}, {"file": "x", "sha256": ["0"]}, {"file": "x"}, "x"):
        refuse_another(nothing, tmp_path)
    with loaded(file):
        refuse_another(record, tmp_path)

    def shown() -> str:
        with pytest.raises(PartsNeeded) as raised:
            refuse_another(record, Path("run"))
        told = raised.value.for_command(["evaluate", "run", "--length", "8"])
        assert str(raised.value).endswith(f"try: ablatio.load_parts({raised.value.path!r}), and the same call")
        return told

    assert shown().endswith("try: ablatio evaluate run --length 8 parts=my_parts.py")
    (tmp_path / "my_parts.py").write_text("# changed")
    assert shown().endswith("try: ablatio evaluate run --length 8 parts=FILE.py") and "neither" in shown()
    (tmp_path / "run/parts.py").write_text(PART)
    assert shown().endswith("try: ablatio evaluate run --length 8 parts=run/parts.py") and "read it before" in shown()
    with loaded(written(tmp_path, PART + "# mine")):
        assert "my_parts.py is another file or another version of it" in shown()
    (tmp_path / "run/parts.py").write_text("# changed by somebody")
    assert shown().endswith("parts=FILE.py")


def test_a_plugin_with_the_same_source_is_as_good_as_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that moved from a file into a package: its runs open without the file."""
    with loaded(written(tmp_path)) as _:
        file = parts_file.current()
        assert file is not None
        record = file.record(file.parts)
        assert record == parts_file.record_for([*REGISTRIES["norm"].entries.values()])
    with pytest.raises(PartsNeeded):
        refuse_another(record, tmp_path)
    (tmp_path / "an_installed_package.py").write_text(PART)
    monkeypatch.syspath_prepend(tmp_path)
    with transaction_undone(), provided_by(Distribution("my-norms", "1")):
        importlib.import_module("an_installed_package")
        refuse_another(record, tmp_path)
        for other in ({"norm/halved": "0" * 64}, {"norm/halved": record["parts"]["norm/halved"], "norm/gone": "0"}, {}):
            with pytest.raises(PartsNeeded):
                refuse_another({**record, "parts": other}, tmp_path)


@contextmanager
def transaction_undone() -> Iterator[None]:
    """Undo what is registered inside."""
    with suppress(RuntimeError), transaction():
        yield
        raise RuntimeError
