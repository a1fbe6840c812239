"""Which slides of a tree are usable: each opened, planned and judged. Label, macro and thumbnail are never touched."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from functools import partial
from pathlib import Path
from typing import Any, get_args

import polars as pl

from extractors.crosswalk import references
from extractors.items import (
    BESIDE_FILES,
    OK,
    FoundItem,
    TimePrecision,
    VerdictError,
    identity_of,
    nobodys_item,
    unread_item,
)
from extractors.judging import judge_each
from extractors.wsi.files import file_inside, files_of, find_slides, names_of, not_listed, search
from extractors.wsi.focus import blurred_share
from extractors.wsi.ome import open_pyramid, stated_mpp
from extractors.wsi.plan import physical_mpp
from extractors.wsi.read import MAX_FAILED_TILES, SlideReader, read_slide_units, stamp_of
from extractors.wsi.settings import WsiSettings
from extractors.wsi.tiff import tiled_pages
from extractors.wsi.tissue import MARKER_COLOURS, MASK, MarkerColour
from warehouse.errors import RawFileChangedError
from warehouse.files import signature

__all__ = ["MODALITY", "find_slides", "index", "index_slides", "read_slide_units"]

MODALITY = "wsi"
SLIDES_A_WORKER = 8  # fewer are judged before another process has started


@dataclass(frozen=True)
class Limits:
    """The settings by which slides are judged, as `WsiSettings` has them."""

    failed_tiles: float = MAX_FAILED_TILES
    blurred_tiles: float = 1.0
    pen_tiles: float = 1.0
    marker_colours: tuple[MarkerColour, ...] = MARKER_COLOURS

    @classmethod
    def of(cls, settings: WsiSettings) -> "Limits":
        """The limits that a configuration sets; the order of its colours means nothing."""
        colours = tuple(colour for colour in MARKER_COLOURS if colour in settings.marker_colours)
        return cls(settings.max_failed_tiles, settings.max_blurred_tiles, settings.max_pen_tiles, colours)

    @property
    def every_ink(self) -> bool:
        """Whether all inks are looked for, as they are unless a site says otherwise."""
        return self.marker_colours == MARKER_COLOURS

    def verdict(self, pen_share: float, blurred_share: float) -> str:
        """A slide's verdict by the shares of its tiles."""
        if pen_share > self.pen_tiles:
            return "failed_pen_marks"
        return "failed_out_of_focus" if blurred_share > self.blurred_tiles else OK


def index(
    settings: WsiSettings,
    links: pl.DataFrame | None,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
    known: Sequence[FoundItem] = (),
) -> list[FoundItem]:
    """The modality's items, as `extractors.extractor.Extractor` says.

    By a crosswalk of paths one for each of its rows, judged, and one for each slide that it does not list, unopened;
    else one for each slide, judged, which the run ties by what its DICOM header says.

    Args:
        known: items of an earlier night; slides whose files stand as they did then are not opened.
    """
    root, crosswalk, limits = settings.path, settings.crosswalk, Limits.of(settings)
    found = search(root)
    beside = [unread_item(MODALITY, entry.path, BESIDE_FILES[entry.kind]) for entry in found.beside]
    if links is not None and crosswalk is not None and crosswalk.match == "path":
        manifest = links.rename({"match": "path", "subject_id": "raw_subject"})
        unlisted = not_listed(root, found.slides, set(manifest["path"].drop_nulls()))
        beside = [*(unread_item(MODALITY, path, "failed_no_subject") for path in unlisted), *beside]
        advance = None if progress is None else (lambda done: progress(done, len(manifest)))
        return index_slides(root, manifest, advance, workers=workers, limits=limits, known=known) + beside
    names = [names_of(root / path) for path in found.slides]
    untied = _untied(found.slides)
    if links is not None and crosswalk is not None:
        match = crosswalk.match
        named = pl.DataFrame({"match": references((each.get(match) for each in names), match)})
        untied = untied.with_columns(named.join(links, "match", how="left", maintain_order="left")["mpp"])
    advance = None if progress is None else (lambda done: progress(done, len(untied)))
    items = index_slides(root, untied, advance, workers=workers, limits=limits, tied=False, known=known)
    return [replace(item, names=each) for item, each in zip(items, names, strict=True)] + beside


def _untied(paths: list[str]) -> pl.DataFrame:
    """A manifest of slides of which the files alone are to be judged."""
    lacking = {"raw_subject": pl.String(), "time": pl.Datetime("us"), "available_time": pl.Datetime("us")}
    return pl.DataFrame({"path": paths}, schema={"path": pl.String}).with_columns(
        *(pl.lit(None, dtype).alias(name) for name, dtype in lacking.items()), pl.lit(None, pl.Float64).alias("mpp")
    )


