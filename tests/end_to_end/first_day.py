"""A stranger's first day, typed: twenty parts and twenty questions, in a new environment, from the wheel.

    python tests/end_to_end/first_day.py [--python PYTHON] [--keep FOLDER] [--results FILE]

The wheels are built with this interpreter and installed without the network into a new venv of PYTHON, which sees the
packages of PYTHON's own environment: torch and the others of pyproject.toml have to be there.  At first it sees those
alone that the wheel requires (what a user has who installed no extra), then all.  Each step types one command as a user
would and asserts its exit code and the sentences that it shows.  Everything that fails is told at the end.  It takes
some minutes, so `make test` does not collect it; test_first_day.py runs it in `make test-all`.

A day that was interrupted goes on in its FOLDER, with the present wheel; steps that passed are not typed again.  FILE
keeps what passed on which Python, and the commits whose wheels were installed (tests/results/first_day.json).
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE / "stranger"))

from mistakes import BEHAVIOR, SIGNATURES, Mistake  # noqa: E402
from more_questions import MORE, WITHOUT_EXTRAS  # noqa: E402
from questions import QUESTIONS, YAML, Step  # noqa: E402

PARTS = 20
LINES = 120  # of `ablatio check` on all of them, however many are broken
# Prints the folders and modules of the packages that the wheel requires, without those of its extras.
REQUIRED = """
from importlib.metadata import distribution
from packaging.requirements import Requirement
names, found = ["ablatio"], {}
while names:
    known = distribution(names.pop())
    found[known.metadata["Name"]] = known
    for text in known.requires or []:
        needed = Requirement(text)
        if needed.name not in found and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            names.append(needed.name)
del found["ablatio"]
for known in found.values():
    for top in {file.parts[0] for file in known.files} - {"..", "__pycache__"}:
        print(known.locate_file(top))
"""
VERSIONS = "import platform, torch; print(platform.python_version(), torch.__version__)"


class Failure(Exception):
    """A step ended otherwise than a user was promised."""


class Day:
    """The new environment, the folder in which commands are typed, and what passed and failed."""

    def __init__(self, python: str, folder: Path) -> None:
        self.folder, self.venv, self.notes = folder / "work", folder / "venv", folder / "day.json"
        self.failures: list[str] = []
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        self.outer = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        # {step: its seconds, None if it failed}
        self.record: dict[str, Any] = {"steps": {}}
        if self.notes.exists():
            self.record = json.loads(self.notes.read_text(encoding="utf-8"))
            self._pip("uninstall", "-y", "-q", "stranger")  # in the way of `parts=parts.py`
        else:
            self.folder.mkdir(parents=True)
            subprocess.run([python, "-m", "venv", "--without-pip", str(self.venv)], check=True)
            self.show_packages(extras=True)
            versions = subprocess.run([python, "-c", VERSIONS], check=True, capture_output=True, text=True).stdout
            self.record |= dict(zip(("python", "torch"), versions.split(), strict=True)) | {"commits": []}
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
        if commit not in self.record["commits"] or not commit.isalnum():
            self.install(ROOT)
            self.record["commits"] = list(dict.fromkeys((*self.record["commits"], commit)))

    def show_packages(self, *, extras: bool) -> None:
        """Let the environment see the packages of the outer one, or only those that the wheel requires."""
        (site,) = (self.venv / "lib").glob("python*/site-packages")
        # Behind the wheel on the path, so that an editable install of ablatio out there is not what is tried.
        (site / "outer.pth").write_text(f"{self.outer}\n")
        if extras:
            return
        required = self.venv.parent / "required"
        if not required.exists():
            command = [str(self.venv / "bin" / "python"), "-c", REQUIRED]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            required.mkdir()
            for path in {Path(text) for text in found}:
                (required / path.name).symlink_to(path)
        (site / "outer.pth").write_text(f"{required}\n")

    def install(self, source: Path) -> None:
        """Build the wheel of `source` and install it."""
        wheels = self.venv.parent / f"wheel-{source.name}"
        build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(source)]
        _run(build)
        made = map(str, wheels.glob("*.whl"))
        self._pip("install", "--no-deps", "--no-index", "--force-reinstall", "-q", *made)

    def _pip(self, *words: str) -> None:
        _run(["-m", "pip", "--python", str(self.venv / "bin" / "python"), *words])

    def type(self, words: tuple[str, ...], program: tuple[str, ...] = ("-m", "ablatio")) -> tuple[int, str]:
        """(exit code, everything shown) of one command."""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment |= {"ABLATIO_CACHE": str(self.venv.parent / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        command = [str(self.venv / "bin" / "python"), *program, *words]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, done.stdout

    def step(self, what: str, step: Step, limits: tuple[int, int] | None = None) -> None:
        """Type a command, compare, and report on one line.

        limits  (fewest parts, lines that are too many) of the table that is shown
        """
        if self.record["steps"].get(what) is not None:
            return
        for word in step.words:  # of a step that was interrupted
            if word.startswith("name="):
                shutil.rmtree(self.folder / "runs" / word.removeprefix("name="), ignore_errors=True)
        began = time.monotonic()
        code, shown = self.type(step.words, step.program)
        seconds, flat = time.monotonic() - began, " ".join(shown.split())
        why = [f"exit code {code}, expected {step.code}"] if code != step.code else []
        why += [f"not shown: {text}" for text in step.shows if " ".join(text.split()) not in flat]
        why += [f"not made: {path}" for path in step.makes if not (self.folder / path).exists()]
        why += [f"left: {path}" for path in step.leaves_out if (self.folder / path).exists()]
        if limits:
            lines, named = len(shown.splitlines()), sum("=" in line.split(" ")[0] for line in shown.splitlines())
            if named < limits[0] or lines >= limits[1]:
                why.append(f"{lines} lines for {named} parts; expected fewer than {limits[1]} for {limits[0]}")
        print(f"{'FAILED' if why else 'ok':7}{seconds:5.1f} s  {what}", flush=True)
        self.record["steps"][what] = None if why else round(seconds, 1)
        self.notes.write_text(json.dumps(self.record), encoding="utf-8")
        if why:
            self.failures.append(f"{what}\n$ {shlex.join(step.words)}\n{chr(10).join(why)}\n{shown[-3000:]}")

    def write_results(self, file: Path) -> None:
        """Keep what passed and failed beside the results of other Pythons."""
        told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        every = every_step()
        steps = {what: seconds for what, seconds in self.record["steps"].items() if what in every}
        told[self.record["python"]] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commits": self.record["commits"],
            "torch": self.record["torch"],
            "steps": len(every),
            "passed": sum(seconds is not None for seconds in steps.values()),
            "failed": [what for what, seconds in steps.items() if seconds is None],
            "seconds": steps,
        }
        file.write_text(json.dumps(dict(sorted(told.items())), indent=1) + "\n", encoding="utf-8")


def _run(words: list[str]) -> None:
    """Run a module of this interpreter."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"{shlex.join(words)}\n{done.stdout}{done.stderr}")


