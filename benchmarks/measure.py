"""Runs a command on some cores and measures it: seconds, peak memory of its process tree, events that it wrote."""

import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq

SAMPLE_SECONDS = 0.05
SPARE_BYTES = 3 << 29
"""Memory of the machine that a run may not take: below it the run is ended, before the machine ends something else."""


@dataclass
class Result:
    """What a run cost and gave; `failure` is empty where it ended well.

    `cpu_seconds` are user and system time of every process of the tree; `others_cpu_seconds` what everything else on
    the machine took meanwhile, time stolen by its host included: wall seconds are worth little where that is large.
    """

    seconds: float
    cpu_seconds: float = 0.0
    peak_gib: float = 0.0
    events: int = 0
    columns: list[str] = field(default_factory=list)
    failure: str = ""
    others_cpu_seconds: float = 0.0
    reused: bool = False

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds

    @property
    def disturbed(self) -> bool:
        """Whether others took more than a tenth of a core."""
        return self.others_cpu_seconds > 0.1 * self.seconds


def warm(raw: Path) -> None:
    """Reads every raw file once and lets earlier writes reach the disk, so that every run starts from the same."""
    for path in raw.rglob("*.gz"):
        with path.open("rb") as stream:
            while stream.read(1 << 24):
                pass
    os.sync()


def resident(pid: int) -> int:
    """Bytes resident in a process and all below it, each counted whole."""
    total = 0
    try:
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for member in tree:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


@contextmanager
def work_folder(asked: Path | None) -> Iterator[Path]:
    """The folder that was asked for, which stays, or one that is gone in the end."""
    if asked is not None:
        yield asked.resolve()
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def count(output: Path) -> tuple[int, list[str]]:
    """Rows and columns of the Parquet files below `output/data`."""
    rows = 0
    columns: dict[str, None] = {}
    for path in sorted((output / "data").rglob("*.parquet")):
        with pq.ParquetFile(path) as file:
            rows += file.metadata.num_rows
            columns.update(dict.fromkeys(file.schema_arrow.names))
    return rows, list(columns)


def run(
    command: Sequence[str],
    output: Path,
    cores: int,
    ceiling: float,
    *,
    environment: Mapping[str, str] | None = None,
    good: Sequence[int] = (0,),
) -> Result:
    """Runs `command` on the first `cores` cores that this process may use, for at most `ceiling` seconds.

    It has failed where its exit code is not among the `good` ones or no event lies in `output/data` afterwards.
    """
    allowed = set(sorted(os.sched_getaffinity(0))[:cores])
    log = output.parent / "log.txt"
    peak = 0
    why = ""
    before, machine_before = _cpu_seconds(), _machine_cpu_seconds()
    with log.open("wb") as stream:
        start = time.monotonic()
        process = subprocess.Popen(
            list(command),
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )

        def watch() -> None:
            nonlocal peak, why
            while process.poll() is None:
                peak = max(peak, resident(process.pid))
                if psutil.virtual_memory().available < SPARE_BYTES:
                    why = "out of memory"
                elif time.monotonic() - start > ceiling:
                    why = f"not done in {ceiling:g} s"
                if why:
                    os.killpg(process.pid, signal.SIGKILL)
                    return
                time.sleep(SAMPLE_SECONDS)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C and the like: a session of its own would run on
            os.killpg(process.pid, signal.SIGKILL)
            raise
        seconds = time.monotonic() - start
        watcher.join()
    spent = _cpu_seconds() - before
    others = max(0.0, _machine_cpu_seconds() - machine_before - spent)
    result = Result(round(seconds, 3), round(spent, 2), round(peak / 2**30, 4), failure=why)
    result.others_cpu_seconds = round(others, 2)
    if not why and code in good:
        result.events, result.columns = count(output)
    if not why and not result.events:
        result.failure = f"ended with {code}: {_last_line(log)}"
    return result


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _machine_cpu_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.irq + times.softirq + times.steal)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:160] if lines else "it said nothing"
