"""The engine of this machine: spawned processes."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from queue import SimpleQueue

from pipelines.engine.execute import execute
from pipelines.engine.task import Task, WorkerLostError
from pipelines.engine.workers import end_workers, quietly, start_pool


class LocalEngine:
    """Worker processes of this machine; this process can be one of them.

    Args:
        workers: number of processes; the machine's cores where None.
        in_this_process: this process is one of the workers. It then does nothing else, and a task that kills it ends
            the run.
        modules: the modules that the other workers import before their first task.
    """

    def __init__(
        self, workers: int | None = None, *, in_this_process: bool = False, modules: Sequence[str] = ()
    ) -> None:
        self.workers = workers or os.cpu_count() or 1
        self._in_this_process = in_this_process
        self._modules = modules
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            if kind is not None and not issubclass(kind, Exception):
                # The run was told to end: what its tasks have not finished is done again, and nobody waits for it.
                end_workers(self._pool)
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def start(self) -> None:
        """Starts the other processes ahead of the first tasks."""
        if self.workers > 1 and self._pool is None:
            self._pool = start_pool(self._others, self._modules, at_once=True)

    @property
    def _others(self) -> int:
        return self.workers - self._in_this_process

    def _executor(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = start_pool(self._others, self._modules)
        return self._pool

    def map(self, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
        """Executes tasks; a process that dies ends the stage with one line."""
        tasks = sorted(tasks, key=lambda task: -task.weight)
        if self.workers == 1 or len(tasks) == 1:
            for task in tasks:
                done(execute(task))
            return
        try:
            if self._in_this_process:
                _share(self._executor(), self._others, tasks, done)
                return
            with quietly():
                futures = [self._executor().submit(execute, task) for task in tasks]
            for future in as_completed(futures):
                done(future.result())
        except BrokenProcessPool as error:
            self._pool = None
            raise WorkerLostError(
                "a worker process died, perhaps for lack of memory", "run again with fewer workers; it resumes"
            ) from error


def _share(pool: ProcessPoolExecutor, others: int, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
    """Executes tasks, the first ones first, in a pool and in this process: whoever is free takes the next one."""
    waiting = deque(tasks)
    finished: SimpleQueue[Future[str]] = SimpleQueue()

    def take() -> Task | None:
        try:
            return waiting.popleft()
        except IndexError:
            return None

    def feed() -> None:
        if (task := take()) is not None:
            future = pool.submit(execute, task)
            future.add_done_callback(feed_again)
            future.add_done_callback(finished.put)

    def feed_again(_before: Future[str]) -> None:
        with suppress(RuntimeError):  # a broken or closed pool: what was in it says so
            feed()

    with quietly():
        for _ in range(others):
            feed()
    for _ in tasks:
        taken = take() if finished.empty() else None
        done(finished.get().result() if taken is None else execute(taken))
