"""A Dask cluster of this machine: a scheduler and workers, each a process of its own, as on machines apart."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
_PATIENCE = 60.0
_WORKER = "from distributed.cli.dask_worker import main; main()"
# A worker whose Python has no timeloom: nothing of it can be found, wherever it is installed.
BARE = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("warehouse", "extractors", "embedders", "pipelines", "validation", "flows"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
{_WORKER}
"""


@dataclass
class DaskCluster:
    """A scheduler that listens on the loopback, and its workers.

    Attributes:
        options: what `--beam-option` is to say of it.
        workers: their processes.
    """

    address: str
    workers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def options(self) -> list[str]:
        return [f"--dask_client_address={self.address}", "--dask_connection_timeout=20"]


@contextmanager
def dask_cluster(
    folder: Path,
    *programs: str,
    environment: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[DaskCluster]:
    """Starts a scheduler and a worker for each of `programs`, two ordinary ones where there is none.

    Args:
        environment: what the workers' environments have besides.
        settings: Dask's own settings, for all of them.
    """
    every = {"PYTHONPATH": str(REPOSITORY), **(settings or {})}
    scheduler = ["-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    with ExitStack() as stack:
        _, address = stack.enter_context(_started(folder / "scheduler.log", scheduler, every, "Scheduler"))
        cluster = DaskCluster(address)
        worker = [address, "--no-nanny", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
        started = [
            stack.enter_context(
                _process(
                    folder / f"worker-{number}.log",
                    ["-c", program, *worker, "--local-directory", str(folder / f"worker-{number}")],
                    every | dict(environment or {}),
                )
            )
            for number, program in enumerate(programs or (_WORKER, _WORKER))
        ]
        for number, process in enumerate(started):
            _read(folder / f"worker-{number}.log", process, r"Registered to")
        cluster.workers = started
        yield cluster


@contextmanager
def _started(
    log: Path, command: Sequence[str], environment: Mapping[str, str], what: str
) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    with _process(log, command, environment) as process:
        yield process, _read(log, process, rf"{what} at: +(tcp://[\d.:]+)")


@contextmanager
def _process(log: Path, command: Sequence[str], environment: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, *command], env=os.environ | environment, stdout=said, stderr=said, stdin=subprocess.DEVNULL
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _read(log: Path, process: "subprocess.Popen[bytes]", pattern: str) -> str:
    """What a process says of itself when it is ready."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(pattern, log.read_text(errors="replace")):
            return found[found.re.groups]
        time.sleep(0.05)
    raise RuntimeError(f"no such process came up: {log.read_text(errors='replace')[-2_000:]}")
