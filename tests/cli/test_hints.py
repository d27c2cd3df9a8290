"""Every error that a user can meet shows a command that works, and the commands name what there is."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from ablatio.cli.commands import COMMANDS, arguments_of
from ablatio.config.schema import SECTIONS, Run, section_knobs
from ablatio.config.yaml_files import files
from ablatio.errors import AblatioError
from ablatio.registry import discovery
from ablatio.registry.registry import REGISTRIES

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "core/ablatio").rglob("*.py"), *(ROOT / "plugins/ablatio_std").rglob("*.py")]
HINT = "try: "
# Not DamagedFile: the reader of a checkpoint or a cache catches it, and says what it uses instead.
ERRORS = ("UserError", "RewardError", "EnvironmentFault", "Diverged", "Preempted")
NO_HINT = {  # files whose errors have none, and why
    "core/ablatio/storage/atomic_write.py": "raised to code that writes an object; it says what to write instead",
    "core/ablatio/storage/state_json.py": "raised to code that saves a state; it says which types it may have",
    "core/ablatio/storage/safetensors_io.py": "raised to code that saves tensors; it says what to do with them first",
    "core/ablatio/storage/checkpoints.py": "raised to code that calls the store; a config is checked before",
    "core/ablatio/config/transformers_parts.py": "raised within from_transformers.read, which adds file and command",
    "core/ablatio/config/from_transformers.py": "read adds file and command to what its readers raise; tested below",
    "core/ablatio/testing/sample_parts.py": "passes on errors of files, each with its own command",
    "core/ablatio/testing/two_ranks.py": "passes on the traceback of a rank to the author of a part",
    "core/ablatio/testing/tiny_models.py": "passes on problems of a config, each with its own fix",
    "core/ablatio/training/task_context.py": "passes on an error of a source",
    "core/ablatio/data/records.py": "BadRows passes on the error of the first row",
    "plugins/ablatio_std/evals/_task_yaml.py": "filled: the caller says for which field and what to do",
}


@cache
def trees() -> dict[str, ast.Module]:
    """Syntax trees of the files that raise such an error or hold a hint."""
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in SOURCES}
    return {
        path: ast.parse(text)
        for path, text in texts.items()
        if HINT in text or any(f"raise {e}(" in text for e in ERRORS)
    }


@cache
def definitions() -> dict[tuple[str, str], list[ast.AST]]:
    """(file, name) -> what defines it there; functions and constants stand under the file "", too."""
    found: dict[tuple[str, str], list[ast.AST]] = {}
    for path, tree in trees().items():
        for node in ast.walk(tree):
            names = [node.name] if isinstance(node, ast.FunctionDef) else []
            if isinstance(node, ast.Assign):
                names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            for name in names:
                everywhere = isinstance(node, ast.FunctionDef) or name.isupper()
                for place in (path, "") if everywhere else (path,):
                    found.setdefault((place, name), []).append(node)
    return found


def holds_hint(node: ast.AST, path: str, depth: int = 3) -> bool:
    """True if a message holds a hint, itself or by a name that it uses."""
    if any(HINT in str(n.value) for n in ast.walk(node) if isinstance(n, ast.Constant)):
        return True
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    names |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
    made = [d for name in names for d in definitions().get((path, name)) or definitions().get(("", name), [])]
    return depth > 0 and any(holds_hint(d, path, depth - 1 if isinstance(d, ast.Assign) else 0) for d in made)


def raised(tree: ast.AST) -> Iterator[ast.Raise]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) in ERRORS:
            yield node


def test_every_error_shows_a_command() -> None:
    without = {
        path: [node.lineno for node in raised(tree) if not holds_hint(node, path)]
        for path, tree in trees().items()
        if path not in NO_HINT
    }
    assert not {path: lines for path, lines in without.items() if lines}
    assert sum(len(list(raised(tree))) for tree in trees().values()) > 400


@pytest.mark.parametrize("path", NO_HINT)
def test_an_exception_is_one(path: str) -> None:
    """A file leaves the list when its last error has a hint."""
    assert any(not holds_hint(node, path) for node in raised(trees()[path]))


def hints() -> Iterator[tuple[str, str]]:
    """(place, command) of each hint in the sources; a value that is known later only is `{}`."""
    for path, tree in trees().items():
        # Parts of an f-string are constants, too, and occur within it.
        inside = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                pieces = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                text = "".join(map(str, pieces))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
                text = node.value
            else:
                continue
            for line in text.splitlines():
                head, found, command = line.partition(HINT)
                if found and not head.strip():
                    yield f"{path}:{node.lineno}", command


KEY = re.compile(r"\+?([a-z_]+)(?:\.([a-z_.]+))?=([^\s,`]*)")


def wrong(command: str) -> Iterator[str]:
    """What a command names and there is not."""
    known = {kind: [k.name for e in registry for k in e.knobs] for kind, registry in REGISTRIES.items()}
    known |= {name: [k.name for k in section_knobs(section)] for name, section in SECTIONS.items()}
    single = {*(k.name for k in section_knobs(Run)), *files(), "resume", "extend", "parts", "seeds", "layers", "roles"}
    if (called := re.match(r"ablatio ([a-z][a-z-]+)", command)) is not None:
        if called[1] not in COMMANDS:
            yield called[1]
        elif called[1] not in ("train", "resume"):
            flags = {flag for action in arguments_of(called[1]) for flag in action.option_strings}
            yield from (flag for flag in re.findall(r"(?<=\s)--[a-z-]+", command.split(", ")[0]) if flag not in flags)
    for key, knob, value in KEY.findall(command):
        first = knob.split(".")[0]
        if key in REGISTRIES and not knob:
            names = re.findall(r"[a-z_0-9]+(?![A-Za-z])", value) if re.fullmatch(r"\[?[a-z_0-9,]+\]?", value) else []
            yield from (f"{key}={name}" for name in names if name not in (*REGISTRIES[key].entries, "null", "none"))
        elif key in known and knob:
            is_option = key in REGISTRIES and first in REGISTRIES[key].entries
            if not is_option and first not in known[key]:
                yield f"{key}.{knob}"
        elif not knob and key in files() and re.fullmatch(r"[a-z_0-9]+", value) and value not in files()[key]:
            yield f"{key}={value}"
        elif not knob and key not in single and key not in known and command.startswith("ablatio train"):
            yield key


def test_the_commands_of_hints_name_what_there_is() -> None:
    discovery.load()
    found = list(hints())
    assert len(found) > 300
    assert not {place: (command, bad) for place, command in found if (bad := list(wrong(command)))}


def test_errors_of_the_command_line_end_with_a_command() -> None:
    """The check itself finds a hint that names nothing."""
    assert list(wrong("ablatio trian norm=rmsnorm")) == ["trian"]
    assert list(wrong("norm=rmsnrom")) == ["norm=rmsnrom"]
    assert list(wrong("optimizer.lrr=1")) == ["optimizer.lrr"]
    assert list(wrong("ablatio report runs/a --serv")) == ["--serv"]
    assert issubclass(AblatioError, Exception)
