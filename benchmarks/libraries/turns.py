"""Times of several readers, measured in turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

Work = Callable[[], object]
Ratios = dict[str, Any]


def seconds(work: Work) -> float:
    """Seconds of the clock or of the process, whichever are fewer: what else the machine does then matters less."""
    clock, process = time.perf_counter(), time.process_time()
    work()
    return min(time.perf_counter() - clock, time.process_time() - process)


def in_turns(works: Mapping[Any, Work], repeats: int) -> dict[Any, float]:
    """Median seconds of each, after one run that is not counted: see `seconds`."""
    measured: dict[Any, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            took = seconds(work)
            if repeat:
                measured[name].append(took)
    return {name: statistics.median(taken) for name, taken in measured.items()}


def versions(*names: str) -> str:
    return ", ".join(f"{name} {version(name)}" for name in names)
