"""Publication: a release appears whole or not at all, whenever the process dies."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest

from flows.keeping.choice import released
from tests.support.nights.toy_stage import toy_manifest
from warehouse import publish as publishing
from warehouse.errors import TimeloomError
from warehouse.files import link_or_copy, sha256_file, synced_later, write_json
from warehouse.layout import Layout
from warehouse.manifest import FileEntry, Manifest, read_manifest
from warehouse.publish import complete_publication, current_release, exclusive, new_release_id, publish


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An empty root."""
    return Layout(tmp_path / "root")


def stage(layout: Layout, release_id: str, text: str, run: str = "run", link_from: Path | None = None) -> Manifest:
    """A staging tree of two files; `link_from` is a release whose stable.txt is linked."""
    tree = layout.work / run / "release"
    tree.mkdir(parents=True)
    (tree / "data.txt").write_text(text)
    if link_from:
        link_or_copy(link_from / "stable.txt", tree / "stable.txt")
    else:
        (tree / "stable.txt").write_text("stable")
    files = {
        path.name: FileEntry(sha256=sha256_file(path), bytes=path.stat().st_size) for path in sorted(tree.iterdir())
    }
    return toy_manifest(files, release_id)


def publish_one(layout: Layout, release_id: str, text: str, run: str = "run") -> Path:
    """Publishes a release and clears its run away, as a run does."""
    current = current_release(layout)
    manifest = stage(layout, release_id, text, run, current.path if current else None)
    released = publish(layout, layout.work / run / "release", manifest)
    (layout.work / run).rmdir()
    return released.path


