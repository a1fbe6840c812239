"""Thirty nights of a row each, and a collection after each: the disk is bounded. With -s the nights are printed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest

from flows.runs import record
from tests.support.nights.many_releases import disk
from tests.support.nights.site import Site, site_of_tables
from validation.verify import verify_release
from warehouse import publish
from warehouse.layout import Layout

FIRST = datetime(2024, 3, 1, 2, tzinfo=UTC)


class Clock(datetime):
    """The clock of the night that is going on."""

    moment = FIRST

    @classmethod
    def now(cls, tz: object = None) -> Self:  # type: ignore[override]
        return cls.fromtimestamp(cls.moment.timestamp(), UTC)


@pytest.fixture
def site(tmp_path: Path, export: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    for module in (publish, record):
        monkeypatch.setattr(module, "datetime", Clock)
    return site_of_tables(tmp_path, export)


def new_row(site: Site, night: int) -> None:
    """A lab result of tonight."""
    labs = site.folder / "tables" / "labs.csv"
    first = labs.read_text(encoding="utf-8").splitlines()[1].split(",")
    with labs.open("a", encoding="utf-8") as file:
        file.write(",".join([f"L-new{night}", *first[1:]]) + "\n")


def night_of(site: Site, night: int) -> int:
    """A night with a new row; the bytes of the root after it."""
    Clock.moment = FIRST + timedelta(days=night)
    if night:
        new_row(site, night)
    assert site.night().published
    return disk(site.layout)


def unshared(layout: Layout, release: str) -> int:
    """Bytes of a release that no other shares."""
    return sum(
        path.stat().st_size
        for path in (layout.releases / release).rglob("*")
        if path.is_file() and path.stat().st_nlink == 1
    )


def test_a_night_of_one_row_takes_little_disk_and_ends_by_collecting(site: Site) -> None:
    site.config |= {"keep": {"daily": 1, "weekly": 0, "monthly": 0}, "limits": {"unparsable_times": 0.01, "window": 1}}
    sizes = [night_of(site, night) for night in range(4)]
    names = sorted(path.name for path in site.layout.releases.iterdir())
    assert names == ["2024-03-03T02-00-00Z", "2024-03-04T02-00-00Z"]
    # Of 1.7 MB that a release has; before, Data Docs alone were 4.7 MB of each.
    assert unshared(site.layout, names[1]) < 1_500_000
    assert abs(sizes[3] - sizes[2]) < 20_000
    assert len(list(site.layout.lineage.iterdir())) == 4


# Thirty nights take minutes.
@pytest.mark.proof
def test_thirty_nights_take_bounded_disk(site: Site) -> None:
    site.config |= {"keep": {"daily": 7, "weekly": 4, "monthly": 12}}
    lines = []
    for night in range(30):
        size = night_of(site, night)
        releases = sorted(path.name for path in site.layout.releases.iterdir())
        lines.append((night + 1, len(releases), size / 1e6, unshared(site.layout, releases[-1]) / 1e6))
        print("night {}: {} releases, {:.1f} MB, of tonight alone {:.1f} MB".format(*lines[-1]))
    # From the eighth night on a release goes for each that comes, but for the last of weeks and months.
    assert lines[-1][1] <= 7 + 4 + 2
    assert lines[-1][2] < lines[9][2] + 5 * 1.3
    assert max(count for _, count, *_ in lines) <= 13
    wrong = [finding for finding in verify_release(site.layout.root) if not finding.ok]
    assert not wrong
