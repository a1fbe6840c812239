"""CT volumes from a tree of DICOM files: `index_ct` reads headers only, `read_volume` reads Hounsfield units.

A DICOM series is not a volume. Slices are grouped by series, frame of reference, matrix, orientation, spacing and
acquisition, ordered by position along their normal (never by InstanceNumber), and the group is a volume only if
`extractors.ct_geometry` finds it whole. The rules are listed in docs/verdicts.md.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from extractors.ct_geometry import canonical_axial, judge, same_plane
from extractors.dicom_header import MAX_SIDE, SliceHeader, numbers_of, quiet, read_header, text_of
from extractors.dicom_time import earliest
from extractors.items import OK, FoundItem, UnitBatch, UnitRequest, VerdictError, file_fingerprint, identity_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MODALITY = "ct"
AIR_HU = -1024.0


def index_ct(
    root: Path, progress: Callable[[int], None] | None = None, site_timezone: str | None = None
) -> list[FoundItem]:
    """Every CT volume under `root`, and every file that is none, with a verdict. Reads headers, no pixels.

    Files are known by content: names and extensions play no part. Volumes come with their paths in slice order, from
    feet to head. Files that are not CT become one refused item a series; files that are no DICOM, one item in all.

    Args:
        root: the folder to walk; links to folders are not followed.
        progress: called with the number of files read so far.
        site_timezone: an IANA name. Times stay the scanner's wall clock, as the EHR's are local too; where the scanner
            gives its UTC offset and this is set, they are converted to the site's wall clock.
    """
    slices: list[SliceHeader] = []
    foreign: list[str] = []
    with quiet():
        for count, path in enumerate(_files(root), start=1):
            relative = path.relative_to(root).as_posix()
            found = read_header(path, relative, site_timezone)
            if isinstance(found, SliceHeader):
                slices.append(found)
            elif found:
                foreign.append(file_fingerprint(path))
            if progress is not None:
                progress(count)
    items = [*_refused(slices), *_volumes(slices)]
    if foreign:
        items.append(_item([], "refused_not_dicom", identity_of(foreign), len(foreign), {}))
    return sorted(items, key=lambda item: (item.paths, item.identity))


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names))


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
    elif verdict == OK and not subjects:
        verdict = "failed_no_subject"
    elif verdict == OK and moment is None:
        verdict = "failed_no_time"
    if moment is not None and moment.utc_offset_minutes is not None:
        geometry = {**geometry, "utc_offset_minutes": moment.utc_offset_minutes}
    return FoundItem(
        modality=MODALITY,
        raw_subject=subjects.pop() if len(subjects) == 1 else None,
        identity=identity,
        paths=tuple(found.path for found in slices),
        time=moment.time if moment else None,
        time_source=moment.source if moment else "",
        time_precision=moment.precision if moment else "day",
        available_time=None,
        verdict=verdict,
        units_expected=units,
        geometry=geometry,
    )


def _identity(slices: Iterable[SliceHeader]) -> str:
    return identity_of(f"{found.instance}:{found.fingerprint or found.path}" for found in slices)


def _refused(slices: Sequence[SliceHeader]) -> Iterator[FoundItem]:
    """One item per series and kind of refusal."""
    groups: dict[tuple[str, str], list[SliceHeader]] = defaultdict(list)
    for found in slices:
        if found.verdict.startswith("refused_"):
            groups[found.series or found.path, found.verdict].append(found)
    for (_, verdict), members in groups.items():
        yield _item(members, verdict, _identity(members), None, {"files": len(members)})


def _volumes(slices: Sequence[SliceHeader]) -> Iterator[FoundItem]:
    """One item per volume; a damaged file spoils the volumes that it belongs to, or is an item of its own."""
    series: dict[str, list[SliceHeader]] = defaultdict(list)
    folders: dict[str, set[str]] = defaultdict(set)
    damaged: dict[str, list[SliceHeader]] = defaultdict(list)
    for found in slices:
        if found.verdict == OK:
            series[found.series].append(found)
            folders[_folder(found)].add(found.series)
    for found in slices:
        if not found.verdict.startswith("failed_"):
            continue
        neighbours = folders.get(_folder(found), set())
        # A file cut short before its series UID is taken as a slice of the only series beside it.
        owner = found.series or (next(iter(neighbours)) if len(neighbours) == 1 else "")
        damaged[owner or found.path].append(found)
    for owner, members in damaged.items():
        if owner not in series:
            verdict = min(found.verdict for found in members)
            yield _item(members, verdict, _identity(members), None, {"files": len(members)})
    for owner, members in series.items():
        for group in _groups(members):
            yield _volume(group, damaged.get(owner, []))


def _folder(found: SliceHeader) -> str:
    return found.path.rpartition("/")[0]


def _groups(slices: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """Slices of one series in one plane and one acquisition, each instance once.

    Sequential scanners number each table position as an acquisition of its own: where no acquisition alone could be a
    volume, they are judged together.
    """
    planes: list[list[SliceHeader]] = []
    instances: set[tuple[str, str]] = set()
    for found in slices:
        if (found.instance, found.fingerprint) in instances:
            continue
        instances.add((found.instance, found.fingerprint))
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


def _volume(slices: Sequence[SliceHeader], damaged: Sequence[SliceHeader]) -> FoundItem:
    plane = _array(slices[0].plane)
    positions = np.stack([_array(found.position) for found in slices])
    judgement = judge(plane[:6], positions)
    ordered = [slices[index] for index in judgement.order]
    verdict = min(found.verdict for found in damaged) if damaged else judgement.verdict
    geometry: dict[str, Any] = {
        "rows": int(slices[0].key[1]),
        "columns": int(slices[0].key[2]),
        "slices": len(slices),
        "spacing_mm": [round(float(value), 6) for value in plane[6:]],
        "gap_mm": judgement.gap,
        "thickness_mm": slices[0].thickness,
    }
    return _item([*ordered, *damaged], verdict, _identity([*ordered, *damaged]), len(slices), geometry)


def read_volume(paths: Sequence[str], root: Path) -> Iterator[npt.NDArray[np.float32]]:
    """The slices of a volume, in the order of `paths`, each (rows, columns) float32 in Hounsfield units.

    HU = stored value x slope + intercept of that slice; padding becomes air (-1,024). Slices are turned into canonical
    axial orientation: columns run to the patient's left, rows to the back.

    Raises:
        VerdictError: failed_unreadable, where one slice cannot be decoded or differs in size from the first.
    """
    import pydicom

    shape: tuple[int, ...] | None = None
    for relative in paths:
        try:
            with quiet():
                dataset = pydicom.dcmread(root / relative, force=True)
                if max(dataset.Rows, dataset.Columns) > MAX_SIDE or text_of(dataset, "NumberOfFrames") not in ("", "1"):
                    raise VerdictError("failed_implausible_size")
                pixels = _hounsfield(dataset)
        except (VerdictError, MemoryError):
            raise
        except Exception as error:  # decoders raise almost anything on damaged bytes
            raise VerdictError("failed_unreadable") from error
        shape = shape or pixels.shape
        if pixels.ndim != 2 or pixels.shape != shape:
            raise VerdictError("failed_unreadable")
        yield pixels


def _hounsfield(dataset: "Dataset") -> npt.NDArray[np.float32]:
    stored = dataset.pixel_array
    hounsfield = stored.astype(np.float32) * np.float32(dataset.RescaleSlope) + np.float32(dataset.RescaleIntercept)
    padding = numbers_of(dataset, ("PixelPaddingValue", 1))
    if padding is not None:
        limit = numbers_of(dataset, ("PixelPaddingRangeLimit", 1))
        ends = np.concatenate([padding, padding if limit is None else limit])
        if stored.dtype.kind == "i":  # the tag is often written unsigned although the pixels are signed
            half = 1 << (8 * stored.dtype.itemsize - 1)
            ends = np.where(ends >= half, ends - 2 * half, ends)
        hounsfield[(stored >= ends.min()) & (stored <= ends.max())] = AIR_HU
    orientation = _array(numbers_of(dataset, ("ImageOrientationPatient", 6)))
    return canonical_axial(hounsfield, orientation)


def read_ct_units(request: UnitRequest, batch_size: int) -> Iterator[UnitBatch]:
    """Slices of a volume in batches (n, rows, columns) of float32 HU; raises as `read_volume`."""
    batch: list[npt.NDArray[np.float32]] = []
    for pixels in read_volume(request.paths, request.root):
        batch.append(pixels)
        if len(batch) == batch_size:
            yield UnitBatch(np.stack(batch))
            batch = []
    if batch:
        yield UnitBatch(np.stack(batch))
