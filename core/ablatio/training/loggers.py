"""What a run logs to: metrics.csv, and the loggers that its config names."""

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
    """The loggers of a config but metrics.csv; UserError where one lacks its library.  Nothing is written yet."""
    options = config.get("logger") or {}
    wanted = {n: knobs for n, knobs in options.items() if not kinds.loggers[n].facts["record"]}
    return {n: kinds.loggers.build(n, knobs, folder=folder, config=public) for n, knobs in wanted.items()}


class Logs:
    """metrics.csv, which reports and `resume` read, and then the others, with the very numbers that stand in it.

    A logger that breaks during the run is left out from there on, and the console says so: a run of hours does not end
    for the copy of a number.
    """

    def __init__(self, file: MetricsFile, loggers: Mapping[str, Logger], console: Console) -> None:
        self.file, self.loggers, self.console = file, dict(loggers), console

    def start(self, after_step: int | None = None) -> None:
        """New logs, or the old ones without the rows later than `after_step`."""
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
        written = self.file.write(row)
        self._each(lambda logger: logger.log(written))

    def finish(self, status: str) -> None:
        self._each(lambda logger: logger.finish(status))

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self.loggers.items()):
            try:
                call(logger)
            except Exception as error:
                del self.loggers[name]
                said = escape(f"{type(error).__name__}: {error}")
                self.console.print(f"[yellow]logger={name} is left out from here on:[/] {said}", highlight=False)
