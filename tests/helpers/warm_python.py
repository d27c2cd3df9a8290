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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").write_text(input, encoding="utf-8")
        place = (dict(os.environ if env is None else env), str(cwd or Path.cwd()), name, path_of_python())
        process = server().Process(target=become, args=(list(arguments), *place))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
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


def become(arguments: list[str], environment: dict[str, str], cwd: str, streams: str, path: list[str]) -> None:
    """Run the program as the main module, and end the process with its exit code."""
    for number, name in enumerate(("in", "out", "err")):
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
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ablatio", "ablatio_std", "helpers")]:
        del sys.modules[name]
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
