"""One rank of a run that `gang` started: `python -m ablatio.training.rank_process FILE`, with the request on stdin.

The request is one line of JSON: the config as it is written to files, the run's folder, `resume`, `until`, whether
anything is shown, and the file of parts.  FILE receives {"code", "message"} if the rank fails.
"""

import json
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from ablatio.errors import AblatioError, EnvironmentFault, Preempted
from ablatio.storage.collector import collect_seldom
from ablatio.storage.early_stop import early_stops
from ablatio.storage.process import Stopped, end_with_parent
from ablatio.storage.streams import lasting_stdout, safe_streams


def main(failure: Path) -> int:
    """Train as one rank; returns the exit code."""
    collect_seldom()
    end_with_parent(signal.SIGKILL)  # also a rank that is stopped or hangs
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    with safe_streams():
        try:
            with early_stops():
                _train(request)
            return 0
        except AblatioError as error:
            code, message = error.exit_code, str(error)
        except Stopped as error:
            code, message = Preempted.exit_code, str(error)
        except OSError as error:
            code, message = EnvironmentFault.exit_code, f"{error.filename or ''}: {error.strerror or error}"
        except BaseException as error:
            code, message = _of_other(error)
        with suppress(OSError):  # that disk may be full, too: the exit code is left
            failure.write_text(json.dumps({"code": code, "message": message}), encoding="utf-8")
        return code


def _of_other(error: BaseException) -> tuple[int, str]:
    """Exit code and message of a lack of memory, or of an error of the code, whose traceback is printed."""
    rank = os.environ["RANK"]
    said = str(error).strip().split("\n")[0]
    # The name is that of torch on GPUs, which is not imported here; on CPUs it raises a RuntimeError with these words.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in said:
        return (
            EnvironmentFault.exit_code,
            f"rank {rank}: out of memory{said and f': {said}'}\n"
            "    try: a smaller train.batch_size with train.accumulate, checkpointing=full, or strategy=fsdp",
        )
    traceback.print_exc()
    return 1, f"rank {rank}: {type(error).__name__}: {error}"


def _end_with_supervisor() -> None:
    """End this process when the supervisor is gone, on systems where the kernel does not."""
    sys.stdin.read()
    os._exit(EnvironmentFault.exit_code)


def _train(request: dict[str, Any]) -> None:
    from rich.console import Console

    from ablatio.registry.parts_file import PartsFile, load
    from ablatio.training.run import train
    from ablatio.training.run_folder import resolved
    from ablatio.training.run_spec import RunSpec

    if request["parts"]:
        load(PartsFile(**request["parts"]))
    folder, public = Path(request["folder"]), request["config"]
    console = Console(quiet=request["quiet"] or os.environ["RANK"] != "0", file=lasting_stdout())
    spec = RunSpec(resolved(public, str(folder)), public)
    train(spec, folder, console, resume=request["resume"], until=request["until"])


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)  # at once: threads of a process group whose peers are lost would hold the process
