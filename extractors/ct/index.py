"""CT volumes from a tree of DICOM files, multi-frame objects and archives: `index_ct` reads headers only.

A DICOM series is not a volume. Slices are grouped by series, frame of reference, matrix, orientation, spacing and
acquisition, ordered by position along their normal (never by InstanceNumber), and the group is a volume only if
`extractors.ct.geometry` finds it whole. The rules are listed in docs/verdicts.md. `extractors.ct.read` reads pixels.
"""

import multiprocessing
import os
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from extractors.ct.geometry import SliceOrder, judge, same_plane
from extractors.ct.header import Findings, SliceHeader, examine
from extractors.ct.read import read_ct_units, read_volume
from extractors.ct.reconstructions import ReconstructionConfig, Volume, choose
from extractors.ct.settings import CT, CtSettings
from extractors.ct.time import earliest
from extractors.dicom.files import MEMBER, SINGLE, walk
from extractors.items import OK, FoundItem, VerdictError, foreign_item, foreign_number, identity_of
from warehouse.errors import TimeloomError

__all__ = ["index", "index_ct", "read_ct_units", "read_volume"]

MODALITY = "ct"
# Kernels as vendors name them. The tag is free text: anything else stays out of the warehouse.
_KERNEL = re.compile(
    r"[A-Z]{1,3}\d{2,3}[a-z]?(?:\\\d)?|(?:STANDARD|SOFT|SMOOTH|SHARP|EDGE|DETAIL|BONE|BONEPLUS|LUNG|CHEST|ULTRA)", re.I
)
_FILES_A_TASK = 128
_TASKS_AHEAD = 4  # for each worker
_ACQUISITION_RANKS = 3  # of the tags that tell times, those that tell an acquisition's


def index(
    settings: CtSettings, links: object, progress: Callable[[int, int], None] | None, workers: int | None
) -> list[FoundItem]:
    """The modality's items, as `extractors.extractor.Extractor` says; `links` are tied to patients by the run."""
    advance = None if progress is None else (lambda done: progress(done, 0))
    return index_ct(settings.path, advance, settings.timezone, workers, settings.reconstruction)


def index_ct(
    root: Path,
    progress: Callable[[int], None] | None = None,
    site_timezone: str | None = None,
    workers: int | None = 1,
    reconstruction: ReconstructionConfig | None = None,
) -> list[FoundItem]:
    """Every CT volume under `root`, and every file that is none, with a verdict. Reads headers, no pixels.

    Files are known by content: names and extensions play no part. Volumes come with their paths in slice order, from
    feet to head. Files that are not CT become one refused item a series; files that are no DICOM, one item in all.

    Args:
        root: the folder to walk; links to folders are not followed.
        progress: called with the number of files read so far.
        site_timezone: an IANA name. Times stay the scanner's wall clock, as the EHR's are local too; where the scanner
            gives its UTC offset and this is set, they are converted to the site's wall clock.
        workers: processes, None for this machine's cores; the result is the same whatever their number.
        reconstruction: which reconstruction of an acquisition to keep; the others are refused.

    Raises:
        TimeloomError: a worker process was killed.
    """
    slices: list[SliceHeader] = []
    foreign: list[str] = []
    count = 0
    for findings in _findings(root, site_timezone, workers or os.cpu_count() or 1):
        slices += findings.slices
        foreign += findings.foreign
        count += findings.files
        if progress is not None:
            progress(count)
    items = items_of(adopted(slices), reconstruction or ReconstructionConfig())
    if foreign:
        items.append(foreign_item(MODALITY, CT.foreign, len(foreign), sum(map(foreign_number, foreign))))
    return sorted(items, key=lambda item: (item.paths, item.identity))


def items_of(slices: Iterable[SliceHeader], reconstruction: ReconstructionConfig) -> list[FoundItem]:
    """The items of slices, in whatever order they come: of a tree's, or of all that are of one series or one study."""
    ordered = sorted(slices, key=lambda found: (found.path, found.frame or 0))
    items = [*_refused(ordered), *_volumes(ordered, reconstruction)]
    return sorted(items, key=lambda item: (item.paths, item.identity))


