"""Progress of a training run: a bar with loss, tokens/s and time left; plain lines if there is no terminal."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

REFRESH_SECONDS = 0.2  # between updates of the bar
LINE_SECONDS = 15.0  # between plain lines
BAR, LEAST_BAR = 30, 8  # columns of the bar
CLOCK = 7  # columns of the time left


class RunProgress:
    """Progress display of a run; `update` may be called in every step and draws only when an update is due.

    total   optimizer steps of the run
    tokens  tokens(n) is the number of tokens in the first n steps
    done    steps done before, in a resumed run
    shown   False: display nothing
    """

    def __init__(
        self, console: Console, total: int, tokens: Callable[[int], int], done: int = 0, shown: bool = True
    ) -> None:
        self.console, self.total, self.tokens, self.shown = console, total, tokens, shown
        self.started, self.first = time.monotonic(), done
        self._next = self.started
        self.step, self._loss, self._score = done, "", ""
        self._column = BarColumn(bar_width=BAR)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            self._column,
            MofNCompleteColumn(),
            TextColumn("{task.fields[info]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            auto_refresh=False,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=total, completed=done, info="")

    def __enter__(self) -> "RunProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.draw()
        self._bar.stop()

    @property
    def rate(self) -> float:
        """Tokens per second since this process began training."""
        done = self.tokens(self.step) - self.tokens(self.first)
        return max(0, done) / max(1e-9, time.monotonic() - self.started)

    def due(self) -> bool:
        """True if it is time to draw; reading the loss before would wait for the device in vain."""
        return self.shown and time.monotonic() >= self._next

    def update(self, step: int, loss: float | None = None, score: str = "") -> None:
        """Record step, loss and a validation's formatted score; draw if due or if a score came."""
        self.step = step
        if loss is not None:
            self._loss = f"loss {loss:.3f} "
        if score:
            self._score = f"val {score} "
        if self.due() or score:
            self.draw()

    def describe(self, what: str) -> None:
        """Set the label of the bar, such as "validating"."""
        self._bar.update(self._task, description=what)
        self._bar.update(self._task, info=self._fitted(self._speed()))
        if self.console.is_terminal and self.shown:
            self._bar.refresh()

    def _speed(self) -> str:
        return f"{self.rate:,.0f} tokens/s" if self.step > self.first else ""

    def _fitted(self, speed: str) -> str:
        """Loss, score and speed in the columns that the terminal has; sets the width of the bar.

        Where they do not fit beside a bar, the unit of the score goes first, then the speed, then the score.
        """
        label = len(self._bar.tasks[0].description)
        room = self.console.width - label - (2 * len(str(self.total)) + 1) - CLOCK - 5  # four gaps, and the cursor
        plain = " ".join(self._score.split()[:2]) + " " if self._score else ""
        forms = [(self._score, speed), (plain, speed), (plain, ""), ("", "")]
        texts = [f"{self._loss}{score}{rate}".rstrip() for score, rate in forms]
        text = next((t for t in texts if len(t) + LEAST_BAR <= room), texts[-1])
        self._column.bar_width = max(1, min(BAR, room - len(text)))
        return text

    def draw(self) -> None:
        """Draw the bar, or print a line if there is no terminal."""
        speed = self._speed()
        info = f"{self._loss}{self._score}{speed}".rstrip()
        if not self.shown:
            return
        if self.console.is_terminal:
            self._next = time.monotonic() + REFRESH_SECONDS
            self._bar.update(self._task, completed=self.step, info=self._fitted(speed))
            self._bar.refresh()
        else:
            self._next = time.monotonic() + LINE_SECONDS
            left = (self.tokens(self.total) - self.tokens(self.step)) / max(1.0, self.rate)
            ending = f" {left:.0f} s left" if self.first < self.step < self.total else ""
            self.console.print(f"step {self.step}/{self.total} {info}{ending}", highlight=False)
