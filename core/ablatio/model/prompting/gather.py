"""Programs for several questions at the same time: their calls of the model are put together in batches.

Each program runs in a thread of its own and waits at each call until all others wait, too, or have ended.  Then the
calls of one sort are made as one, in the order of the questions, by the thread that started them all.  So the batches,
and with them the random numbers, do not depend on the timing of the threads.
"""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ablatio.model.prompting.types import Completion, TextModel, Usage

T = TypeVar("T")
Q = TypeVar("Q")


@dataclass(slots=True)
class Call:
    """A call that waits: the method, its lists (one entry for each text), its settings; later the result or error."""

    method: str
    lists: tuple[Sequence[Any], ...]
    settings: dict[str, Any]
    result: Any = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Waiting:
    """The TextModel of one program: it hands its calls over and waits for their results."""

    def __init__(self, llm: TextModel, together: "Together", number: int) -> None:
        self._llm, self._together, self._number = llm, together, number

    @property
    def usage(self) -> Usage:
        """Calls and tokens of the model so far, summed over all programs."""
        return self._llm.usage

    def complete(self, prompts: Sequence[str], **settings: Any) -> list[list[Completion]]:
        """As of the model."""
        found: list[list[Completion]] = self._call("complete", (prompts,), settings)
        return found

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> NDArray[np.float64]:
        """As of the model."""
        return np.array(self._call("score", (prompts, continuations), {}), dtype=np.float64)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """As of the model."""
        return np.array(self._call("embed", (texts,), {}), dtype=np.float64)

    def token_candidates(self, prompts: Sequence[str], trigger: str, answers: Sequence[str], k: int) -> list[list[str]]:
        """As of the model; never put together with another call."""
        settings = {"prompts": prompts, "trigger": trigger, "answers": answers, "k": k}
        found: list[list[str]] = self._call("token_candidates", (), settings)
        return found

    def random(self, name: str) -> random.Random:
        """As of the model."""
        return self._llm.random(name)

    def _call(self, method: str, lists: tuple[Sequence[Any], ...], settings: dict[str, Any]) -> Any:
        call = Call(method, lists, settings)
        self._together.wait(self._number, call)
        if call.error is not None:
            raise call.error
        return call.result


class Together:
    """The programs that run, and the calls that they wait for."""

    def __init__(self, count: int) -> None:
        self.calls: dict[int, Call] = {}
        self.running = count
        self.changed = threading.Condition()

    def wait(self, number: int, call: Call) -> None:
        """Hand over a call of a program and wait for its result."""
        with self.changed:
            self.calls[number] = call
            self.changed.notify()
        call.done.wait()

    def ended(self) -> None:
        """Count a program as ended."""
        with self.changed:
            self.running -= 1
            self.changed.notify()

    def all_waiting(self) -> list[Call]:
        """Wait until every running program waits for a call; return the calls in the order of the programs."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.calls) >= self.running)
            found = [self.calls[number] for number in sorted(self.calls)]
            self.calls = {}
        return found


def run_together(llm: TextModel, program: Callable[[TextModel, Q], T], questions: Sequence[Q]) -> list[T]:
    """Return program(model, question) of each question; raise the error of the first program that fails."""
    if len(questions) < 2:
        return [program(llm, question) for question in questions]
    together, results, errors = Together(len(questions)), dict[int, T](), dict[int, BaseException]()

    def work(number: int) -> None:
        try:
            results[number] = program(Waiting(llm, together, number), questions[number])
        except BaseException as error:  # handed to the thread that waits for all
            errors[number] = error
        finally:
            together.ended()

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(questions))]
    for thread in threads:
        thread.start()
    while calls := together.all_waiting():
        _make(llm, calls)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(questions))]


def _make(llm: TextModel, calls: Sequence[Call]) -> None:
    """Make the calls, those of one method with equal settings as one, and give each its part of the result."""
    groups: dict[str, list[Call]] = {}
    for number, call in enumerate(calls):
        key = f"{call.method}/{sorted(call.settings.items())}" if call.lists else f"alone/{number}"
        groups.setdefault(key, []).append(call)
    for group in groups.values():
        joined = [[x for call in group for x in call.lists[i]] for i in range(len(group[0].lists))]
        try:
            result: Any = getattr(llm, group[0].method)(*joined, **group[0].settings)
        except BaseException as error:  # raised in the programs that made the calls
            for call in group:
                call.error = error
                call.done.set()
            continue
        start = 0
        for call in group:
            end = start + (len(call.lists[0]) if call.lists else 0)
            call.result = result[start:end] if call.lists else result
            start = end
            call.done.set()