def adopted(slices: Sequence[SliceHeader]) -> list[SliceHeader]:
    """Slices of whole folders, of which those that were cut short before their series UID have an owner: the only
    series beside them."""
    folders: dict[str, set[str]] = defaultdict(set)
    for found in slices:
        if found.verdict == OK:
            folders[_folder(found)].add(series_of(found))
    return [
        replace(found, owner=_only(folders[_folder(found)]))
        if found.verdict.startswith("failed_") and not found.series
        else found
        for found in slices
    ]


def _only(names: set[str]) -> str:
    return next(iter(names)) if len(names) == 1 else ""


def series_of(found: SliceHeader) -> str:
    """What slices share that are judged together."""
    if found.verdict == OK:
        # Without a series UID they are no series of one another, unless study and folder are the same.
        return found.series or f"{found.study}\n{_folder(found)}"
    return found.series or found.owner or found.path


def _findings(root: Path, site_timezone: str | None, workers: int) -> Iterator[Findings]:
    """What the tree's files are, in the order of the walk. A few are read here: processes take a second to start."""
    paths = walk(root)
    tasks = iter(lambda: list(islice(paths, _FILES_A_TASK)), [])
    first = list(islice(tasks, _TASKS_AHEAD if workers > 1 else 0))
    if len(first) < _TASKS_AHEAD:
        yield from (examine(root, task, site_timezone) for task in chain(first, tasks))
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        ahead: deque[Future[Findings]] = deque()
        try:
            for task in chain(first, tasks):
                ahead.append(pool.submit(examine, root, task, site_timezone))
                if len(ahead) >= _TASKS_AHEAD * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            raise TimeloomError(
                "a process that reads DICOM headers was killed", remedy="give the run more memory or fewer workers"
            ) from error


def _item(
    slices: Sequence[SliceHeader],
    verdict: str,
    identity: str,
    units: int | None,
    geometry: dict[str, Any],
) -> FoundItem:
    subjects = {found.subject for found in slices if found.subject}
    moment = earliest(found.moments for found in slices)
    if len(subjects) > 1 and not verdict.startswith("refused_"):
        verdict = "failed_mixed_subjects"
    elif verdict == OK and not all(found.subject for found in slices):
        verdict = "failed_no_subject"
    elif verdict == OK and moment is None:
        verdict = "failed_no_time"
    if moment is not None and moment.utc_offset_minutes is not None:
        geometry = {**geometry, "utc_offset_minutes": moment.utc_offset_minutes}
    return FoundItem(
        modality=MODALITY,
        raw_subject=subjects.pop() if len(subjects) == 1 else None,
        identity=identity,
        paths=_paths(slices),
        time=moment.time if moment else None,
        time_source=moment.source if moment else "",
        time_precision=moment.precision if moment else "day",
        available_time=None,
        verdict=verdict,
        units_expected=units,
        geometry=geometry,
        content=identity_of(f"{found.pixels}:{found.frame}" for found in slices) if verdict == OK else "",
    )


def _identity(slices: Iterable[SliceHeader]) -> str:
    return identity_of(
        f"{found.instance}:{found.fingerprint or found.path}" + ("" if found.frame is None else f":{found.frame}")
        for found in slices
    )


def _paths(slices: Sequence[SliceHeader]) -> tuple[str, ...]:
    """Each file once: frames of one object share it."""
    return tuple(dict.fromkeys(found.path for found in slices))


def _refused(slices: Sequence[SliceHeader]) -> Iterator[FoundItem]:
    """One item per series and kind of refusal."""
    groups: dict[tuple[str, str], list[SliceHeader]] = defaultdict(list)
    for found in slices:
        if found.verdict.startswith("refused_"):
            groups[series_of(found), found.verdict].append(found)
    for (_, verdict), members in groups.items():
        yield _item(members, verdict, _identity(members), None, {"files": len(_paths(members))})


