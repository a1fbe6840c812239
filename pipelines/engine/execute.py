"""One task, carried out wherever an engine has sent it."""

import errno
import importlib
import os
import re
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pipelines.engine.cost import task_cost
from pipelines.engine.former import whole_former
from pipelines.engine.parcel import unpack
from pipelines.engine.task import DEBUG_VARIABLE, Result, Task, WorkerLostError
from warehouse.errors import RawFileChangedError, TimeloomError
from warehouse.files import hash_file, signature_of, synced_later, write_json
from warehouse.sealed import write_sealed


def execute(task: Task) -> str:
    """Runs one task and leaves its record, or the reason why there is none; gives the task's key."""
    from polars.exceptions import PanicException

    from warehouse.manifest import FileEntry, TaskEntry

    record, failure = Path(task.record), Path(task.record).with_suffix(".error")
    failure.unlink(missing_ok=True)
    try:
        module, name = task.function.split(":")
        try:
            former = () if task.rules is None else (whole_former(task.before),)
            with synced_later(Path(task.base)) if task.published else nullcontext():
                result: Result = getattr(importlib.import_module(module), name)(task.params, Path(task.base), *former)
        finally:
            # In any case: half a file may also be what made the task fail.
            _hold_to_plan(task)
        files = dict(result.made_before)
        for relative, rows in sorted(result.files.items()):
            path = Path(task.base) / relative
            strong, fast = hash_file(path)
            files[relative] = FileEntry(sha256=strong, bytes=path.stat().st_size, rows=rows, xxh3=fast)
        entry = TaskEntry(
            fingerprint=task.fingerprint,
            files=files,
            counts=dict(result.counts),
            rules=task.rules,
            because=dict(task.because),
            continued=dict(task.continued),
        )
        write_sealed(record, entry.model_dump(mode="json") | {"cost": task_cost()}, sync=not task.published)
    except (Exception, PanicException) as error:  # a panic of polars is no Exception
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        reason = _describe(error)
        try:
            write_json(failure, reason)
        except OSError:  # a full disk takes no record either
            raise TimeloomError(reason["message"], reason["remedy"]) from None
    return task.key


def _hold_to_plan(task: Task) -> None:
    """Raises RawFileChangedError where a raw file is not as it was when the task was planned."""
    for path, planned in task.raw_files.items():
        try:
            now = signature_of(Path(path).stat())
        except OSError:
            now = None
        if now != planned["signature"]:
            raise RawFileChangedError(planned["what"]) from None


def _describe(error: BaseException) -> dict[str, Any]:
    """What went wrong without any value in it: a library's message may hold a patient's."""
    where = "".join(f"{frame.filename}:{frame.lineno}\n" for frame in traceback.extract_tb(error.__traceback__))
    clear = clear_error(error) or TimeloomError(f"{type(error).__name__} in the stage", "see the log; run with --debug")
    changed = isinstance(clear, RawFileChangedError)
    return {"message": clear.message, "remedy": clear.remedy, "where": where, "changed": changed}


_FULL = ("the disk is full", "free space and run again; it resumes")
_BROKEN = (
    "the disk could not be read or written (input/output error)",
    "see the system's log, mend the disk or what mounts it, and run again; it resumes",
)
# What a person can mend of the system's errors: message and remedy. A full disk may be out of bytes or of inodes.
_SYSTEM = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: (
        "a file would be larger than this process or file system allows",
        "raise the limit (`ulimit -f`) or use another file system, and run again; it resumes",
    ),
    errno.EIO: _BROKEN,
    errno.ESTALE: _BROKEN,
    errno.EROFS: ("the file system can only be read", "mount it for writing, or give a --root on another one"),
    errno.EMFILE: ("too many files are open", "raise the limit (`ulimit -n`) and run again; it resumes"),
    errno.ENFILE: ("too many files are open on this machine", "end other programs and run again; it resumes"),
    errno.EACCES: ("a file may not be read or written", "mend the permissions"),
    errno.EPERM: ("a file may not be read or written", "mend the permissions"),
}


def clear_error(error: BaseException) -> TimeloomError | None:
    """What a person can mend, if it is that: a clear error itself, a full or broken disk, a limit, a forbidden file."""
    if isinstance(error, TimeloomError):
        return error
    if isinstance(error, MemoryError):
        return WorkerLostError("a task ran out of memory", "run again with fewer workers; it resumes")
    known = _SYSTEM.get(_system_error(error) or 0)
    return TimeloomError(*known) if known else None


def _system_error(error: BaseException) -> int | None:
    """The number of the system's error that it is; libraries say it in words alone."""
    if isinstance(error, PermissionError):
        return errno.EACCES
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = str(error)
    if (number := re.search(r"\(os error (\d+)\)", said)) is not None:
        return int(number[1])
    return next((number for number in _SYSTEM if os.strerror(number) in said), None)


def execute_parcel(parcel: str) -> str:
    """`execute` on what `pipelines.engine.parcel.pack` made, on whatever machine it came to.

    Raises:
        WorkerRefusedError: this worker may not run it.
    """
    return execute(unpack(parcel))