def with_mistakes(mistakes: tuple[Mistake, ...]) -> str:
    """All twenty parts as one file, with these mistakes in them."""
    folder = HERE / "stranger" / "stranger"
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))}
    for mistake in mistakes:
        if texts[mistake.module].count(mistake.right) != 1:
            raise Failure(f"{mistake.part}: {mistake.right!r} has to stand once in {mistake.module}.py")
        texts[mistake.module] = texts[mistake.module].replace(mistake.right, mistake.wrong)
    return "\n\n".join(text for _, text in sorted(texts.items()))


def checks() -> Iterator[tuple[str, Step]]:
    """`check` on ten parts that cannot be read, on twenty right ones, and on ten that break a promise."""
    sentences = tuple(m.sentence for m in SIGNATURES)
    named = tuple(f"{m.part} (" for m in SIGNATURES)
    yield "10 wrong signatures, told together", Step(("check", "parts=signatures.py"), (*named, *sentences), 2)
    right = ("21 of 21 keep their contract",)
    yield "20 parts written as a file", Step(("check", "parts=parts.py"), right)
    broken = ("11 of 21 keep their contract", *(m.sentence for m in BEHAVIOR))
    yield "10 parts that break a promise", Step(("check", "parts=behavior.py"), broken, 2)
    yield "20 parts installed as a package", Step(("check", "stranger"), right)


def try_parts(day: Day) -> None:
    """Type the checks."""
    for what, step in checks():
        if "stranger" in step.words:  # installed last: a file cannot register the same names
            day.install(HERE / "stranger")
        day.step(what, step, (PARTS, LINES) if any("of 21 keep" in text for text in step.shows) else None)


def questions() -> Iterator[tuple[str, Step]]:
    """All questions that are typed with every extra, numbered."""
    for number, (what, step) in enumerate((*QUESTIONS, *MORE), 1):
        yield f"{number:2}. {what}", step


def every_step() -> dict[str, Step]:
    """All steps of a day by name."""
    return {**dict(WITHOUT_EXTRAS), **dict(questions()), **dict(checks())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the new environment")
    parser.add_argument("--keep", type=Path, help="a folder that stays, in which an interrupted day goes on")
    parser.add_argument("--results", type=Path, help="a JSON file that keeps what passed on which Python")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        day = Day(options.python, options.keep or Path(temporary) / "day")
        (day.folder / "my.yaml").write_text(YAML, encoding="utf-8")
        for name, mistakes in (("parts", ()), ("signatures", SIGNATURES), ("behavior", BEHAVIOR)):
            (day.folder / f"{name}.py").write_text(with_mistakes(mistakes), encoding="utf-8")
        try:
            day.show_packages(extras=False)
            for what, step in WITHOUT_EXTRAS:
                day.step(what, step)
            day.show_packages(extras=True)
            for what, step in questions():
                day.step(what, step)
            try_parts(day)
        finally:  # of an interrupted day, too
            if options.results:
                day.write_results(options.results)
        for failure in day.failures:
            print(f"\n{'-' * 80}\n{failure}")
        print(f"\n{len(day.failures)} failures")
        return min(len(day.failures), 1)


if __name__ == "__main__":
    sys.exit(main())
