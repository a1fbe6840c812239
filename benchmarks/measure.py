"""Runs a command on some cores and measures it: seconds, peak memory of its process tree, events that it wrote; and a
night of timeloom step by step."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

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


NIGHT_SAMPLE_SECONDS = 0.2
"""Of nights, where each sample asks the kernel to walk through the tree's pages."""
# Steps that hold what was made against what it was made of.
JUDGING = ("measure", "validate")
_STEP = re.compile(r"(\S+) ([a-z_]+): (\d+) run, (\d+) linked, (\d+) resumed, ([0-9.]+) s, ([0-9.]+) s of processors")


@dataclass(frozen=True)
class Sample:
    """A process tree at a moment.

    Attributes:
        time: seconds since 1970.
        pss: proportional set size: bytes resident, a page that several processes share counted in parts.
        read, written: bytes by calls so far, of ended processes too; what is mapped does not count.
    """

    time: float
    pss: int
    read: int
    written: int


@dataclass
class Step:
    """What a step of a night took. `peak_gib`, `read` and `written` are of the samples between its end and the end of
    the step before."""

    name: str
    ran: int
    linked: int
    seconds: float
    cpu_seconds: float
    peak_gib: float = 0.0
    read: int = 0
    written: int = 0


@dataclass
class NightCost:
    """What a night took, start-up and all processes included."""

    name: str
    seconds: float
    cpu_seconds: float
    others_cpu_seconds: float
    peak_gib: float
    read: int
    written: int
    steps: list[Step]
    outcome: dict[str, Any]

    @property
    def judging(self) -> float:
        """Processor seconds of the steps that judge."""
        return sum(step.cpu_seconds for step in self.steps if step.name in JUDGING)


def sample(pid: int) -> Sample:
    """A process and all below it."""
    pss = read = written = 0
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        tree = []
    for member in tree:
        try:
            folder = Path("/proc") / str(member.pid)
            pss += _number(folder / "smaps_rollup", "Pss:") * 1024
            read += _number(folder / "io", "rchar:")
            written += _number(folder / "io", "wchar:")
        except (OSError, psutil.NoSuchProcess):
            continue
    return Sample(time.time(), pss, read, written)


def _number(path: Path, key: str) -> int:
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    return 0


def night(name: str, arguments: Sequence[str], root: Path, *, good: Sequence[int] = (0, 2)) -> NightCost:
    """Runs `timeloom ARGUMENTS --direct --json`, a night in `root`, and measures it step by step.

    Raises:
        SystemExit: it ended with a code that is not among the `good` ones.
    """
    logs = set((root / "logs").glob("*.log"))
    cpu_before, machine_before, start = _cpu_seconds(), _machine_cpu_seconds(), time.time()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments, "--direct", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    samples: list[Sample] = []

    def watch() -> None:
        while process.poll() is None:
            began = time.monotonic()
            samples.append(sample(process.pid))
            # On a busy machine a look at the tree takes longer; it must not be a large part of the work.
            time.sleep(max(NIGHT_SAMPLE_SECONDS, 20 * (time.monotonic() - began)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    said, _ = process.communicate()
    seconds = time.time() - start
    watcher.join()
    if process.returncode not in good:
        raise SystemExit(f"{name}: the night ended with {process.returncode}")
    spent = _cpu_seconds() - cpu_before
    cost = NightCost(
        name=name,
        seconds=seconds,
        cpu_seconds=spent,
        others_cpu_seconds=max(0.0, _machine_cpu_seconds() - machine_before - spent),
        peak_gib=max((each.pss for each in samples), default=0) / 2**30,
        read=max((each.read for each in samples), default=0),
        written=max((each.written for each in samples), default=0),
        steps=[],
        outcome=json.loads(said.splitlines()[-1]),
    )
    (log,) = set((root / "logs").glob("*.log")) - logs
    cost.steps = _steps(log.read_text(encoding="utf-8"), samples, start)
    if [step.name for step in cost.steps] != [step["step"] for step in cost.outcome["steps"]]:
        raise SystemExit(f"{name}: the run's log says nothing of the time of its steps")
    return cost


def _steps(log: str, samples: Sequence[Sample], start: float) -> list[Step]:
    steps = []
    before = Sample(start, 0, 0, 0)
    for line in log.splitlines():
        if (found := _STEP.fullmatch(line)) is None:
            continue
        end = datetime.fromisoformat(found[1]).timestamp()
        within = [each for each in samples if before.time < each.time <= end]
        last = within[-1] if within else before
        steps.append(
            Step(
                name=found[2],
                ran=int(found[3]),
                linked=int(found[4]),
                seconds=float(found[6]),
                cpu_seconds=float(found[7]),
                peak_gib=max((each.pss for each in within), default=0) / 2**30,
                read=max(0, last.read - before.read),
                written=max(0, last.written - before.written),
            )
        )
        before = Sample(end, 0, max(last.read, before.read), max(last.written, before.written))
    return steps


def show_night(cost: NightCost) -> None:
    """A night's steps as a table. A peak of 0.00 was too short to be seen."""
    print(f"\n{cost.name}: {cost.seconds:.1f} s, {cost.cpu_seconds:.1f} s of processors", end="")
    print(f" (others took {cost.others_cpu_seconds:.0f} s)" if cost.others_cpu_seconds > 0.1 * cost.seconds else "")
    headings = f"{'step':<12} {'run':>6} {'linked':>7} {'wall s':>8} {'CPU s':>8} {'peak GiB':>9} {'read MB':>9}"
    print(f"{headings} {'written MB':>11}")
    rest = Step(
        "start-up",
        0,
        0,
        cost.seconds - sum(step.seconds for step in cost.steps),
        cost.cpu_seconds - sum(step.cpu_seconds for step in cost.steps),
    )
    total = Step("all", 0, 0, cost.seconds, cost.cpu_seconds, cost.peak_gib, cost.read, cost.written)
    for step in (*cost.steps, rest, total):
        print(
            f"{step.name:<12} {step.ran:>6} {step.linked:>7} {step.seconds:>8.2f} {step.cpu_seconds:>8.2f} "
            f"{step.peak_gib:>9.2f} {step.read / 1e6:>9.1f} {step.written / 1e6:>11.1f}"
        )
