"""Worker processes of this machine: they ignore Ctrl-C and end with the run.

This module imports nothing heavy, so that workers load their libraries while the process that starts them loads
its libraries.
"""

import ctypes
import gc
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from multiprocessing import get_context, parent_process
from multiprocessing.util import Finalize
from threading import Thread, current_thread, main_thread

# Memory that a block needed is kept for the next one: giving it back and asking for it again costs a tenth of a
# conversion. By the numbers that malloc.h gives these settings.
_KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30), "MALLOC_TRIM_THRESHOLD_": (-1, 256 << 20)}
# One thread a process: the processes are the parallelism.
_ONE_THREAD = {"POLARS_MAX_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
ENVIRONMENT = _ONE_THREAD | {name: str(value) for name, (_, value) in _KEPT_MEMORY.items()}


def start_pool(number: int, modules: Sequence[str] = (), *, at_once: bool = False) -> ProcessPoolExecutor:
    """Processes that run tasks; they end when this process does, however it ends.

    Args:
        modules: what they import before their first task.
        at_once: start them now, not with the first task.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    pool = ProcessPoolExecutor(number, get_context("spawn"), _begin, (tuple(modules),))
    if at_once:
        with quietly():
            for _ in range(number):
                pool.submit(_nothing)
    return pool


def end_workers(pool: ProcessPoolExecutor) -> None:
    """Ends the processes at once, whatever they do: files of theirs are whole or absent."""
    for process in list((pool._processes or {}).values()):
        process.kill()


@contextmanager
def quietly() -> Iterator[None]:
    """Workers that are started here do not hear Ctrl-C, and do not import the program that starts them."""
    with _interrupts_ignored(), _without_main_module():
        yield


def keep_memory() -> None:
    """What a worker's environment says of its memory, for this process, where the C library has such settings."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        for number, value in _KEPT_MEMORY.values():
            mallopt(number, value)


@contextmanager
def uncollected() -> Iterator[None]:
    """What is imported here stays: looking through it for garbage is a fifth of the time that it takes."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def leave_out_pandas() -> None:
    """Tells Arrow that there is no pandas: it looks for it when it first exchanges numbers with numpy, for a fifth of a
    second.

    What asks for pandas itself gets it afterwards.
    """
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pyarrow, numpy = importlib.import_module("pyarrow"), importlib.import_module("numpy")
        pyarrow.array(numpy.zeros(1)).to_numpy()
    finally:
        sys.meta_path.remove(finder)


class _NoPandas(MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name, name=name)


def _nothing() -> None:
    """The first task of a worker that is started before there are any."""


def _begin(modules: Sequence[str]) -> None:
    _end_with_parent()
    with uncollected():
        for module in modules:
            importlib.import_module(module)
        if modules:
            leave_out_pandas()


def _end_with_parent() -> None:
    """Ends this worker when the run is killed: a pool's workers would wait for tasks for ever, and keep writing."""

    def watch() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()
    # What a worker made is on disk and its record too: taking its modules apart would only cost time.
    Finalize(None, os._exit, args=(0,), exitpriority=-100)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Workers that are started inside this block ignore Ctrl-C: the run handles it, and they end with the run."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Workers that are started here do not import the program that started them, such as the command and what it draws
    with: what they run is named by its module."""
    main = sys.modules["__main__"]
    kept = {name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)
