"""CT volumes from a tree of DICOM files, multi-frame objects, archives and NIfTI: of DICOM only headers are read.

A NIfTI is a volume (`extractors.ct.nifti`). A DICOM series is not one. Slices are grouped by series, frame of
reference, matrix, orientation and spacing, and parted into phases where places are taken twice
(`extractors.ct.phases`). They are ordered by position along their normal, never by InstanceNumber, and a group is a
volume only if `extractors.ct.geometry` finds it whole. The rules are listed in docs/verdicts.md.
`extractors.ct.read` reads pixels.
"""

import multiprocessing
import os
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from extractors.ct.copies import distinct
from extractors.ct.geometry import GeometryRule, SliceOrder, oblique, square, squared_shape
from extractors.ct.header import Findings, Found, SliceHeader, examine
from extractors.ct.nifti import NiftiConfig, NiftiVolume, nifti_items, with_near_copies
from extractors.ct.phases import array, judged, volumes_of
from extractors.ct.read import read_ct_units, read_volume
from extractors.ct.reconstructions import ReconstructionConfig, Volume, choose
from extractors.ct.settings import CT, CtSettings
from extractors.dicom.files import MEMBER, SINGLE
from extractors.dicom.time import earliest
from extractors.items import BESIDE_FILES, OK, FoundItem, foreign_item, foreign_number, identity_of
from extractors.trees import walk
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
    return index_ct(
        settings.path,
        advance,
        settings.timezone,
        workers,
        settings.reconstruction,
        geometry=settings.geometry,
        tied_elsewhere=settings.crosswalk is not None,
        nifti=settings.nifti,
    )


def index_ct(
    root: Path,
    progress: Callable[[int], None] | None = None,
    site_timezone: str | None = None,
    workers: int | None = 1,
    reconstruction: ReconstructionConfig | None = None,
    *,
    geometry: GeometryRule = "slices",
    tied_elsewhere: bool = False,
    nifti: NiftiConfig | None = None,
) -> list[FoundItem]:
    """Every CT volume under `root`, and every file that is none, with a verdict. Reads headers, and pixels of copies
    and of NIfTI.

    Files are known by content: names and extensions play no part. Volumes come with their paths in slice order, from
    feet to head. Files that are not CT become one refused item a series; files that are neither DICOM nor NIfTI, one
    item in all.

    Args:
        root: the folder to walk; links to folders are not followed.
        progress: called with the number of files read so far.
        site_timezone: an IANA name. Times stay the scanner's wall clock, as the EHR's are local too; where the scanner
            gives its UTC offset and this is set, they are converted to the site's wall clock.
        workers: processes, None for this machine's cores; the result is the same whatever their number.
        reconstruction: which reconstruction of an acquisition to keep; the others are refused.
        geometry: what may be a volume, see `extractors.ct.settings.CtSettings`.
        tied_elsewhere: a crosswalk gives subjects, and may give times: an item that has none is not refused for it.
        nifti: how NIfTI is judged.

    Raises:
        TimeloomError: a worker process was killed.
    """
    found: list[Found] = []
    foreign: list[str] = []
    count = 0
    for findings in _findings(root, site_timezone, workers or os.cpu_count() or 1):
        found += findings.slices
        foreign += findings.foreign
        count += findings.files
        if progress is not None:
            progress(count)
    rules = Rules(root, geometry, tied_elsewhere, reconstruction or ReconstructionConfig(), nifti or NiftiConfig())
    items = items_of(beside(found), rules)
    if foreign:
        items.append(foreign_item(MODALITY, CT.foreign, len(foreign), sum(map(foreign_number, foreign))))
    return sorted(items, key=lambda item: (item.paths, item.identity))


@dataclass(frozen=True)
class Rules:
    """How slices are judged, see `index_ct`, and the folder that their paths are relative to."""

    root: Path
    geometry: GeometryRule
    tied_elsewhere: bool
    reconstruction: ReconstructionConfig
    nifti: NiftiConfig


def rules_of(settings: CtSettings) -> Rules:
    """The rules of a run's settings."""
    tied = settings.crosswalk is not None
    return Rules(settings.path, settings.geometry, tied, settings.reconstruction, settings.nifti)


def items_of(found: Iterable[Found], rules: Rules) -> list[FoundItem]:
    """The items of slices and volumes, in whatever order they come: of a tree's, or of all that are of one series or
    one study."""
    slices, volumes = _apart(found)
    ordered = sorted(slices, key=lambda header: (header.path, header.frame or 0))
    items = [*_refused(ordered, rules), *_volumes(ordered, rules)]
    items += nifti_items(MODALITY, volumes, rules.nifti, rules.geometry)
    return sorted(items, key=lambda item: (item.paths, item.identity))


def _apart(found: Iterable[Found]) -> tuple[list[SliceHeader], list[NiftiVolume]]:
    slices: list[SliceHeader] = []
    volumes: list[NiftiVolume] = []
    for each in found:
        if isinstance(each, SliceHeader):
            slices.append(each)
        else:
            volumes.append(each)
    return slices, volumes


def beside(found: Sequence[Found]) -> list[Found]:
    """What whole folders hold, slices first, each with what it owes to the others of its folder."""
    slices, volumes = _apart(found)
    return [*adopted(slices), *with_near_copies(volumes)]


def adopted(slices: Sequence[SliceHeader]) -> list[SliceHeader]:
    """Slices of whole folders, of which those that were cut short before their series UID have an owner: the only
    series beside them. What a folder hides that cannot be listed, nobody knows."""
    folders: dict[str, set[str]] = defaultdict(set)
    for found in slices:
        if found.verdict == OK:
            folders[_folder(found)].add(series_of(found))
    return [
        replace(found, owner=_only(folders[_folder(found)]))
        if found.verdict.startswith("failed_") and not found.series and found.verdict not in BESIDE_FILES.values()
        else found
        for found in slices
    ]


