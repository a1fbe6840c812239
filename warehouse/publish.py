"""Releases appear whole or not at all: one rename, then one pointer swap."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from warehouse import leases
from warehouse.errors import REPAIR, TimeloomError
from warehouse.files import make_folder, sync_directory, sync_tree
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Manifest, write_manifest
from warehouse.sealed import NotWholeError, read_sealed, write_sealed


class RootBusyError(TimeloomError):
    """Another run is at work on the root."""


def current_release(layout: Layout) -> ReleaseLayout | None:
    """The published release, its path resolved so that a later swap does not move the reader; None before the first."""
    if not layout.current.is_symlink():
        if layout.current.exists() or (layout.releases.is_dir() and any(layout.releases.iterdir())):
            # Taking this for a first run would draw every split and every token id anew.
            raise TimeloomError(
                f"{layout.root.name} has releases, and `current` is no link to one of them",
                remedy=REPAIR,
            )
        return None
    path = layout.current.resolve()
    if not path.is_dir():
        raise TimeloomError("`current` points at a release that is gone", remedy=REPAIR)
    return ReleaseLayout(path)


def hold_release(layout: Layout, release: str | None = None) -> ReleaseLayout:
    """The release that `current` points at now, or the one named; held, so that nothing removes it (warehouse.leases).

    Raises:
        TimeloomError: nothing is published, or no such release.
    """
    if release is None:
        found = current_release(layout)
        if found is None:
            raise TimeloomError(f"{layout.root.name} has no published release", remedy="run `timeloom run` first")
    else:
        found = ReleaseLayout(layout.releases.resolve() / release)
        if not found.path.is_dir():
            raise TimeloomError(
                f"there is no release {release}",
                remedy="`timeloom status --releases` says which there are; `timeloom backfill` may make it again",
            )
    if not leases.hold(found.path):
        raise TimeloomError(f"release {found.path.name} was removed while it was opened", remedy="open another one")
    return found


def exclusive(layout: Layout, *, wait: bool = False) -> AbstractContextManager[None]:
    """Holds the root's lock.

    Args:
        wait: until another run has freed it.

    Raises:
        RootBusyError: another run holds it, and this one does not wait.
    """
    busy = RootBusyError(
        f"another run is working on {layout.root.name}", remedy="wait for its end, as `timeloom run --wait` does"
    )
    return locked(layout, layout.lock, busy, wait=wait)


@contextmanager
def locked(layout: Layout, path: Path, busy: TimeloomError, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock of the root, which is made if need be; the kernel frees it when the process dies.

    Args:
        wait: until the lock is free.

    Raises:
        TimeloomError: `busy`, where another process holds it and nobody waits; the root cannot be made or written.
    """
    try:
        make_folder(layout.root)
        lock = path.open("a")
    except OSError as error:
        raise TimeloomError(
            f"the root {layout.root} cannot be made or written", remedy="give --root a folder on a writable, local disk"
        ) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise busy from error
        yield


RELEASE_STAMP = "%Y-%m-%dT%H-%M-%SZ"


def made_at(release: str) -> datetime | None:
    """When a release was made, UTC, by its id; None for what timeloom has not named."""
    try:
        return datetime.strptime(release.partition(".")[0], RELEASE_STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None


def new_release_id(layout: Layout) -> str:
    """A UTC time stamp, made unique, that sorts behind those of all releases that are there.

    Where the clock went back since the last of them, it is the second after that one.
    """
    taken = {path.name for path in layout.releases.iterdir()} if layout.releases.is_dir() else set()
    now = datetime.now(UTC).replace(microsecond=0)
    latest = max(filter(None, map(made_at, taken)), default=now)
    stamp = (now if now >= latest else latest + timedelta(seconds=1)).strftime(RELEASE_STAMP)
    candidates = (stamp, *(f"{stamp}.{number}" for number in range(1, len(taken) + 2)))
    return next(name for name in candidates if name not in taken)


def point_at(layout: Layout, name: str) -> None:
    """Makes a release the current one, by one rename."""
    pointer = layout.root / f".current.{os.getpid()}"
    pointer.unlink(missing_ok=True)
    pointer.symlink_to(Path("releases") / name)
    pointer.replace(layout.current)
    sync_directory(layout.root)


def _pointed(layout: Layout) -> str | None:
    """What `current` says, whether or not it is there."""
    return str(layout.current.readlink()) if layout.current.is_symlink() else None


def _intention(staging: Path) -> Path:
    return staging.parent / "publishing.json"


def publish(layout: Layout, staging: Path, manifest: Manifest) -> ReleaseLayout:
    """Turns the staging tree `work/<run>/release` into the current release; see `publish_staged`."""
    write_manifest(staging / "manifest.json", manifest)
    return publish_staged(layout, staging, manifest.release_id)


def publish_staged(layout: Layout, staging: Path, release: str) -> ReleaseLayout:
    """Turns a staging tree that has its manifest, `work/<run>/<name>`, into the current release.

    Every file is synced before the rename, so that a kill or a power failure before it leaves the old release; a kill
    between the rename and the swap leaves an intention beside the staging tree, which `complete_publication` carries
    out.
    """
    sync_tree(staging)
    make_folder(layout.releases)
    write_sealed(_intention(staging), {"release": release, "instead_of": _pointed(layout)})
    published = _into_place(layout, staging, release)
    point_at(layout, release)
    _intention(staging).unlink()
    return published


def add_staged(layout: Layout, staging: Path, release: str) -> ReleaseLayout:
    """Turns a staging tree that has its manifest into a release beside the current one, which stays current."""
    sync_tree(staging)
    make_folder(layout.releases)
    return _into_place(layout, staging, release)


def _into_place(layout: Layout, staging: Path, release: str) -> ReleaseLayout:
    target = layout.releases / release
    staging.rename(target)
    sync_directory(layout.releases)
    return ReleaseLayout(target)


def complete_publication(layout: Layout) -> str | None:
    """Finishes a publication that was killed after its rename; gives the release's id, or None.

    Where `current` was moved by hand since then, it stays where a person put it. The run's folder goes, so that no
    later run takes its name over.
    """
    completed = None
    for intention in sorted(layout.work.glob("*/publishing.json")):
        try:
            wanted = read_sealed(intention, older=True)
        except NotWholeError:  # what it announced is published by the next run
            intention.unlink()
            continue
        release = str(wanted["release"])
        if (layout.releases / release).is_dir():
            if _pointed(layout) == wanted["instead_of"]:
                point_at(layout, release)
            completed = release
            shutil.rmtree(intention.parent)
        else:
            intention.unlink()
    return completed