def _volumes(slices: Sequence[SliceHeader], reconstruction: ReconstructionConfig) -> Iterator[FoundItem]:
    """One item per volume; a damaged file spoils the volumes that it belongs to, or is an item of its own."""
    series: dict[str, list[SliceHeader]] = defaultdict(list)
    damaged: dict[str, list[SliceHeader]] = defaultdict(list)
    for found in slices:
        if found.verdict == OK:
            series[series_of(found)].append(found)
        elif found.verdict.startswith("failed_"):
            damaged[series_of(found)].append(found)
    for owner, members in damaged.items():
        if owner not in series:
            verdict = min(found.verdict for found in members)
            yield _item(members, verdict, _identity(members), None, {"files": len(_paths(members))})
    usable: list[Volume] = []
    for owner, members in series.items():
        for group in _groups(members):
            item, volume = _volume(group, damaged.get(owner, []))
            if volume is None:
                yield item
            else:
                usable.append(volume)
    yield from choose(usable, reconstruction)


def _folder(found: SliceHeader) -> str:
    return found.path.removesuffix(MEMBER + SINGLE).rpartition("/")[0]


def _groups(slices: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """Slices of one series in one plane and one acquisition, each instance once.

    Sequential scanners number each table position as an acquisition of its own: where no acquisition alone could be a
    volume, they are judged together.
    """
    planes: list[list[SliceHeader]] = []
    instances: set[tuple[str, str, int | None]] = set()
    for found in slices:
        if (found.instance, found.fingerprint, found.frame) in instances:
            continue
        instances.add((found.instance, found.fingerprint, found.frame))
        for members in planes:
            if members[0].key == found.key and same_plane(_array(members[0].plane), _array(found.plane)):
                members.append(found)
                break
        else:
            planes.append([found])
    groups: list[list[SliceHeader]] = []
    for members in planes:
        acquisitions: dict[str, list[SliceHeader]] = defaultdict(list)
        for found in members:
            acquisitions[found.acquisition].append(found)
        single = all(len(part) <= 3 for part in acquisitions.values())
        groups += [members] if single else list(acquisitions.values())
    return groups


def _array(value: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64]:
    if value is None:
        raise VerdictError("failed_missing_geometry")
    return value


def _volume(slices: Sequence[SliceHeader], damaged: Sequence[SliceHeader]) -> tuple[FoundItem, Volume | None]:
    """A group's item, and where it is usable what tells its acquisition."""
    first = slices[0]
    plane = _array(first.plane)
    positions = np.stack([_array(found.position) for found in slices])
    judgement = judge(plane[:6], positions)
    ordered = [slices[index] for index in judgement.order]
    verdict = min(found.verdict for found in damaged) if damaged else judgement.verdict
    geometry: dict[str, Any] = {
        "rows": int(first.key[1]),
        "columns": int(first.key[2]),
        "slices": len(slices),
        "spacing_mm": [round(float(value), 6) for value in plane[6:]],
        "gap_mm": judgement.gap,
        "thickness_mm": first.thickness,
        "kernel": first.kernel if _KERNEL.fullmatch(first.kernel) else "",
    }
    identity = _identity([*ordered, *damaged])
    item = _item([*ordered, *damaged], verdict, identity, len(slices), geometry)
    if item.verdict != OK:
        return item, None
    geometry = {**item.geometry, **_reading(ordered)}
    item = _item(ordered, verdict, identity, len(slices), geometry)
    return item, _acquisition(ordered, item, judgement)


def _reading(ordered: Sequence[SliceHeader]) -> dict[str, Any]:
    """What the reader needs besides paths: how each file was, and which frame of which file each slice is."""
    files = {found.path: found.stamp for found in ordered}
    reading: dict[str, Any] = {"stamps": list(files.values())}
    if any(found.frame is not None for found in ordered):
        numbers = {path: number for number, path in enumerate(files)}
        reading["frames"] = [[numbers[found.path], found.frame or 0] for found in ordered]
    return reading


def _acquisition(ordered: Sequence[SliceHeader], item: FoundItem, judgement: SliceOrder) -> Volume:
    times = [
        moment.time
        for found in ordered
        for moment in found.moments
        if moment.rank < _ACQUISITION_RANKS and moment.precision != "day"
    ]
    return Volume(
        item=item,
        study=ordered[0].study,
        frame_of_reference=ordered[0].key[0],
        acquisitions=frozenset(found.acquisition for found in ordered if found.acquisition),
        times=(min(times), max(times)) if times else None,
        extent=judgement.extent,
        kernel=ordered[0].kernel,
        thickness=ordered[0].thickness,
    )
