"""What work costs: seconds of the clock and of processors, wherever a task ran.

Processors work for a stage in this process and in others, perhaps on other machines. Each process says with each of its
tasks what it has used since its task before, so that what it imports counts too and nothing counts twice.
"""

import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

# This process among all of a run: its number alone may be another process's on another machine.
PROCESS = uuid4().hex

_reported = 0.0


def processor_seconds() -> float:
    """Of this process, all of its threads, and of processes that it has started and that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def task_cost() -> dict[str, Any]:
    """For a task's record: this process, and the processor seconds that it has used since its task before."""
    global _reported
    before, _reported = _reported, processor_seconds()
    return {"process": PROCESS, "cpu_seconds": round(_reported - before, 4)}


def elsewhere(costs: Iterable[dict[str, Any] | None]) -> float:
    """Processor seconds of tasks that other processes ran; those of this one are measured as a whole."""
    return sum(float(cost["cpu_seconds"]) for cost in costs if cost and cost["process"] != PROCESS)


@dataclass
class Cost:
    """Seconds of the clock, and of all processors together."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds - other.seconds, self.cpu_seconds - other.cpu_seconds)

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s, {self.cpu_seconds:.2f} s of processors"

    def as_json(self) -> dict[str, float]:
        return {"seconds": round(self.seconds, 2), "cpu_seconds": round(self.cpu_seconds, 2)}


def used_here() -> Cost:
    """A reading of the clock and of this process's own: two of them, one taken from the other, are a cost."""
    return Cost(time.monotonic(), processor_seconds())
