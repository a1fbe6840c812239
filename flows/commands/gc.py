"""`timeloom gc`: which releases stay, what goes, and how much disk that gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.keeping.choice import released
from flows.keeping.collect import KINDS, MEGABYTE, NO_STORES, Collection, Stores, collect, stores_of
from flows.runs.paths import local_folder, root_of
from pipelines.config import KeepConfig, load_config
from pipelines.limits import LimitsConfig
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.publish import complete_publication, exclusive


@dataclass(frozen=True)
class Kept:
    """What is collected by: a root, and what its configuration says of it.

    Attributes:
        window: releases that the gate compares the next night with.
        stores: by modality, stores that the configuration names; None where its weights are not at hand.
    """

    layout: Layout
    keep: KeepConfig
    window: int
    stores: Stores | None


def read_kept(place: Path, root: Path | None, changes: Mapping[str, int | None]) -> Kept:
    """What to collect by, of a root or of a run's configuration.

    Args:
        place: the folder of a warehouse, or the YAML of its runs.
        root: the warehouse, where the YAML does not name it.
        changes: keys of `keep` that are given instead of the configuration's.

    Raises:
        TimeloomError: there is no such folder or file, or the configuration is wrong.
    """
    given_place = local_folder(place, "ROOT")
    if not given_place.exists():
        raise TimeloomError(f"there is nothing at {given_place}", remedy="give a warehouse, or the YAML of its runs")
    config = None if given_place.is_dir() else load_config(place)
    folder = given_place if config is None else root_of(config, root)
    layout = Layout(folder)
    if not layout.releases.is_dir():
        raise TimeloomError(f"there is no warehouse with releases at {folder}", remedy="give its folder")
    keep = (config.keep if config else None) or KeepConfig()
    given = {key: value for key, value in changes.items() if value is not None}
    return Kept(
        layout,
        keep.model_copy(update=given),
        (config.limits if config else LimitsConfig()).window,
        stores_of(config) if config else NO_STORES,
    )


def carry_out(kept: Kept, *, apply: bool) -> Collection:
    """Looks at what nobody needs, or removes it.

    Raises:
        TimeloomError: a run is at work on the root, or it is not known what is needed, as a file is damaged.
    """
    if not apply:
        return collect(kept.layout, kept.keep, kept.window, kept.stores, thorough=True)
    with exclusive(kept.layout):
        complete_publication(kept.layout)
        return collect(kept.layout, kept.keep, kept.window, kept.stores, apply=True, thorough=True)


def described(collection: Collection) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "applied": collection.applied,
        "bytes": collection.bytes,
        "kept": collection.kept,
        "gone": [vars(part) for part in collection.gone],
        "left": collection.left,
    }


def print_collection(collection: Collection, kept: Kept, say: Callable[[str], None]) -> None:
    """The same for a person."""
    went = {part.name: part for part in collection.gone if part.kind == "release"}
    for name in sorted({*released(kept.layout), *went}):
        if name in went:
            say(f"{name} {'went' if collection.applied else 'goes'}: {went[name].bytes / MEGABYTE:.1f} MB")
        else:
            say(f"{name} stays: {collection.kept.get(name, '')}")
    for kind, what in KINDS.items():
        parts = [part for part in collection.gone if part.kind == kind]
        if kind != "release" and parts:
            size = sum(part.bytes for part in parts) / MEGABYTE
            say(f"{sum(part.number for part in parts)} {what}: {size:.1f} MB")
    for line in collection.left:
        say(line)
    say(collection.line())
    if not collection.applied and collection.gone:
        say("nothing was removed: --yes removes it")
