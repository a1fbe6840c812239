"""What the system refuses has a line that says what to do; a run that is told to end does so at once."""

import errno
import time

import duckdb
import lmdb
import polars as pl
import psutil
import pytest

from pipelines.engine.execute import clear_error
from pipelines.engine.local import LocalEngine

BROKEN = "the disk could not be read or written (input/output error); see the system's log"
FULL = "the disk is full; free space and run again; it resumes"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EIO, "x"), BROKEN),
        (OSError(errno.ESTALE, "x"), BROKEN),
        (OSError(errno.EROFS, "x"), "the file system can only be read; mount it for writing"),
        (OSError(errno.EDQUOT, "x"), FULL),
        (OSError(errno.EMFILE, "x"), "too many files are open; raise the limit"),
        (PermissionError(), "a file may not be read or written; mend the permissions"),
        (lmdb.Error("mdb_txn_commit: No space left on device"), FULL),
        (duckdb.IOException("IO Error: Could not write file: No space left on device"), FULL),
        (pl.exceptions.ComputeError("Input/output error (os error 5)"), BROKEN),
        (MemoryError(), "a task ran out of memory; run again with fewer workers"),
    ],
)
def test_what_the_system_refuses_has_its_line(error: Exception, line: str) -> None:
    assert str(clear_error(error)).startswith(line)


def test_what_nobody_foresaw_is_no_fault_of_the_system() -> None:
    assert clear_error(OSError("no number")) is None
    assert clear_error(ValueError("2 of 5")) is None


@pytest.mark.whole
def test_a_run_that_is_told_to_end_does_not_wait_for_its_workers() -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), LocalEngine(2) as engine:
        pool = engine._executor()
        futures = [pool.submit(time.sleep, 600) for _ in range(4)]
        while not any(future.running() for future in futures):
            time.sleep(0.05)
        workers = [psutil.Process(number) for number in pool._processes]
        raise KeyboardInterrupt
    assert time.monotonic() - began < 300
    assert len(workers) == 2
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