def readable(layout: Layout) -> tuple[str, str]:
    """Id and data of the current release; fails where it is not whole."""
    current = current_release(layout)
    assert current is not None
    manifest = read_manifest(current.manifest)
    for name, entry in manifest.files.items():
        assert sha256_file(current.path / name) == entry.sha256
    return manifest.release_id, (current.path / "data.txt").read_text()


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, after: bool = False) -> None:
    """Makes the process die before (or right after) a call."""
    real: Callable[..., object] = getattr(owner, name)

    def dies(*args: object, **kwargs: object) -> None:
        if after:
            real(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(owner, name, dies)


# Every step of `publish`, in order: manifest, intention, rename, directory sync, pointer, its unlinking.
POINTS: dict[str, tuple[object, str, bool, bool]] = {
    "before the manifest": (publishing, "write_manifest", False, False),
    "after the manifest": (publishing, "write_manifest", True, False),
    "before the intention": (publishing, "write_sealed", False, False),
    "after the intention": (publishing, "write_sealed", True, False),
    "before the rename": (Path, "rename", False, False),
    "after the rename": (Path, "rename", True, True),
    "before the swap": (publishing, "point_at", False, True),
    "with the pointer made": (Path, "symlink_to", True, True),
    "before the pointer takes its place": (Path, "replace", False, True),
    "after the swap": (publishing, "point_at", True, True),
}


@pytest.mark.parametrize("first", [True, False], ids=["first release", "second release"])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_step_leaves_a_whole_release(
    point: str, first: bool, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, after, renamed = POINTS[point]
    if not first:
        publish_one(layout, "2026-01-01", "old")
    manifest = stage(layout, "2026-01-02", "new", "second")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        # atomic_write itself replaces files: the pointer's own replacement is meant
        if (owner, name) == (Path, "replace"):
            kill_pointer_replacement(patch)
        else:
            kill_at(patch, owner, name, after=after)
        publish(layout, layout.work / "second" / "release", manifest)
    swapped = point == "after the swap"
    if swapped or not first:
        assert readable(layout) == (("2026-01-02", "new") if swapped else ("2026-01-01", "old"))
    elif renamed:
        with pytest.raises(TimeloomError, match="`current` is no link"):
            current_release(layout)
    else:
        assert current_release(layout) is None

    assert complete_publication(layout) == ("2026-01-02" if renamed else None)
    assert not list(layout.work.glob("*/publishing.json"))
    assert complete_publication(layout) is None
    if not renamed:
        publish(layout, layout.work / "second" / "release", manifest)
    else:
        assert not (layout.work / "second").exists(), "a later run must not take over a published run's name"
    assert readable(layout) == ("2026-01-02", "new")
    assert not [path.name for path in layout.releases.iterdir() if path.name.startswith(".")]


def kill_pointer_replacement(patch: pytest.MonkeyPatch) -> None:
    """Dies when `.current.<pid>` is about to become `current`."""
    real = Path.replace

    def dies(self: Path, target: Path) -> Path:
        if self.name.startswith(".current"):
            raise Killed
        return real(self, target)

    patch.setattr(Path, "replace", dies)


def test_a_roll_back_by_hand_is_respected(layout: Layout) -> None:
    old, new = publish_one(layout, "2026-01-01", "old"), publish_one(layout, "2026-01-02", "new")
    layout.current.unlink()
    layout.current.symlink_to(Path("releases") / "2026-01-01")
    assert complete_publication(layout) is None
    assert readable(layout) == ("2026-01-01", "old")
    publish_one(layout, "2026-01-03", "newest")
    assert readable(layout) == ("2026-01-03", "newest")
    assert (old / "data.txt").read_text() == "old"
    assert (new / "data.txt").read_text() == "new"


@pytest.mark.parametrize("point", ["before the swap", "after the swap"])
def test_a_roll_back_after_a_kill_is_respected_too(point: str, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("2026-01-01", "2026-01-02"):
        publish_one(layout, name, name)
    manifest = stage(layout, "2026-01-03", "new", "third")
    owner, name, after, _ = POINTS[point]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, owner, name, after=after)
        publish(layout, layout.work / "third" / "release", manifest)
    layout.current.unlink()
    layout.current.symlink_to(Path("releases") / "2026-01-01")
    complete_publication(layout)
    assert readable(layout) == ("2026-01-01", "2026-01-01")
    assert (layout.releases / "2026-01-03").is_dir()


def test_a_pointer_at_nothing_is_one_line(layout: Layout) -> None:
    publish_one(layout, "2026-01-01", "old")
    layout.current.unlink()
    layout.current.symlink_to("releases/2025-01-01")
    with pytest.raises(TimeloomError, match="a release that is gone; run `timeloom repair`"):
        current_release(layout)


def test_unchanged_files_share_an_inode(layout: Layout) -> None:
    old, new = publish_one(layout, "2026-01-01", "old"), publish_one(layout, "2026-01-02", "new")
    assert (old / "stable.txt").samefile(new / "stable.txt")
    assert (new / "stable.txt").stat().st_nlink == 2
    assert not (old / "data.txt").samefile(new / "data.txt")
    assert not (old / "manifest.json").samefile(new / "manifest.json")


def test_a_link_is_a_copy_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "a").write_text("a")
    link_or_copy(tmp_path / "a", tmp_path / "sub" / "b")
    assert (tmp_path / "sub" / "b").read_text() == "a"
    assert not (tmp_path / "a").samefile(tmp_path / "sub" / "b")


def test_release_ids_are_unique_within_a_second(layout: Layout) -> None:
    names = []
    for _ in range(12):
        name = new_release_id(layout)
        (layout.releases / name).mkdir(parents=True)
        names.append(name)
    assert len(set(names)) == 12
    assert names == sorted(names, key=lambda name: (name.split("Z")[0], int(name.partition(".")[2] or 0)))


def test_a_second_run_gets_one_line_and_a_dead_one_frees_the_lock(layout: Layout) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from warehouse.layout import Layout\n"
        "from warehouse.publish import exclusive\n"
        "with exclusive(Layout(Path(sys.argv[1]))):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(layout.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TimeloomError) as caught, exclusive(layout):
            pass
        assert str(caught.value) == "another run is working on root; wait for its end, as `timeloom run --wait` does"
        holder.kill()
    with exclusive(layout):
        pass


def test_every_file_and_folder_is_durable_before_the_rename(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = stage(layout, "2026-01-02", "new", "second")
    staging = layout.work / "second" / "release"
    (staging / "deep" / "er").mkdir(parents=True)
    (staging / "deep" / "er" / "file").write_text("x")
    synced: set[int] = set()
    wanted: list[set[int]] = []
    rename = Path.rename

    def renamed(path: Path, target: Path) -> Path:
        if path == staging:
            wanted.append({each.stat().st_ino for each in (staging, *staging.rglob("*"))} - synced)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(Path, "rename", renamed)
    publish(layout, staging, manifest)
    assert wanted == [set()]


def test_a_file_that_the_disk_does_not_take_is_made_again(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_one(layout, "2026-01-01", "old")
    manifest = stage(layout, "2026-01-02", "new", "second")
    staging = layout.work / "second" / "release"
    refused = (staging / "data.txt").stat().st_ino

    def refuse(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == refused:
            raise OSError(errno.EIO, "no disk")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no disk"):
        publish(layout, staging, manifest)
    # A kernel forgets that it could not write a file down: what stands there would pass for durable the next time.
    assert not (staging / "data.txt").exists()
    assert (staging / "stable.txt").exists()
    assert readable(layout) == ("2026-01-01", "old")


def test_what_is_synced_later_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with synced_later(tmp_path / "staging"):
        write_json(tmp_path / "staging" / "a" / "file", 1)
        assert not synced
        write_json(tmp_path / "beside", 1)
        assert len(synced) == 2, "a file and its folder"
    write_json(tmp_path / "staging" / "a" / "file", 1)
    assert len(synced) == 4


class Clock(datetime):
    """A clock that a test sets."""

    moment = datetime(2026, 3, 1, 2, tzinfo=UTC)

    @classmethod
    def now(cls, tz: object = None) -> Self:  # type: ignore[override]
        return cls.fromtimestamp(cls.moment.timestamp(), UTC)


@pytest.mark.parametrize("back", [timedelta(hours=1), timedelta(days=1), timedelta(days=400)])
def test_a_release_sorts_behind_all_others_though_the_clock_went_back(
    back: timedelta, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "datetime", Clock)
    names = []
    for moment in (Clock.moment, Clock.moment - back, Clock.moment - back, Clock.moment + timedelta(days=1)):
        monkeypatch.setattr(Clock, "moment", moment)
        names.append(new_release_id(layout))
        (layout.releases / names[-1]).mkdir(parents=True)
    assert names == [
        "2026-03-01T02-00-00Z", "2026-03-01T02-00-01Z", "2026-03-01T02-00-02Z", "2026-03-02T02-00-00Z"
    ]  # fmt: skip
    assert released(layout) == names[::-1]


def test_a_folder_that_is_made_is_durable_in_those_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    made = tmp_path / "root" / "lineage" / "run.json"
    write_json(made, 1)
    assert set(synced) == {path.stat().st_ino for path in (made, made.parent, made.parent.parent, tmp_path)}