def index_slides(
    root: Path,
    manifest: pl.DataFrame,
    progress: Callable[[int], None] | None = None,
    *,
    workers: int | None = None,
    limits: Limits = Limits(),
    tied: bool = True,
    known: Sequence[FoundItem] = (),
) -> list[FoundItem]:
    """One item per row of `manifest`, in its order, opened and judged, its tissue tiles counted.

    The time of a slide is the collection time that the manifest gives, never the scan date of the file. Without a
    column time_precision, a date, or midnight sharp, has day precision.

    Args:
        root: the folder that the manifest's paths are relative to.
        manifest: columns path, raw_subject, time, available_time, mpp (null: the file's own), and if at hand
            time_precision.
        progress: called with the number of slides that are done.
        workers: processes; this machine's cores if omitted.
        limits: what a slide is refused for, and which inks are looked for.
        tied: whether the manifest says whose they are, and when; one that says neither is then not usable.
        known: items that were found with the same limits; one whose files stand as they did is not judged again.

    Raises:
        RawFileChangedError: a slide is not the same before and after it was judged.
    """
    rows = list(manifest.iter_rows(named=True))
    judged = judge_each(
        rows,
        partial(_judged, root, limits),
        lambda row: (_path_of(row), _state(root, row)),
        known,
        workers=workers,
        a_worker=SLIDES_A_WORKER,
        progress=None if progress is None else (lambda done, _: progress(done)),
    )
    return [_tied(row, item, tied) for row, item in zip(rows, judged, strict=True)]


def _path_of(row: Mapping[str, Any]) -> str:
    return str(row["path"] or "")


def _mpp_of(row: Mapping[str, Any]) -> float | None:
    return None if row["mpp"] is None else float(row["mpp"])


def _state(root: Path, row: Mapping[str, Any]) -> str:
    """What tells that a slide's judgement stands: its files as they are, its manifest's mpp, and how tissue is told.

    Empty where there is no slide to judge.
    """
    try:
        files = files_of(file_inside(root, _path_of(row)))
        return json.dumps([MASK, _mpp_of(row), *(signature(part) for part in files)])
    except (OSError, VerdictError):
        return ""


def _tied(row: Mapping[str, Any], item: FoundItem, tied: bool) -> FoundItem:
    """A judged slide with what the manifest says of whose it is, and when."""
    collected, precision = _time(row["time"])
    if collected is not None and row.get("time_precision") in get_args(TimePrecision):
        precision = row["time_precision"]
    available, _ = _time(row["available_time"])
    verdict = item.geometry["judged"]
    if tied and verdict == OK and not row["raw_subject"]:
        verdict = "failed_no_subject"
    elif tied and verdict == OK and collected is None:
        verdict = "failed_no_time"
    return replace(
        item,
        raw_subject=None if row["raw_subject"] is None else str(row["raw_subject"]),
        time=collected,
        time_source="" if collected is None else "manifest",
        time_precision=precision,
        available_time=available,
        verdict=verdict,
    )


def _judged(root: Path, limits: Limits, row: Mapping[str, Any]) -> FoundItem:
    """A slide by its files alone."""
    relative, mpp = _path_of(row), _mpp_of(row)
    state = _state(root, row)
    geometry: dict[str, Any] = {}
    content = ""
    identity, units = identity_of([f"absent:{relative}"]), None
    try:
        path = file_inside(root, relative)
        files = files_of(path)
        content, stamp, _ = stamp_of(files)
        # A manifest's mpp changes the pixels that are read, so it is part of what the item is; so are inks.
        inks = [] if limits.every_ink else [f"marker_colours:{limits.marker_colours}"]
        identity = identity_of([content, f"mpp:{mpp}", *inks])
        if mpp is not None:
            geometry = {"mpp_x": mpp, "mpp_y": mpp, "mpp_source": "manifest"}
        geometry |= _geometry(path, mpp) | {"stamp": stamp, "max_failed_tiles": limits.failed_tiles, "mask": MASK}
        if not limits.every_ink:
            geometry["marker_colours"] = list(limits.marker_colours)
        reader = SlideReader(path, geometry)
        geometry |= {"reader": reader.how, "level": reader.plan.level, "extent": list(reader.plan.extent)}
        units = len(reader.plan)
        blurred, looked_at = blurred_share(reader)
        shares = {"pen_share": round(reader.plan.pen_share, 4), "blurred_share": round(blurred, 4)}
        geometry |= shares | {"focus_tiles": looked_at}
        verdict = limits.verdict(reader.plan.pen_share, blurred)
    except VerdictError as error:
        verdict = error.verdict
    except MemoryError:
        raise
    except Exception:  # whatever a damaged file makes a parser raise is the slide's verdict, not the index's end
        verdict = "failed_unreadable"
    if state != _state(root, row):
        raise RawFileChangedError("a file of the slides")
    return nobodys_item(
        modality=MODALITY,
        identity=identity,
        paths=(relative,),
        verdict=verdict,
        units_expected=units,
        geometry=geometry | {"state": state, "judged": verdict},
        content=content,
    )


def _time(value: Any) -> tuple[datetime | None, TimePrecision]:
    if isinstance(value, datetime):
        precise: TimePrecision = "us" if value.microsecond else "s"
        return value.replace(tzinfo=None), "day" if value.time() == time() else precise
    if isinstance(value, date):
        return datetime.combine(value, time()), "day"
    return None, "day"


def _geometry(path: Path, mpp: float | None) -> dict[str, Any]:
    stated = stated_mpp(tiled_pages(path))  # what declares more than it holds is not even opened
    with open_pyramid(path) as slide:
        width, height = slide.dimensions
        x, y = physical_mpp(slide, mpp, stated)
        return {
            "width": width,
            "height": height,
            "levels": slide.level_count,
            "mpp_x": x,
            "mpp_y": y,
            "mpp_source": "file" if mpp is None else "manifest",
        }