def _only(names: set[str]) -> str:
    return next(iter(names)) if len(names) == 1 else ""


def series_of(found: Found) -> str:
    """What slices share that are judged together; a volume is alone."""
    if isinstance(found, NiftiVolume):
        return found.path
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
    rules: Rules,
) -> FoundItem:
    subjects = {found.subject for found in slices if found.subject}
    issuers = {found.issuer for found in slices if found.issuer}
    moment = earliest(found.moments for found in slices)
    everyones = all(found.subject for found in slices)
    if max(len(subjects), len(issuers)) > 1 and not verdict.startswith("refused_"):
        verdict = "failed_mixed_subjects"
    elif verdict == OK and not everyones and not rules.tied_elsewhere:
        verdict = "failed_no_subject"
    elif verdict == OK and moment is None and not rules.tied_elsewhere:
        verdict = "failed_no_time"
    if moment is not None and moment.utc_offset_minutes is not None:
        geometry = {**geometry, "utc_offset_minutes": moment.utc_offset_minutes}
    return FoundItem(
        modality=MODALITY,
        raw_subject=subjects.pop() if len(subjects) == 1 and (everyones or verdict != OK) else None,
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
        issuer=issuers.pop() if len(issuers) == 1 else "",
        names=_names(slices),
    )


def _names(slices: Sequence[SliceHeader]) -> dict[str, str]:
    """What a crosswalk may match an item by, where all its slices say the same."""
    matched = {
        "study_uid": {found.study for found in slices},
        "series_uid": {found.series for found in slices},
        "accession_number": {found.accession for found in slices},
        "path": {_folder(found) for found in slices},
    }
    return {name: next(iter(values)) for name, values in matched.items() if len(values) == 1}


def _identity(slices: Iterable[SliceHeader], others: Iterable[str] = ()) -> str:
    """Of slices, and of what else an item is known by: how its pixels are read."""
    parts = (
        f"{found.instance}:{found.fingerprint or found.path}" + ("" if found.frame is None else f":{found.frame}")
        for found in slices
    )
    return identity_of(chain(parts, others))


def _paths(slices: Sequence[SliceHeader]) -> tuple[str, ...]:
    """Each file once: frames of one object share it."""
    return tuple(dict.fromkeys(found.path for found in slices))


def _refused(slices: Sequence[SliceHeader], rules: Rules) -> Iterator[FoundItem]:
    """One item per series and kind of refusal."""
    groups: dict[tuple[str, str], list[SliceHeader]] = defaultdict(list)
    for found in slices:
        if found.verdict.startswith("refused_"):
            groups[series_of(found), found.verdict].append(found)
    for (_, verdict), members in groups.items():
        yield _item(members, verdict, _identity(members), None, {"files": len(_paths(members))}, rules)


def _volumes(slices: Sequence[SliceHeader], rules: Rules) -> Iterator[FoundItem]:
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
            yield _item(members, verdict, _identity(members), None, {"files": len(_paths(members))}, rules)
    usable: list[Volume] = []
    for owner, members in series.items():
        once = distinct(rules.root, members)
        for group in volumes_of(once.slices, rules.geometry):
            item, volume = _volume(group, damaged.get(owner, []), once.copies, rules)
            if volume is None:
                yield item
            else:
                usable.append(volume)
    yield from choose(usable, rules.reconstruction)


def _folder(found: SliceHeader) -> str:
    return found.path.removesuffix(MEMBER + SINGLE).rpartition("/")[0]


def _volume(
    slices: Sequence[SliceHeader], damaged: Sequence[SliceHeader], copies: int, rules: Rules
) -> tuple[FoundItem, Volume | None]:
    """A group's item, and where it is usable what tells its acquisition.

    Args:
        copies: files of the series that were left out, as copies of others.
    """
    first = slices[0]
    spacing = array(first.plane)[6:]
    judgement = judged(slices, rules.geometry)
    ordered = [slices[index] for index in judgement.order]
    verdict = min(found.verdict for found in damaged) if damaged else judgement.verdict
    rows, columns = int(first.key[1]), int(first.key[2])
    thickness = {found.thickness for found in slices}
    geometry: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "slices": len(slices),
        "spacing_mm": [round(float(value), 6) for value in spacing],
        "gap_mm": judgement.gap,
        "thickness_mm": first.thickness if len(thickness) == 1 else None,
        "kernel": first.kernel if _KERNEL.fullmatch(first.kernel) else "",
    }
    derived = max(found.derivation for found in slices)
    more = {"copies": copies, "tilt_degrees": judgement.tilt, "steps_mm": [list(step) for step in judgement.steps]}
    more |= {"derivation": derived.name.lower() if derived else "", "square": _square_sides(rows, columns, spacing)}
    geometry |= {name: value for name, value in more.items() if value}
    identity = _identity([*ordered, *damaged], others=() if square(spacing) else ("square pixels",))
    item = _item([*ordered, *damaged], verdict, identity, len(slices), geometry, rules)
    if item.verdict != OK:
        return item, None
    geometry = {**item.geometry, **_reading(ordered)}
    item = _item(ordered, verdict, identity, len(slices), geometry, rules)
    return item, _acquisition(ordered, item, judgement)


def _square_sides(rows: int, columns: int, spacing: npt.NDArray[np.float64]) -> list[int]:
    """Rows and columns of a slice as it is read, where its pixels are not square; else empty."""
    return [] if square(spacing) else list(squared_shape(rows, columns, spacing))


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
        derivation=max(found.derivation for found in ordered),
        oblique=judgement.tilt == 0 and oblique(array(ordered[0].plane)[:6]),
    )
