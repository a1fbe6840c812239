"""Which releases stay, and why. A release's id says when it was made, so no clock is asked."""

from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from warehouse.errors import REPAIR, TimeloomError
from warehouse.layout import Layout
from warehouse.manifest import Manifest, read_manifest
from warehouse.publish import current_release, made_at

if TYPE_CHECKING:
    from pipelines.config import KeepConfig


def released(layout: Layout) -> list[str]:
    """The ids of all releases that are there, the latest first."""
    if not layout.releases.is_dir():
        return []
    found = [(made_at(path.name), path.name) for path in layout.releases.iterdir() if path.is_dir()]
    # Releases of one second are numbered: .2 is before .10.
    named = [(moment, len(name), name) for moment, name in found if moment is not None]
    return [name for *_, name in sorted(named, reverse=True)]


def opened(root: Path, release: str | None) -> tuple[Layout, Manifest]:
    """A release of a root, by its id; the current one where none is given.

    Raises:
        TimeloomError: no such root or release, no release in it, or its manifest is damaged.
    """
    layout = Layout(root)
    if not root.is_dir():
        raise TimeloomError(f"there is no warehouse at {root}", "run `timeloom demo`, or give --root")
    if release is None:
        current = current_release(layout)
        if current is None:
            raise TimeloomError(f"{root} has no release yet", "run `timeloom run` or `timeloom demo`")
        return layout, read_manifest(current.manifest)
    if not (layout.releases / release).is_dir():
        known = released(layout)
        raise TimeloomError(
            f"there is no release {release}",
            remedy=f"the latest are {', '.join(known[:3])}; `timeloom status --releases` names all",
        )
    return layout, read_manifest(layout.releases / release / "manifest.json")


def lineage_of(layout: Layout, most: int) -> list[str]:
    """The current release and those that it goes back to, as far as they are there, the latest first.

    Args:
        most: so many at most.

    Raises:
        TimeloomError: there is none, a manifest is damaged, or `current` leads out of the releases.
    """
    current = current_release(layout)
    if current is None:
        raise TimeloomError(f"{layout.root.name} has no release yet", remedy="run `timeloom run` or `timeloom demo`")
    if current.path.parent != layout.releases.resolve():
        raise TimeloomError("`current` points at no release of this root", remedy=REPAIR)
    found: list[str] = []
    name: str | None = current.path.name
    while name is not None and name not in found and len(found) < most and (layout.releases / name).is_dir():
        found.append(name)
        name = read_manifest(layout.releases / name / "manifest.json").parent
    return found


def chosen(layout: Layout, keep: "KeepConfig", window: int) -> dict[str, str]:
    """The releases that stay, and why; readers apart.

    Args:
        window: releases that the gate compares the next one with.

    Raises:
        TimeloomError: `keep.releases` names one that is not there, or a manifest is damaged.
    """
    releases = released(layout)
    line = lineage_of(layout, max(window, 2))
    kept = dict(zip(line, ["current", "the one before it"], strict=False))
    kept |= dict.fromkeys(line[2:], "compared with the next night")
    for name in keep.releases:
        if name not in releases:
            raise TimeloomError(
                f"keep.releases names {name}, which {layout.root.name} does not have", remedy="take it out"
            )
        kept.setdefault(name, "named")
    periods: tuple[tuple[str, int, Callable[[datetime], object]], ...] = (
        ("daily", keep.daily, lambda moment: moment.date()),
        ("weekly", keep.weekly, lambda moment: moment.isocalendar()[:2]),
        ("monthly", keep.monthly, lambda moment: (moment.year, moment.month)),
    )
    for why, number, period in periods:
        for name in _latest_of_each(releases, number, period):
            kept.setdefault(name, why)
    return kept


def _latest_of_each(releases: Iterable[str], number: int, period: Callable[[datetime], object]) -> list[str]:
    found: dict[object, str] = {}
    for name in releases:
        moment = made_at(name)
        if moment is not None and len(found) < number:
            found.setdefault(period(moment), name)
        elif moment is not None and period(moment) not in found:
            break
    return list(found.values())
