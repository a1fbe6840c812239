"""What the machine refuses a night: bytes, inodes, a rename, a read, a permission, the right time, or its turn. It says
so in a line, the last release stays, and the next night ends as an undisturbed one does."""

import ctypes
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest

from flows.commands.status import describe_releases
from flows.keeping.choice import chosen
from flows.runs import record
from flows.runs.record import lineage_path
from pipelines.config import KeepConfig
from tests.support.nights.struck import StruckSite, comparable, first_night
from warehouse import publish
from warehouse.errors import TimeloomError
from warehouse.manifest import FORMAT_VERSION, read_manifest
from warehouse.publish import exclusive
from warehouse.sealed import write_sealed

FULL = "timeloom: the disk is full; free space and run again; it resumes"
BROKEN = "timeloom: the disk could not be read or written (input/output error)"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> StruckSite:
    """A hospital with a release and news."""
    return first_night(tmp_path_factory.mktemp("refused"))


@pytest.fixture(scope="module")
def calm(before: StruckSite, tmp_path_factory: pytest.TempPathFactory) -> StruckSite:
    """The night of the news, undisturbed."""
    site = before.copy(tmp_path_factory.mktemp("calm") / "site")
    site.run()
    return site


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system, or changes its size."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        again = ["remount"] if place.is_mount() else []
        command = ["mount", "-t", "tmpfs", "-o", ",".join([*again, options]), "tmpfs", str(place)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a file system of a test's own takes the right to mount one")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_full_disk(
    what: str, before: StruckSite, calm: StruckSite, mounted: Callable[[str], Path], tmp_path: Path
) -> None:
    disk = mounted("size=400m,nr_inodes=20000")
    site = before.copy(disk / "site")
    held = site.readable()
    used = os.statvfs(disk)
    small = {
        "bytes": f"size={(used.f_blocks - used.f_bfree) * used.f_frsize + 600_000}",
        "inodes": f"nr_inodes={used.f_files - used.f_ffree + 120}",
    }
    mounted(small[what])
    night = site.begin(notes=tmp_path / "notes")
    assert night.ended() == 1
    (line,) = night.said.splitlines()
    assert line.startswith(FULL)
    assert site.readable() == held
    mounted("size=400m,nr_inodes=20000")
    site.run()
    site.is_as(calm)


# A call, a part of the path at which it fails, and how; one after the other, in the order of a night.
REFUSED = (
    ("replace", "/segments/", errno.EIO, BROKEN),
    ("fsync", "fingerprints.json", errno.ENOSPC, FULL),
    ("replace", "/tasks/align/", errno.ENOSPC, FULL),
    ("replace", "/release/timelines/", errno.EIO, BROKEN),
    ("fsync", "/lineage/", errno.EIO, BROKEN),
    ("fsync", "/release/data", errno.EIO, BROKEN),
    ("rename", "/release", errno.ENOSPC, FULL),
    ("replace", "/.current.", errno.EIO, BROKEN),
)


