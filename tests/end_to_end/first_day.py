"""A stranger's first day, typed: twenty parts and twenty questions, in a new environment, from the wheel.

    python tests/end_to_end/first_day.py [--python PYTHON] [--keep FOLDER]

The wheels are built with this interpreter and installed without the network into a new venv of PYTHON, which sees the
packages of PYTHON's own environment: torch and the others of pyproject.toml have to be there.  Each step types one
command as a user would and asserts its exit code and the sentences that it shows.  Everything that fails is told at the
end.  It takes some minutes, so `make test` does not collect it; test_first_day.py runs it in `make test-all`.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE / "stranger"))

from mistakes import BEHAVIOR, SIGNATURES, Mistake  # noqa: E402
from questions import QUESTIONS, YAML, Step  # noqa: E402

PARTS = 20
LINES = 120  # of `ablatio check` on all of them, however many are broken


class Failure(Exception):
    """A step ended otherwise than a user was promised."""


class Day:
    """The new environment, the folder in which commands are typed, and what went wrong."""

    def __init__(self, python: str, folder: Path) -> None:
        self.folder, self.venv = folder / "work", folder / "venv"
        self.folder.mkdir(parents=True)
        self.failures: list[str] = []
        self._make_venv(python)

    def _make_venv(self, python: str) -> None:
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        outer = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        subprocess.run([python, "-m", "venv", "--without-pip", str(self.venv)], check=True)
        (site,) = (self.venv / "lib").glob("python*/site-packages")
        # Behind the wheel on the path, so that an editable install of ablatio out there is not what is tried.
        (site / "outer.pth").write_text(f"{outer}\n")

    def install(self, source: Path) -> None:
        """Build the wheel of `source` and install it."""
        wheels = self.venv.parent / f"wheel-{source.name}"
        build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(source)]
        pip = ["-m", "pip", "--python", str(self.venv / "bin" / "python"), "install", "--no-deps", "--no-index", "-q"]
        for make in (lambda: build, lambda: [*pip, *map(str, wheels.glob("*.whl"))]):
            words = make()
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
            if done.returncode:
                raise Failure(f"{shlex.join(words)}\n{done.stdout}{done.stderr}")

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

    def step(self, what: str, step: Step) -> str:
        """Type a command, compare, report on one line, and return what was shown."""
        began = time.monotonic()
        code, shown = self.type(step.words, step.program)
        flat = " ".join(shown.split())
        missing = [s for s in step.shows if " ".join(s.split()) not in flat]
        left = [path for path in step.makes if not (self.folder / path).exists()]
        good = code == step.code and not missing and not left
        print(f"{'ok' if good else 'FAILED':7}{time.monotonic() - began:5.1f} s  {what}", flush=True)
        if not good:
            why = [f"exit code {code}, expected {step.code}"] if code != step.code else []
            why += [f"not shown: {text}" for text in missing] + [f"not made: {path}" for path in left]
            self.failures.append(f"{what}\n$ {shlex.join(step.words)}\n{chr(10).join(why)}\n{shown[-3000:]}")
        return shown


def with_mistakes(mistakes: tuple[Mistake, ...]) -> str:
    """All twenty parts as one file, with these mistakes in them."""
    folder = HERE / "stranger" / "stranger"
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))}
    for mistake in mistakes:
        if texts[mistake.module].count(mistake.right) != 1:
            raise Failure(f"{mistake.part}: {mistake.right!r} has to stand once in {mistake.module}.py")
        texts[mistake.module] = texts[mistake.module].replace(mistake.right, mistake.wrong)
    return "\n\n".join(text for _, text in sorted(texts.items()))


def try_parts(day: Day) -> None:
    """`check` on twenty right parts, on ten that cannot be read, and on ten that break a promise."""
    sentences = tuple(m.sentence for m in SIGNATURES)
    named = tuple(f"{m.part} (" for m in SIGNATURES)
    day.step("10 wrong signatures, told together", Step(("check", "parts=signatures.py"), (*named, *sentences), 2))
    checks = [
        ("20 parts written as a file", Step(("check", "parts=parts.py"), ("21 of 21 keep their contract",))),
        (
            "10 parts that break a promise",
            Step(("check", "parts=behavior.py"), ("11 of 21 keep their contract", *(m.sentence for m in BEHAVIOR)), 2),
        ),
        ("20 parts installed as a package", Step(("check", "stranger"), ("21 of 21 keep their contract",))),
    ]
    for what, step in checks:
        if "stranger" in step.words:  # installed last: a file cannot register the same names
            day.install(HERE / "stranger")
        shown = day.step(what, step)
        lines, named = len(shown.splitlines()), sum("=" in line.split(" ")[0] for line in shown.splitlines())
        if lines >= LINES or named < PARTS:
            day.failures.append(f"{what}: {lines} lines for {named} parts; expected fewer than {LINES} for {PARTS}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the new environment")
    parser.add_argument("--keep", type=Path, help="a new folder that stays, to look at what was made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        day = Day(options.python, options.keep or Path(temporary) / "day")
        day.install(ROOT)
        (day.folder / "my.yaml").write_text(YAML, encoding="utf-8")
        for name, mistakes in (("parts", ()), ("signatures", SIGNATURES), ("behavior", BEHAVIOR)):
            (day.folder / f"{name}.py").write_text(with_mistakes(mistakes), encoding="utf-8")
        for number, (what, step) in enumerate(QUESTIONS, 1):
            day.step(f"{number:2}. {what}", step)
        try_parts(day)
        for failure in day.failures:
            print(f"\n{'-' * 80}\n{failure}")
        print(f"\n{len(day.failures)} failures")
        return min(len(day.failures), 1)


if __name__ == "__main__":
    sys.exit(main())
