"""Execute the pages of docs/: fenced code blocks in order, and the marks in front of them.

A comment in front of a block says how it is executed:

    <!-- slow -->              it takes seconds: `make fast` leaves out its page
    <!-- file: PATH -->        it is written to a file in the page's folder
    <!-- exit: N -->           its last command exits with this code
    <!-- exact -->             (text) `$ command` and its exact output
    <!-- not run: REASON -->   it is not executed
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from helpers import warm_python

from ablatio.cli.main import main
from ablatio.config.compose import compose_run

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = ("reference", "compatibility.md")
LANGUAGES = ("bash", "python", "yaml")
BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*?) -->\n\n?)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `mark` is the comment in front of it, without `slow`."""

    page: str
    line: int
    language: str
    body: str
    mark: str
    slow: bool

    @property
    def runs(self) -> bool:
        return not self.mark.startswith("not run")

    @property
    def file(self) -> str:
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else ""

    @property
    def exit(self) -> int:
        return int(self.mark.removeprefix("exit: ")) if self.mark.startswith("exit: ") else 0

    @property
    def where(self) -> str:
        return f"docs/{self.page}:{self.line}"


def pages() -> list[str]:
    """Hand-written pages (not generated ones), by their paths in docs/."""
    found = (p.relative_to(DOCS) for p in sorted(DOCS.rglob("*.md")))
    return [p.as_posix() for p in found if p.parts[0] not in GENERATED]


def blocks(page: str) -> list[Block]:
    text = (DOCS / page).read_text(encoding="utf-8")
    made = []
    for found in BLOCK.finditer(text):
        marks = [m.strip() for m in (found["mark"] or "").split(";", 1)]
        slow = marks[0] == "slow"
        mark = "; ".join(marks[1:] if slow else marks)
        line = text[: found.start()].count("\n") + 1
        made.append(Block(page, line, found["language"], found["body"], mark, slow))
    return made


class Reader:
    """Executes the blocks of a page in `folder`, in order, as a reader would."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, {"__name__": "docs"}
        self.site: Path | None = None  # target of `pip install -e`

    def do(self, block: Block) -> None:
        if block.file:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.body, encoding="utf-8")
        elif block.language == "bash":
            self._shell(block)
        elif block.language == "python":
            exec(compile(block.body, block.where, "exec"), self.names)
        elif block.language == "yaml":
            compose_run(list(_overrides(yaml.safe_load(block.body))))
        elif block.language == "text" and block.mark == "exact":
            command, _, expected = block.body.removeprefix("$ ").partition("\n")
            _, printed = self.command(shlex.split(command))
            assert _lines(printed) == _lines(expected), f"{block.where}: `{command}` prints\n{printed}"

    def _shell(self, block: Block) -> None:
        lines = block.body.replace("\\\n", " ").splitlines()
        commands = [words for line in lines if (words := shlex.split(line, comments=True))]
        for words in commands:
            code, printed = self.command(words)
            expected = block.exit if words is commands[-1] else 0
            assert code == expected, f"{block.where}: `{shlex.join(words)}` exits with {code}\n{printed}"

    def command(self, words: list[str]) -> tuple[int, str]:
        """Run a command that the pages use; returns (exit code, output)."""
        if words[:3] == ["pip", "install", "-e"]:
            return self._install(self.folder / words[3]), ""
        if words[:3] == ["python", "-m", "pytest"] or words[0] == "pytest":
            return self._process("-m", "pytest", *words[1 if words[0] == "pytest" else 3 :])
        if words[0] == "ablatio" and self.site:
            return self._process("-m", "ablatio.cli", *words[1:])
        if words[0] == "ablatio":
            return _in_this_process(words[1:])
        if words[0] in ("mkdir", "cat", "ls", "cp"):
            run = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, check=False)
            return run.returncode, run.stdout + run.stderr
        raise AssertionError(f"command {words[0]!r} is not supported in docs; add it to Reader.command")

    def _install(self, source: Path) -> int:
        """Imitate an editable install: links to the packages, and the distribution's metadata."""
        project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        self.site = self.folder / ".site"
        info = self.site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        points = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
            for group, entries in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(points))
        for package in source.iterdir():
            link = self.site / package.name
            if (package / "__init__.py").exists() and not link.exists():
                link.symlink_to(package)
        return 0

    def _process(self, *words: str) -> tuple[int, str]:
        paths = [str(self.site)] if self.site else []
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
        run = warm_python.run(words, cwd=self.folder, env=environment)
        return run.returncode, run.stdout + run.stderr


def _in_this_process(words: list[str]) -> tuple[int, str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = main(words)
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
    return code, printed.getvalue()


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _overrides(node: Any, prefix: str = "") -> list[str]:
    """Nested YAML as overrides: `model: {d_model: 64}` becomes model.d_model=64."""
    if not isinstance(node, dict):
        value = "null" if node is None else str(node).lower() if isinstance(node, bool) else str(node)
        return [f"{prefix}={value.replace(' ', '')}"]
    return [text for k, v in node.items() for text in _overrides(v, f"{prefix}.{k}" if prefix else str(k))]
