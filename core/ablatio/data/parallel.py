"""Map a part's method over texts in worker processes or with Ray Data: same results, same order, bounded memory."""

import logging
import multiprocessing
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal

from ablatio.errors import EnvironmentFault

Engine = Literal["processes", "ray"]
_CHARACTERS = 1 << 18  # of a task: large against the cost of sending it, small against the memory
_PENDING = 4  # tasks per worker that are sent ahead
_RAY_TASKS = 256  # tasks that Ray Data gets at a time

log = logging.getLogger("ablatio")


def map_texts(
    method: Callable[[str], Any], texts: Iterable[str], workers: int = 0, engine: Engine = "processes"
) -> Iterator[Any]:
    """Yield method(text) for each text, in order.

    method   supports pickle, else it runs in this process; its results are plain values
    workers  number of processes; 0: this one.  With Ray, the number of tasks at a time; 0: as Ray decides
    engine   processes, or ray: Ray Data on the machines of its cluster, or on this one

    Raises EnvironmentFault if Ray is asked for and not installed.
    """
    if engine == "ray":
        yield from chain.from_iterable(_with_ray(method, _tasks(texts), workers))
    elif workers and _can_be_sent(method):
        yield from chain.from_iterable(_with_processes(method, _tasks(texts), workers))
    else:
        yield from map(method, texts)


def _tasks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in lists of about `_CHARACTERS` characters."""
    task: list[str] = []
    size = 0
    for text in texts:
        task.append(text)
        size += len(text) + 1
        if size >= _CHARACTERS:
            yield task
            task, size = [], 0
    if task:
        yield task


def _can_be_sent(method: Callable[[str], Any]) -> bool:
    """True if another process can receive the method; parts of a notebook cannot be sent."""
    try:
        ForkingPickler.dumps(method)
    except Exception as error:  # a part may raise anything when it is copied
        log.info("runs in one process, as it cannot be sent to others: %s", error)
        return False
    # A process that is spawned imports modules by name, and has another `__main__`.
    return type(getattr(method, "__self__", method)).__module__ != "__main__"


_method: Callable[[str], Any]  # of a worker process


def _receive(method: Callable[[str], Any]) -> None:
    global _method
    _method = method


def _work(task: list[str]) -> list[Any]:
    return [_method(text) for text in task]


def _with_processes(method: Callable[[str], Any], tasks: Iterator[list[str]], workers: int) -> Iterator[list[Any]]:
    # Not fork: the method may compute with torch, whose threads a copy lacks while their locks stay held.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_receive, initargs=(method,)) as pool:
        pending: deque[Future[list[Any]]] = deque()
        for task in tasks:
            pending.append(pool.submit(_work, task))
            # The oldest result is waited for, so that the order stays and texts do not pile up in memory.
            if len(pending) >= workers * _PENDING:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@dataclass(frozen=True, slots=True)
class _Found:
    """Results of a task: an object, which Ray Data does not take apart into columns."""

    values: list[Any]


def _with_ray(method: Callable[[str], Any], tasks: Iterator[list[str]], workers: int) -> Iterator[list[Any]]:
    """Windows of tasks as Ray datasets: one row per task, with its number, so that the order can be restored."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise EnvironmentFault(
            "trainer.data_engine=ray needs Ray Data, which is not installed\n    try: pip install 'ray[data]'"
        ) from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray Data warns about defaults of its own
        context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.print_on_execution_start = False, False

    # A closure, which Ray pickles by value: its workers need not have the part's module.
    def work(row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["number"], "found": _Found([method(text) for text in row["texts"]])}

    while window := [task for _, task in zip(range(_RAY_TASKS), tasks, strict=False)]:
        rows = ray.data.from_items([{"number": i, "texts": texts} for i, texts in enumerate(window)])
        # Ray Data gives blocks back as they are finished.
        done = rows.map(work, concurrency=workers or None).take_all()
        for row in sorted(done, key=lambda row: row["number"]):
            yield row["found"].values
