"""What a root needs of its file system: each operation that is broken is named, and what works is said to work."""

import errno
import fcntl
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warehouse import file_system
from warehouse.errors import TimeloomError
from warehouse.file_system import held, is_held, is_of_a_network, kind_of, probe, require_fit

SHARED_MEMORY = Path("/dev/shm")


def refused(*_: Any, **__: Any) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def ignored(*_: Any, **__: Any) -> None:
    """Says that all is well, and does nothing."""


def copied(source: str, target: str) -> None:
    """A rename that is a copy: who reads the old file meanwhile sees it change."""
    shutil.copyfile(source, target)
    Path(source).unlink()


def copied_link(source: str, target: str) -> None:
    shutil.copyfile(source, target)


class StaleMap:
    """What was in the file when it was mapped."""

    def __init__(self, descriptor: int, *_: Any, **__: Any) -> None:
        self._seen = os.pread(descriptor, 100, 0)

    def __enter__(self) -> "StaleMap":
        return self

    def __exit__(self, *_: object) -> None: ...

    def __getitem__(self, part: slice) -> bytes:
        return self._seen[part]


BROKEN: list[tuple[Any, str, Callable[..., Any], str]] = [
    (os, "replace", copied, "does not replace a file by a rename: who had the old file open"),
    (os, "replace", refused, "does not replace a file by a rename: Operation not supported"),
    (os, "rename", ignored, "does not rename a folder: the folder is not where it should be"),
    (os, "symlink", refused, "does not replace a symbolic link by a rename: Operation not supported"),
    (os, "fsync", refused, "does not write down what fsync asks for: Operation not supported"),
    (fcntl, "flock", ignored, "loses locks: two processes hold one lock"),
    (fcntl, "flock", refused, "loses locks: Operation not supported"),
    (mmap, "mmap", StaleMap, "does not keep maps of a file: a map does not show what was written"),
    (file_system.lmdb, "open", refused, "does not hold a store of vectors: Operation not supported"),
]


@pytest.fixture(params=[None, SHARED_MEMORY], ids=["disk", "shared memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param is None:
        return tmp_path
    if not request.param.is_dir():
        pytest.skip("no shared memory")
    folder = request.param / f"timeloom-{tmp_path.parent.name}-{tmp_path.name}"
    folder.mkdir()
    request.addfinalizer(lambda: shutil.rmtree(folder))
    return Path(folder)


def test_a_file_system_that_does_all_is_fit(root: Path) -> None:
    assert [finding.fault for finding in probe(root)] == [""] * 8
    require_fit(root)
    assert list(root.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize(("module", "name", "fake", "says"), BROKEN, ids=[f"{row[1]} {row[3][:30]}" for row in BROKEN])
def test_an_operation_that_is_broken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, fake: Callable[..., Any], says: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fake)
        with pytest.raises(TimeloomError) as caught:
            require_fit(tmp_path)
    message = str(caught.value)
    assert f"the file system of {tmp_path} {says}" in message
    assert "docs/shared-file-systems.md" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_outlives_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "busy")

    monkeypatch.setattr(file_system, "_PATIENCE", 0.1)
    monkeypatch.setattr(fcntl, "flock", busy)
    faults = [finding.fault for finding in probe(tmp_path) if finding.fault]
    assert faults == ["loses locks: the lock of a process that has ended is not free"]


@pytest.mark.parametrize("fake", [refused, copied_link])
def test_a_root_can_do_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: Callable[..., Any]
) -> None:
    monkeypatch.setattr(os, "link", fake)
    require_fit(tmp_path)
    (found,) = [finding for finding in probe(tmp_path) if finding.fault]
    assert found.fault.startswith("has no hard links, so that unchanged files are copied into each release: ")
    assert not found.needed


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(TimeloomError, match="is no folder that can be written"):
        probe(tmp_path / "absent")


def test_a_lock_that_another_machine_holds_is_seen(tmp_path: Path) -> None:
    with pytest.raises(TimeloomError, match="no other machine holds a lock"):
        is_held(tmp_path)
    code = f"from warehouse.file_system import held\nfrom pathlib import Path\nwith held(Path({str(tmp_path)!r})):\n"
    code += "    print('held', flush=True)\n    input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert is_held(tmp_path)
        other.communicate(b"\n")
    with held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_does_not_reach_this_machine_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", ignored)
    with held(tmp_path):
        assert not is_held(tmp_path)


def test_the_kind_of_a_file_system_is_its_innermost_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    lines = (
        "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw",
        "40 22 0:44 / /mnt/with\\040space rw - nfs4 server:/export rw",
        "41 22 0:45 / /mnt rw - fuse.sshfs host: rw",
    )
    mounts.write_text("\n".join(lines))
    monkeypatch.setattr(file_system, "_MOUNTS", mounts)
    found = [kind_of(Path(path)) for path in ("/home/x", "/mnt/with space/root", "/mnt/other", "/mnt")]
    assert found == ["ext4", "nfs4", "fuse.sshfs", "fuse.sshfs"]
    assert [is_of_a_network(kind) for kind in found] == [False, True, True, True]
    monkeypatch.setattr(file_system, "_MOUNTS", tmp_path / "absent")
    assert kind_of(tmp_path) == "unknown"