def test_what_the_disk_refuses_at_any_point(
    before: StruckSite, calm: StruckSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    site = before.copy(tmp_path / "site")
    held = site.readable()
    for call, where, number, line in REFUSED:
        with monkeypatch.context() as patch:
            _refuse(patch, call, where, number)
            assert _command(site, patch) == 1, where
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and said[0].startswith(line), (where, said)
        assert site.readable() == held
    site.run()
    site.is_as(calm)


def _refuse(patch: pytest.MonkeyPatch, call: str, where: str, number: int) -> None:
    """From now on a call fails at paths that hold a text."""
    real = getattr(os, call)

    def refused(*arguments: Any, **names: Any) -> Any:
        path = f"/proc/self/fd/{arguments[0]}" if call == "fsync" else os.fspath(arguments[0])
        if where in (str(Path(path).readlink()) if call == "fsync" else path):
            raise OSError(number, os.strerror(number), "MRN-4711")
        return real(*arguments, **names)

    patch.setattr(os, call, refused)


def _command(site: StruckSite, patch: pytest.MonkeyPatch) -> int:
    """Runs a night's command in this process; its exit code."""
    from flows import cli

    patch.setattr(sys, "argv", site.command("--direct", "--json", workers=1))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(str(ended.value.code or 0))


def test_a_raw_file_that_the_disk_does_not_give(
    before: StruckSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    site = before.copy(tmp_path / "site", hospital=True)
    held = site.readable()
    # What the kernel gives of this file at its start is EIO, as of a bad sector.
    (site.hospital / "tables" / "labs.csv").unlink()
    (site.hospital / "tables" / "labs.csv").symlink_to("/proc/self/mem")
    assert _command(site, monkeypatch) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("timeloom: a raw file cannot be read; check its permissions and its disk")
    assert site.readable() == held


@pytest.mark.parametrize(
    ("forbidden", "line"),
    [
        ("hospital/tables/labs.csv", "timeloom: a raw file cannot be read; check its permissions and its disk"),
        ("warehouse", "timeloom: the root {root} cannot be made or written; give --root a folder on a writable"),
        ("warehouse/segments", "timeloom: a file may not be read or written; mend the permissions"),
    ],
)
def test_what_may_not_be_read_or_written(forbidden: str, line: str, before: StruckSite, tmp_path: Path) -> None:
    site = before.copy(tmp_path / "site", hospital=True)
    held = site.readable()
    path = site.folder / forbidden
    if forbidden == "warehouse":
        (path / ".lock").unlink()
    path.chmod(0o555 if path.is_dir() else 0o000)
    night = site.begin(ahead=_without_power)
    assert night.ended() == 1
    path.chmod(0o755)
    (said,) = night.said.splitlines()
    assert said.startswith(line.format(root=site.root)), said
    assert site.readable() == held


def _without_power() -> None:
    """In a process that is to begin: permissions hold for it though it is root's (capabilities 1 and 2 are to override
    them, and 24 is PR_CAPBSET_DROP)."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


@pytest.mark.parametrize("version", [2, 3])
def test_a_root_of_an_older_timeloom_is_gone_on_from(version: int, before: StruckSite, tmp_path: Path) -> None:
    site = before.copy(tmp_path / "site")
    path = site.current.manifest
    older = json.loads(path.read_text(encoding="utf-8")) | {"format_version": version}
    for later in ("checksum", "contents", "accepted_losses", "root", "records", "keys"):
        del older[later]
    if version == 2:
        path.write_text(json.dumps(older), encoding="utf-8")
    else:
        write_sealed(path, older)
    site.run()
    assert site.manifest.format_version == FORMAT_VERSION
    assert site.manifest.parent == path.parent.name
    site.readable()


def test_a_root_of_a_newer_timeloom_is_refused(before: StruckSite, tmp_path: Path) -> None:
    site = before.copy(tmp_path / "site")
    path = site.current.manifest
    newer = json.loads(path.read_text(encoding="utf-8")) | {"format_version": FORMAT_VERSION + 1}
    del newer["checksum"]
    write_sealed(path, newer)
    with pytest.raises(TimeloomError, match=r"^the release \S+ has a newer format; upgrade timeloom$"):
        site.run()


class Clock(datetime):
    """A clock that a test sets, and that goes on by a second each time that it is looked at; or back."""

    moment = datetime(2026, 3, 2, 2, tzinfo=UTC)
    step = timedelta(seconds=1)

    @classmethod
    def now(cls, tz: object = None) -> Self:  # type: ignore[override]
        Clock.moment += Clock.step
        return cls.fromtimestamp(Clock.moment.timestamp(), UTC)


@pytest.mark.parametrize("back", [timedelta(hours=1), timedelta(days=1)])
def test_a_clock_that_goes_back(back: timedelta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (publish, record):
        monkeypatch.setattr(module, "datetime", Clock)
    monkeypatch.setattr(Clock, "moment", datetime(2026, 3, 2, 2, tzinfo=UTC))
    site = first_night(tmp_path)
    monkeypatch.setattr(Clock, "moment", Clock.moment - back)
    monkeypatch.setattr(Clock, "step", timedelta(seconds=-1))  # and on, during the night
    outcome = site.run()
    line = f"which is before the last release was made: this one is named {outcome.release}"
    assert line in outcome.clock and outcome.clock in outcome.lines()
    first, second = describe_releases(site.root)[::-1]
    assert second["current"] and second["parent"] == first["release"] < second["release"]
    assert second["created_at"] < first["created_at"], "the time that the clock said is not made better than it was"
    logs = sorted(site.layout.logs.glob("*.log"))
    assert len(logs) == 2 and line in logs[-1].read_text(encoding="utf-8")
    records = {
        lineage_path(site.layout, read_manifest(path / "manifest.json")) for path in site.layout.releases.iterdir()
    }
    assert records == set(site.layout.lineage.iterdir()) and len(records) == 2
    kept = chosen(site.layout, KeepConfig(daily=1, weekly=0, monthly=0), 1)
    assert kept == {second["release"]: "current", first["release"]: "the one before it"}
    assert not site.run().published


def test_a_night_waits_for_its_turn(before: StruckSite, calm: StruckSite, tmp_path: Path) -> None:
    site = before.copy(tmp_path / "site")
    with exclusive(site.layout):
        waiting = site.begin("", "--wait")
        refused = subprocess.run(site.command("--direct"), capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert re.fullmatch(r"timeloom: another run is working on warehouse; wait for its end[^\n]*\n", refused.stderr)
        assert waiting.process.poll() is None and not waiting.points
    assert waiting.ended() == 2
    assert comparable(site.manifest) == comparable(calm.manifest)
