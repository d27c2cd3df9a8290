"""Loggers of a run: metrics.csv, and those that its config names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ablatio.errors import AblatioError, EnvironmentFault
from ablatio.registry import kinds
from ablatio.registry.kinds import Logger
from ablatio.training.metrics_csv import MetricsFile, numbers


def make_loggers(config: Mapping[str, Any], public: Mapping[str, Any], folder: Path) -> dict[str, Logger]:
    """Make the config's loggers except metrics.csv; nothing is written yet.

    config  of the run
    public  the config as it may be written down, with values from the environment left open

    Raises UserError if a logger's library is not installed.
    """
    options = config.get("logger") or {}
    wanted = {n: knobs for n, knobs in options.items() if not kinds.loggers[n].facts["record"]}
    return {n: kinds.loggers.build(n, knobs, folder=folder, config=public) for n, knobs in wanted.items()}


class Logs:
    """Writes each row to metrics.csv, which reports and `resume` read, and then the same numbers to the other loggers.

    A logger that fails during the run is dropped with a message on the console: a failed copy of the metrics must not
    end a run of hours.
    """

    def __init__(self, file: MetricsFile, loggers: Mapping[str, Logger], console: Console) -> None:
        self.file, self.loggers, self.console = file, dict(loggers), console

    def start(self, after_step: int | None = None) -> None:
        """Begin new logs, or continue the old ones without the rows later than `after_step`.

        Raises EnvironmentFault if a logger cannot start.
        """
        self.file.start(after_step)
        rows = [numbers(row) for row in self.file.read()] if self.loggers else []
        for name, logger in self.loggers.items():
            try:
                logger.start(rows)
            except AblatioError:
                raise
            except Exception as error:
                raise EnvironmentFault(
                    f"logger={name} cannot start: {type(error).__name__}: {error}\n    try: without it, logger=csv"
                ) from error

    def write(self, row: Mapping[str, float]) -> None:
        """Log one row of metrics, with `step` and `tokens`."""
        written = self.file.write(row)
        self._each(lambda logger: logger.log(written))

    def finish(self, status: str) -> None:
        """End all logs; status: done, preempted, diverged or failed."""
        self._each(lambda logger: logger.finish(status))

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self.loggers.items()):
            try:
                call(logger)
            except Exception as error:
                del self.loggers[name]
                reason = escape(f"{type(error).__name__}: {error}")
                self.console.print(f"[yellow]logger={name} failed and is left out:[/] {reason}", highlight=False)


class NoLogs(Logs):
    """Logs of a rank that writes no files."""

    def __init__(self) -> None:
        self.loggers = {}

    def start(self, after_step: int | None = None) -> None:
        """Do nothing."""

    def write(self, row: Mapping[str, float]) -> None:
        """Do nothing."""
