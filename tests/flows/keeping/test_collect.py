"""What is collected, what stays, and what a kill leaves: every release that stays is whole, always."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.keeping.choice import chosen
from flows.keeping.collect import collect, collected
from pipelines.config import KeepConfig
from tests.support.nights.many_releases import (
    OLD_STORE,
    STORE,
    check_whole,
    disk,
    entry_of,
    files_of,
    items_of,
    make_root,
    name_of,
    releases,
)
from warehouse import Release, leases
from warehouse.embeddings import compact as compact_store
from warehouse.embeddings.store import EmbeddingStore, close_stores
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.manifest import TaskEntry
from warehouse.publish import exclusive
from warehouse.sealed import write_sealed

KEEP = KeepConfig(daily=3, weekly=2, monthly=2, logs=4)
# Worked out by hand for forty nights from 1 January 2024, a Monday, to 9 February, a Friday.
FORTY = {
    name_of(39): "current",
    name_of(38): "the one before it",
    name_of(37): "daily",
    name_of(34): "weekly",  # Sunday, 4 February
    name_of(30): "monthly",  # 31 January
}


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_root(tmp_path / "root", range(34, 40))


def test_the_latest_of_days_weeks_and_months_stay(tmp_path: Path) -> None:
    root = make_root(tmp_path, range(40))
    assert chosen(root, KEEP, window=2) == FORTY
    # A week and a month without a release do not count.
    for night in (34, 30):
        shutil.rmtree(root.releases / name_of(night))
    assert chosen(root, KEEP, window=2)[name_of(33)] == "weekly"
    assert chosen(root, KEEP, window=2)[name_of(29)] == "monthly"


def test_what_the_next_night_compares_with_stays(tmp_path: Path) -> None:
    root = make_root(tmp_path, range(8))
    none = KeepConfig(daily=0, weekly=0, monthly=0)
    assert list(chosen(root, none, window=5)) == [name_of(night) for night in (7, 6, 5, 4, 3)]
    assert list(chosen(root, none, window=1)) == [name_of(7), name_of(6)]


def test_a_named_release_stays_and_one_that_is_not_there_is_an_error(layout: Layout) -> None:
    keep = KEEP.model_copy(update={"releases": (name_of(35),)})
    assert chosen(layout, keep, window=2)[name_of(35)] == "named"
    with pytest.raises(TimeloomError, match=r"keep\.releases names 2020"):
        chosen(layout, keep.model_copy(update={"releases": ("2020",)}), window=2)


def test_a_dry_run_says_what_goes_and_writes_nothing(layout: Layout) -> None:
    before = files_of(layout)
    found = collect(layout, KEEP, 2, thorough=True)
    assert files_of(layout) == before
    assert not found.applied
    assert [part.name for part in found.gone if part.kind == "release"] == [name_of(36), name_of(35)]
    with exclusive(layout):
        done = collect(layout, KEEP, 2, apply=True, thorough=True)
    assert [(part.kind, part.name, part.number) for part in done.gone] == [
        (part.kind, part.name, part.number) for part in found.gone
    ]


def test_what_goes_and_the_bytes_that_it_gives_back(layout: Layout) -> None:
    killed = layout.work / "20240101T000000000000Z" / "tasks"
    killed.mkdir(parents=True)
    (killed / "left.json").write_text("x" * 500)
    before = disk(layout)
    with exclusive(layout):
        done = collect(layout, KEEP, 2, apply=True, thorough=True)
    stay = {name_of(night) for night in (34, 37, 38, 39)}
    assert releases(layout) == stay == set(done.kept)
    check_whole(layout, stay)
    private = sum(part.bytes for part in done.gone if part.name.startswith("private/"))
    assert done.bytes - private == before - disk(layout)
    assert {path.stem for path in layout.segments.iterdir()} == {"seg38", "seg39"}
    assert {path.stem for path in layout.scanned.iterdir()} == {"seg38", "seg39"}
    assert sorted(path.stem for path in layout.logs.iterdir()) == ["run036", "run037", "run038", "run039"]
    assert len(list(layout.lineage.iterdir())) == 6
    assert not list(layout.work.iterdir())
    # 34 has the items 34 to 36 of the old encoder; of the new one the items of 36 alone are nobody's now: none, as 37
    # has all that are left.
    assert EmbeddingStore.open(layout.embedding_bucket("ct", OLD_STORE, 0)).keys() == items_of(34)
    assert EmbeddingStore.open(layout.embedding_bucket("ct", STORE, 0)).keys() == sorted(
        {*items_of(37), *items_of(38), *items_of(39)}
    )
    again = collect(layout, KEEP, 2, apply=True, thorough=True)
    assert not again.gone


def test_what_an_unpublished_night_goes_on_from_stays(layout: Layout) -> None:
    """Its record names the segment of a night whose release goes."""
    names = ("late.segment", "seg36.segment")
    (layout.segments / names[0]).write_bytes(b"r" * 100)
    entry = TaskEntry(fingerprint="late", files={name: entry_of(layout.segments / name) for name in names})
    write_sealed(layout.segments / "late.json", entry.model_dump(mode="json"))
    with exclusive(layout):
        collect(layout, KEEP, 2, apply=True, thorough=True)
    assert {path.stem for path in layout.segments.iterdir()} == {"seg36", "seg38", "seg39", "late"}


def test_a_store_that_no_release_names_goes_unless_it_is_configured(layout: Layout) -> None:
    keep = KeepConfig(daily=2, weekly=0, monthly=0)
    with exclusive(layout):
        found = collect(layout, keep, 2, {"ct": {OLD_STORE}}, apply=True)
        assert not [part for part in found.gone if part.kind == "store"]
        assert layout.embeddings("ct", OLD_STORE).is_dir()
        found = collect(layout, keep, 2, apply=True, thorough=True)
    assert [part.name for part in found.gone if part.kind == "store"] == [f"embeddings/ct/{OLD_STORE}"]
    assert not layout.embeddings("ct", OLD_STORE).exists()
    check_whole(layout, releases(layout))


def test_a_reader_keeps_what_it_opened_until_it_ends(layout: Layout) -> None:
    code = (
        "import sys; from warehouse import Release\n"
        f"Release.open({str(layout.root)!r}, release={name_of(35)!r}); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        with exclusive(layout):
            done = collect(layout, KEEP, 2, apply=True)
        assert done.kept[name_of(35)] == "held by a reader"
        assert name_of(35) in releases(layout)
        check_whole(layout, [name_of(35)])
        reader.kill()
    with exclusive(layout):
        collect(layout, KEEP, 2, apply=True)
    assert name_of(35) not in releases(layout)


def test_a_release_is_held_by_whom_it_is_handed_to_and_let_go_by_close(layout: Layout) -> None:
    release = Release.open(layout.root, release=name_of(35))
    sent = pickle.dumps(release)
    release.close()
    with leases.unread(release.path) as free:
        assert free
    taken: Release = pickle.loads(sent)
    with leases.unread(release.path) as free:
        assert not free
    taken.close()


def test_a_release_that_goes_while_it_is_opened_is_an_error(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = leases.fcntl.flock

    def slow(descriptor: int, how: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(leases.fcntl, "flock", flock)
            collect(layout, KEEP, 2, apply=True)
        flock(descriptor, how)

    with monkeypatch.context() as patch:
        patch.setattr(leases.fcntl, "flock", slow)
        with pytest.raises(TimeloomError, match="was removed while it was opened"):
            Release.open(layout.root, release=name_of(35))


def test_a_reader_that_has_a_store_open_reads_on_and_sees_what_comes_later(layout: Layout) -> None:
    store = EmbeddingStore.open(layout.embedding_bucket("ct", STORE, 0))
    gone, stays, later = items_of(37)[0], items_of(39)[2], items_of(50)[0]
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, '.')\n"
        "from warehouse.layout import Layout; from flows.keeping.collect import collect\n"
        "from pipelines.config import KeepConfig; from tests.support.nights.many_releases import STORE, write_vectors\n"
        f"layout = Layout(Path({str(layout.root)!r}))\n"
        "collect(layout, KeepConfig(daily=2, weekly=0, monthly=0), 2, apply=True)\n"
        f"write_vectors(layout, STORE, [{later!r}])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
    assert store.get(gone).shape == (4,)
    assert store.get(stays).shape == (4,)
    assert store.get(later).shape == (4,)
    assert store.get_many([stays, later])[1].shape == (4,)
    with pytest.raises(KeyError):
        store.get(gone)
    close_stores()


def test_vectors_wait_for_the_run_that_was_killed(layout: Layout) -> None:
    (layout.work / "20240301T000000000000Z" / "release").mkdir(parents=True)
    before = files_of(layout)
    with exclusive(layout):
        done = collect(layout, KEEP, 2, apply=True, thorough=True)
    assert done.left == ["vectors stay until the run that was killed has been resumed"]
    assert {name for name in before if "embeddings" in name} <= set(files_of(layout))
    assert (layout.work / "20240301T000000000000Z" / "release").is_dir()


def test_it_removes_nothing_where_it_is_not_known_what_is_needed(layout: Layout) -> None:
    items = layout.releases / name_of(39) / "items" / "0000.parquet"
    items.write_bytes(items.read_bytes()[:-1] + b"x")
    with exclusive(layout), pytest.raises(TimeloomError, match="is damaged; run `timeloom repair`"):
        collect(layout, KEEP, 2, apply=True, thorough=True)
    assert EmbeddingStore.open(layout.embedding_bucket("ct", STORE, 0)).keys() == sorted(
        {key for night in range(37, 40) for key in items_of(night)}
    )
    close_stores()


def test_a_damaged_manifest_stops_it_before_anything_moves(layout: Layout) -> None:
    # The oldest is looked at last.
    manifest = layout.releases / name_of(34) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    before = files_of(layout)
    with exclusive(layout), pytest.raises(TimeloomError, match="damaged"):
        collect(layout, KEEP, 2, apply=True, thorough=True)
    assert files_of(layout) == before


def test_it_removes_nothing_where_current_leads_elsewhere(layout: Layout, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / name_of(39)
    shutil.copytree(layout.releases / name_of(39), elsewhere)
    layout.current.unlink()
    layout.current.symlink_to(elsewhere)
    before = files_of(layout)
    with exclusive(layout), pytest.raises(TimeloomError, match="`current` points at no release of this root"):
        collect(layout, KEEP, 2, apply=True, thorough=True)
    assert files_of(layout) == before


def test_stores_stay_where_it_is_not_known_which_are_configured(layout: Layout) -> None:
    keep = KeepConfig(daily=2, weekly=0, monthly=0)
    with exclusive(layout):
        found = collect(layout, keep, 2, None, apply=True, thorough=True)
    assert layout.embeddings("ct", OLD_STORE).is_dir()
    assert found.left == [
        "1 stores that no release names stay: which the configuration names is not known, as the weights of its "
        "encoders are not here"
    ]


def test_a_full_disk_is_no_damage_of_the_store(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    store = layout.embedding_bucket("ct", STORE, 0)
    before = store.read_bytes()
    monkeypatch.setattr(compact_store, "WRITER_MAP_BYTES", 4096 * 3)
    with pytest.raises(TimeloomError, match="cannot be written"):
        compact_store.compact(store, {*items_of(38), *items_of(39)})
    assert store.read_bytes() == before
    assert not list(store.parent.glob(".*.part"))


def test_it_runs_beside_no_night(layout: Layout) -> None:
    from flows.commands.gc import carry_out, read_kept

    kept = read_kept(layout.root, None, {})
    with exclusive(layout), pytest.raises(TimeloomError, match="another run is working"):
        carry_out(kept, apply=True)
    assert not carry_out(kept, apply=False).applied


def _killed_at(number: int, work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Carries `work` out until it changes the file system for that many times; whether it came so far."""
    left = number

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, counted(name))
        try:
            work()
        except Killed:
            return True
    return False


def test_a_kill_at_any_moment_leaves_what_stays_whole_and_the_next_one_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = KeepConfig(daily=2, weekly=0, monthly=0, logs=2)
    whole = make_root(tmp_path / "whole", range(4))
    wanted = Layout(tmp_path / "wanted" / "warehouse")
    shutil.copytree(whole.root.parent, wanted.root.parent, symlinks=True)
    collect(wanted, keep, 2, apply=True, thorough=True)
    expected = files_of(wanted).keys()
    for number in range(200):
        root = Layout(tmp_path / str(number) / "warehouse")
        shutil.copytree(whole.root.parent, root.root.parent, symlinks=True)
        killed = _killed_at(number, lambda at=root: collect(at, keep, 2, apply=True, thorough=True), monkeypatch)
        close_stores()
        check_whole(root, [name_of(2), name_of(3)])
        check_whole(root, releases(root))
        collect(root, keep, 2, apply=True, thorough=True)
        close_stores()
        assert files_of(root).keys() == expected, number
        assert not collected(root).exists()
        shutil.rmtree(root.root.parent)
        if not killed:
            break
    assert number > 20
