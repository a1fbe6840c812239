"""A toy stage for tests of engines: a pure function from a text file to a text file, and ways to go wrong.

It lives in a module of its own because worker processes import it by name.
"""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.engine.task import Result
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write
from warehouse.manifest import Deidentification, FileEntry, Manifest, content_hash

PATIENT_VALUE = "MRN-4711 Erika Mustermann"


def run(params: dict[str, Any], base: Path) -> Result:
    """Writes the sorted lines of `params["input"]`; `params["fault"]` says how to fail, where it is given."""
    fault = params.get("fault")
    if fault == "clear":
        raise TimeloomError("table labs lacks the column value", "export it")
    if fault == "library":
        int(PATIENT_VALUE)
    if fault == "chained":
        try:
            int(PATIENT_VALUE)
        except ValueError as error:
            raise TimeloomError("table labs cannot be read", "check it") from error
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "full":
        fill_disk()
    lines = sorted(Path(params["input"]).read_text(encoding="utf-8").splitlines())
    name = f"sorted/{params['name']}.txt"
    with atomic_write(base / name) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Result({name: len(lines)}, {"lines": len(lines)})


def who(params: dict[str, Any], base: Path) -> Result:
    """Takes a moment, and writes which process it ran in."""
    time.sleep(0.05)
    name = f"{params['name']}.pid"
    with atomic_write(base / name) as temporary:
        temporary.write_text(str(os.getpid()))
    return Result({name: None})


def busy(params: dict[str, Any], base: Path) -> Result:
    """Keeps a processor busy for `params["seconds"]`, in a child process where `params["child"]` says so."""
    stop = f"import time\nwhile time.process_time() < {params['seconds']}: pass"
    if params.get("child"):
        subprocess.run([sys.executable, "-c", stop], check=True)
    else:
        until = time.process_time() + params["seconds"]
        while time.process_time() < until:
            pass
    return Result({})


def toy_manifest(files: dict[str, FileEntry], release_id: str) -> Manifest:
    """The manifest of a release that holds these files."""
    return Manifest(
        release_id=release_id,
        parent=None,
        created_at="2026-01-01T00:00:00+00:00",
        run_id="toy",
        buckets=1,
        deid=Deidentification(mode="synthetic", subject_ids="keep", dates="keep", key_fingerprint=""),
        config_hash="",
        split_scheme="",
        split_hash="",
        encoders={},
        profiles={},
        stages={},
        sources={},
        verdicts={},
        content_hash=content_hash(files),
        tasks={},
        files=files,
    )


def fill_disk() -> None:
    """From now on no file of this process can be written to the end, not even the record of a failure."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/MRN-4711.parquet")

    # What belongs to a release is synced when it is published, and only renamed until then.
    os.fsync = os.replace = full
