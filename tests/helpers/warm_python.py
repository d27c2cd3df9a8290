"""`python ARGUMENTS` in a process of its own that has imported torch and Lightning already, which takes seconds.

A server without threads imports these libraries, and nothing of ablatio; each command is a fork of it with the
arguments, environment, folder and streams of a new interpreter, and imports ablatio and its plugins anew.
"""

import atexit
import functools
import json
import multiprocessing
import multiprocessing.context
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from helpers.threads import one_thread_in_fork

OURS = ("ablatio", "ablatio_std", "helpers", "pytest", "_pytest")  # each process imports these anew
SCAN = {"input", "env", "capture_output", "text", "timeout", "check"}  # what the scan of plugins asks for
_PID = os.getpid()


def run(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input: str = "",
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Return what subprocess.run([sys.executable, *arguments]) returns, with captured text.

    arguments  -m MODULE, -c CODE, - (code from `input`) or FILE, and those of the program
    """
    return _finished(server(), arguments, env, cwd, input, timeout, path_of_python())


def scan(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """What the catalogue of parts asks of subprocess.run, in the process that imported this module; else the real one.

    A fork of it may not ask the server, which is no child of it.
    """
    if os.getpid() != _PID:
        return subprocess.run(command, **options)
    return run(command[1:], env=options["env"], input=options["input"], timeout=options["timeout"])


def _finished(
    context: Any,
    arguments: Sequence[str],
    env: Mapping[str, str] | None,
    cwd: Path | None,
    text: str,
    timeout: float,
    path: list[str],
    kept: frozenset[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").write_text(text, encoding="utf-8")
        place = (dict(os.environ if env is None else env), str(cwd or Path.cwd()), name, path, kept)
        process = context.Process(target=become, args=(list(arguments), *place))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([*arguments], timeout)
        out, err = (folder / stream for stream in ("out", "err"))
        assert process.exitcode is not None
        return subprocess.CompletedProcess([*arguments], process.exitcode, out.read_text(), err.read_text())


def server() -> multiprocessing.context.ForkServerContext:
    """The server, which begins with its first process; a Python process has one."""
    from ablatio.testing.two_ranks import PRELOADED  # imports torch

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@functools.cache
def path_of_python() -> list[str]:
    """sys.path of a new interpreter without PYTHONPATH."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import json, sys; print(json.dumps(sys.path[1:]))"
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def become(
    arguments: list[str],
    environment: dict[str, str],
    cwd: str,
    streams: str,
    path: list[str],
    kept: frozenset[str] | None = None,
) -> None:
    """Run the program as the main module, and end the process with its exit code.

    streams  folder of the files in, out and err; empty: the streams are those of the program already
    kept     modules that stay imported; None: all but those of ablatio and of the tests
    """
    for number, name in enumerate(("in", "out", "err") if streams else ()):
        file = os.open(Path(streams, name), os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 (open until the process ends)
        for number, mode in enumerate("rww")
    )
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    added = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = ["", *added, *path]
    if kept is None:
        kept = of_others()
    else:
        atexit._clear()  # else it would tidy up for the process that it is a fork of
    for name in sys.modules.keys() - kept:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_pytest")]
    subprocess.run = functools.partial(_run_in_fork, subprocess.run, kept, path)  # type: ignore[assignment]
    subprocess.Popen = _with_forked_pytests(subprocess.Popen, kept, path)  # type: ignore[misc]
    one_thread_in_fork()
    code = 0
    try:
        _execute(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def of_others() -> frozenset[str]:
    """The modules that are imported, without those of ablatio and of the tests."""
    return frozenset(name for name in sys.modules if name.partition(".")[0] not in OURS)


def _run_in_fork(
    real: Any, kept: frozenset[str], path: list[str], command: Any, **options: Any
) -> subprocess.CompletedProcess[str]:
    """subprocess.run; of Python code with an input, as the scan of plugins is, in a fork of this process."""
    if command[:2] != [sys.executable, "-c"] or options.keys() != SCAN:
        return real(command, **options)  # type: ignore[no-any-return]
    context = multiprocessing.get_context("fork")
    return _finished(context, command[1:], options["env"], None, options["input"], options["timeout"], path, kept)


class ForkedPytest:
    """The part of subprocess.Popen that `ablatio check` uses, for a pytest that is a fork of this process."""

    def __init__(
        self, arguments: list[str], cwd: str, env: Mapping[str, str], output: int, path: list[str], kept: frozenset[str]
    ) -> None:
        place = (arguments, dict(env), cwd, "", path, kept)
        self.process = multiprocessing.get_context("fork").Process(target=_become_with, args=(output, *place))
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> int | None:
        self.process.join()
        return self.returncode


def _become_with(output: int, *place: Any) -> None:
    for stream in (1, 2):
        os.dup2(output, stream)
    become(*place)


def _with_forked_pytests(real: type, kept: frozenset[str], path: list[str]) -> type:
    """subprocess.Popen; of a pytest whose output is a file, a ForkedPytest."""

    class Popen(real):  # type: ignore[misc]
        def __new__(cls, command: Any = (), **options: Any) -> Any:
            if list(command[:3]) != [sys.executable, "-m", "pytest"]:
                return super().__new__(cls)
            output = options["stdout"].fileno()
            return ForkedPytest(list(command[1:]), options["cwd"], options["env"], output, path, kept)

    return Popen


def _execute(arguments: list[str]) -> None:
    first, *rest = arguments
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first in ("-c", "-"):
        code, sys.argv = (rest[0], ["-c", *rest[1:]]) if first == "-c" else (sys.stdin.read(), arguments)
        main: Any = ModuleType("__main__")
        main.__builtins__ = __builtins__
        sys.modules["__main__"] = main
        exec(compile(code, "<string>" if first == "-c" else "<stdin>", "exec"), main.__dict__)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")
