"""A night that is killed, at points and at random, one process of it or all: the last release stays, the next night
ends as an undisturbed one does. With `-s -m proof` the kills are counted.

What LMDB does inside a store is killed in tests/warehouse/embeddings/test_store.py.
"""

import random
import signal
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.nights.struck import Night, StruckSite, first_night

# Calls that make something visible, or take it away; and what publishes.
VISIBLE = ("replace ", "rename ", "link ", "symlink ", "unlink ")
PUBLISHES = ("replace /warehouse/lineage/#.json", "replace /warehouse/work/#/publishing.json")
PUBLISHES += ("rename /warehouse/releases/#", "symlink /warehouse/.current.#", "replace /warehouse/current")
PARTS, SEEDS, KILLS = 12, 6, 8
STOPPED = "stopped; run the same command again and it resumes"


@dataclass
class Calm:
    """A hospital before its second night, and that night undisturbed: its site, its seconds, its points in order."""

    before: StruckSite
    after: StruckSite
    seconds: float
    points: Counter[str]

    def chosen(self) -> list[str]:
        """A point of each call and kind of place, the first of each, in their order; every one that publishes."""
        found: dict[str, str] = {}
        for point in self.points:
            call, path = point.split(" ")
            folders = path.split("/")[1:]
            depth = 4 if "release" in folders else 3 if "tasks" in folders else 9
            outside = call == "fsync" and "release" not in folders
            if point.startswith(VISIBLE) or outside:
                found.setdefault(f"{call} {'/'.join(folders[:depth])}", point)
        return [point for point in self.points if point in found.values() or point in PUBLISHES]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    folder = tmp_path_factory.mktemp("kills")
    before = first_night(folder)
    after = before.copy(folder / "calm")
    began = time.monotonic()
    night = after.begin()
    assert night.ended() == 2, night.said
    seconds = time.monotonic() - began
    after.is_as(after)
    assert after.readable() != before.readable()
    return Calm(before, after, seconds, night.points)


class Struck:
    """A site that is struck again and again, each time going on from where it was left; a new copy of it where a night
    was faster than what was to strike it.

    Attributes:
        kills: how often it was killed.
    """

    def __init__(self, calm: Calm, folder: Path) -> None:
        self.calm, self.folder, self.copies, self.kills = calm, folder, 0, 0
        self._anew()

    def _anew(self) -> None:
        self.copies += 1
        self.site = self.calm.before.copy(self.folder / str(self.copies))
        self.known = {self.site.readable()}

    def killed(self, night: Night) -> None:
        """The night was killed: what was published is there, whole, and nothing else is."""
        assert night.process.returncode == -signal.SIGKILL
        self.kills += 1
        release = self.site.readable()
        if release not in self.known:
            assert self.site.manifest.content_hash == self.calm.after.manifest.content_hash

    def end(self) -> None:
        """The next night ends as the undisturbed one did."""
        self.site.run()
        self.site.is_as(self.calm.after)

    def at(self, points: Iterable[str], when: str = "before") -> None:
        """Kills a night at each of these points, the last of which ends undisturbed."""
        for point in points:
            night = self.site.begin(f"{point}|1|{when}|group")
            code = night.ended()
            if night.struck:
                self.killed(night)
            else:
                assert code == 2, night.said
                self.site.is_as(self.calm.after)
                self._anew()
        self.end()

    def in_between(self, dice: random.Random, kills: int) -> None:
        """Kills so many nights at moments that are drawn from all of an undisturbed one."""
        while self.kills < kills:
            night = self.site.begin()
            time.sleep(dice.uniform(0.0, self.calm.seconds))
            night.strike(signal.SIGKILL)
            if night.ended() == -signal.SIGKILL:
                self.killed(night)
            else:
                self.site.is_as(self.calm.after)
                self._anew()
        self.end()


def test_a_night_killed_where_it_publishes(calm: Calm, tmp_path: Path) -> None:
    struck = Struck(calm, tmp_path)
    struck.at(PUBLISHES[1:4])
    assert struck.kills == 3


def test_a_night_killed_at_random(calm: Calm, tmp_path: Path) -> None:
    struck = Struck(calm, tmp_path)
    struck.in_between(random.Random(3), 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_night_that_is_told_to_end_says_a_line_and_leaves_nobody(
    number: signal.Signals, calm: Calm, tmp_path: Path
) -> None:
    struck = Struck(calm, tmp_path)
    night = struck.site.begin()
    _wait_for(night, "replace /warehouse/work/#/release/data/#.parquet")
    night.process.send_signal(number)
    assert night.ended() == 1
    assert _said(night) == [STOPPED]
    assert struck.site.readable() in struck.known
    struck.end()


def test_a_worker_that_is_killed_is_a_line(calm: Calm, tmp_path: Path) -> None:
    struck = Struck(calm, tmp_path)
    night = struck.site.begin("replace /warehouse/work/#/release/data/#.parquet|1|before|process")
    assert night.ended() == 1
    assert night.struck
    (line,) = _said(night)
    assert line.startswith(
        "timeloom: a worker process died, perhaps for lack of memory; run again with fewer workers; it resumes (log: "
    )
    assert struck.site.readable() in struck.known
    struck.end()


# In `make proof`: a minute each.
@pytest.mark.proof
@pytest.mark.parametrize("part", range(PARTS))
def test_kills_at_every_point(part: int, calm: Calm, tmp_path: Path) -> None:
    points = calm.chosen()[part::PARTS]
    struck = Struck(calm, tmp_path)
    struck.at(points)
    print(f"{struck.kills} kills at {len(points)} points")
    assert struck.kills > len(points) // 2


@pytest.mark.proof
def test_kills_right_after_what_publishes(calm: Calm, tmp_path: Path) -> None:
    kills = 0
    for number, point in enumerate(PUBLISHES):
        struck = Struck(calm, tmp_path / str(number))
        struck.at([point], "after")
        kills += struck.kills
    print(f"{kills} kills")
    assert kills == len(PUBLISHES)


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(SEEDS))
def test_kills_at_random(seed: int, calm: Calm, tmp_path: Path) -> None:
    struck = Struck(calm, tmp_path)
    struck.in_between(random.Random(seed), KILLS)
    print(f"{struck.kills} kills")


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(3))
def test_workers_killed_at_random(seed: int, calm: Calm, tmp_path: Path) -> None:
    dice = random.Random(seed)
    struck = Struck(calm, tmp_path)
    for _ in range(4):
        night = struck.site.begin()
        time.sleep(dice.uniform(0.3, 1.0) * calm.seconds)
        for worker in night.workers[:1]:
            worker.kill()
        code = night.ended()
        struck.site.readable()
        if code == 2:  # it had nothing left to do
            struck.site.is_as(calm.after)
            struck._anew()
        else:
            (line,) = _said(night)
            assert (code, "a worker process died" in line) == (1, True), line
    struck.end()


def _wait_for(night: Night, point: str) -> None:
    """Until a night has come to a point."""
    while night.process.poll() is None and not night.points[point]:
        time.sleep(0.02)


def _said(night: Night) -> list[str]:
    """What a night said; with --json that is one line where it fails."""
    return (night.notes / "said").read_text(encoding="utf-8").splitlines()
