"""Is a group of CT slices a volume? Arithmetic on positions and orientations, in millimetres (DICOM PS3.3 C.7.6.2).

Tolerances: orientation and in-plane spacing 1e-3; gaps 5 % of the median or 0.1 mm, whichever is more; tilt 0.05.

Slices that a tilted gantry made are parallel and whole, and lie along the table, not along their normal: as a volume
they are sheared, slice by slice nothing is wrong with them. A scan of a head may change its slice distance on the way.
Where slices are taken one by one (`slices`), both are as good as any.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from extractors.dicom.pixels import MAX_SIDE
from extractors.items import OK

Floats = npt.NDArray[np.float64]
GeometryRule = Literal["strict", "slices"]

PLANE_TOLERANCE = 1e-3
GAP_SHARE, GAP_MM = 0.05, 0.1
TILT = 0.05
MOST_TILTED = 35.0  # degrees; gantries tilt by 30
SAME_POSITION_MM = 0.01
SPACING_MM = (0.02, 10.0)
MAX_GAP_MM = 100.0
MORE_THAN_SLICES = 3
MAX_SLICES = 10_000
FEWEST_OF_STEP, MOST_STEPS = 3, 4  # gaps of a step of a scan, and its steps
THICKNESS_SHARE = 0.05
SQUARE_SHARE = 1e-3  # half a pixel of 512


@dataclass(frozen=True)
class SliceOrder:
    """How slices lie.

    Attributes:
        verdict: whether they are a volume.
        order: of the slices, from feet to head.
        gap: the median, mm.
        extent: the ends along the normal, mm.
        tilt: of the gantry, degrees; 0 where slices lie along their normal.
        steps: of a scan in steps, each one's gap in mm and number of gaps; empty where all gaps are one.
    """

    verdict: str
    order: list[int]
    gap: float | None
    extent: tuple[float, float] = (0.0, 0.0)
    tilt: float = 0.0
    steps: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True)
class Corroboration:
    """What headers say besides positions, a value a slice (n,): where a scan changes its step, one of them changes too.

    `numbers` are InstanceNumbers: where they run on without a hole, no slice is missing.
    """

    thickness: Sequence[float | None]
    acquisitions: Sequence[str]
    numbers: Sequence[int | None]


def same_plane(first: Floats, second: Floats) -> bool:
    """Whether two slices' orientations and spacings (8,) agree."""
    return bool(np.abs(first - second).max() <= PLANE_TOLERANCE)


def plausible_spacing(spacing: Floats) -> bool:
    """Whether pixels are as wide and high, in mm, as scanners for people make them."""
    return bool((spacing >= SPACING_MM[0]).all() and (spacing <= SPACING_MM[1]).all())


def square(spacing: Floats) -> bool:
    """Whether pixels of a spacing (2,) are as high as they are wide."""
    return bool(abs(spacing[0] - spacing[1]) <= SQUARE_SHARE * spacing.max())


def heights_of(orientation: Floats, positions: Floats) -> Floats:
    """Where slices of one orientation (6,) lie along their normal, towards the head: (n,) mm."""
    return positions @ _normal(orientation)


def _normal(orientation: Floats) -> Floats:
    normal = np.cross(orientation[:3], orientation[3:])
    return -normal if normal[2] < 0 else normal


def oblique(orientation: Floats) -> bool:
    """Whether slices stand askew in the patient, by more than orientations are rounded."""
    return bool(np.abs(_normal(orientation)).max() < 1 - PLANE_TOLERANCE)


def judge(
    orientation: Floats, positions: Floats, rule: GeometryRule = "strict", said: Corroboration | None = None
) -> SliceOrder:
    """Judges slices of one orientation (6,) at positions (n, 3).

    Args:
        rule: `slices` accepts a gantry's tilt and, where headers tell it, a scan in steps.
        said: what headers say; without it no scan has steps.
    """
    row, column = orientation[:3], orientation[3:]
    skewed = max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 10 * PLANE_TOLERANCE
    if skewed:
        return SliceOrder("failed_inconsistent_geometry", list(range(len(positions))), None)
    normal = _normal(orientation)
    heights = positions @ normal
    order = np.lexsort((positions[:, 1], positions[:, 0], heights))
    places = [int(index) for index in order]
    steps = np.diff(positions[order], axis=0)
    gaps = steps @ normal
    gap = round(float(np.median(gaps)), 4) if len(gaps) else None
    extent = float(heights.min()), float(heights.max())
    verdict = _countable(normal, gaps)
    tilt = 0.0
    if verdict == OK and _sheared(normal, steps, gaps):
        tilt = _gantry_tilt(normal, steps)
        verdict = "failed_sheared" if tilt == 0 else OK if rule == "slices" else "failed_gantry_tilt"
    stepped: tuple[tuple[float, int], ...] = ()
    if verdict == OK:
        verdict = _regular(gaps)
        if verdict != OK and rule == "slices" and said is not None:
            stepped = _steps(gaps, places, said)
            verdict = OK if stepped else verdict
    return SliceOrder(verdict, places, gap, extent, round(tilt, 2), stepped)


def _countable(normal: Floats, gaps: Floats) -> str:
    if int(np.abs(normal).argmax()) != 2:
        return "refused_not_axial"
    if len(gaps) + 1 <= MORE_THAN_SLICES:
        return "failed_too_few_slices"
    if len(gaps) + 1 > MAX_SLICES:
        return "failed_too_many_units"
    return "failed_duplicate_position" if (gaps < SAME_POSITION_MM).any() else OK


def _sheared(normal: Floats, steps: Floats, gaps: Floats) -> bool:
    sideways = np.linalg.norm(steps - gaps[:, None] * normal, axis=1)
    total = steps.sum(axis=0)
    drift = float(np.linalg.norm(total - (total @ normal) * normal))
    return drift > TILT * gaps.sum() or bool((sideways > np.maximum(TILT * gaps, GAP_MM)).any())


def _gantry_tilt(normal: Floats, steps: Floats) -> float:
    """Degrees between the slices' normal and the table's way, where a tilted gantry explains the drift; else 0.

    The table moves along z; the gantry tilts about one axis, which is the patient's x, or y where they lie on a side.
    """
    along = steps[:, 2]
    off = np.linalg.norm(steps[:, :2], axis=1)
    about_an_axis = min(abs(normal[0]), abs(normal[1])) <= TILT
    if not about_an_axis or (off > np.maximum(TILT * np.abs(along), GAP_MM)).any():
        return 0.0
    degrees = float(np.degrees(np.arccos(min(1.0, abs(normal[2])))))
    return degrees if degrees <= MOST_TILTED else 0.0


def _regular(gaps: Floats) -> str:
    median = float(np.median(gaps))
    if median > MAX_GAP_MM:
        return "failed_inconsistent_geometry"
    if _near(gaps, median).all():
        return OK
    return "failed_missing_slice" if (gaps > 1.5 * median).any() else "failed_inconsistent_geometry"


def _near(gaps: Any, gap: float) -> Any:
    return np.abs(gaps - gap) <= max(GAP_SHARE * gap, GAP_MM)


def _steps(gaps: Floats, order: Sequence[int], said: Corroboration) -> tuple[tuple[float, int], ...]:
    """The steps of a scan whose gaps change and are even in between; none where a gap may be a slice that is missing.

    Where two steps meet, one gap may lie between theirs.
    """
    steps = [run for run in _runs(gaps) if len(run) >= FEWEST_OF_STEP]
    if not 2 <= len(steps) <= MOST_STEPS or steps[0].start != 0 or steps[-1].stop != len(gaps):
        return ()
    found = [float(np.median(gaps[run.start : run.stop])) for run in steps]
    for before, after, *ends in zip(steps, steps[1:], found, found[1:], strict=False):
        between = gaps[before.stop : after.start]
        inside = (between >= min(ends) - GAP_MM) & (between <= max(ends) + GAP_MM)
        if len(between) > 1 or not inside.all() or not _told(before, after, order, said):
            return ()
    even = max(found) <= MAX_GAP_MM
    return tuple((round(gap, 4), len(run)) for gap, run in zip(found, steps, strict=True)) if even else ()


def _runs(gaps: Floats) -> list[range]:
    """Places of gaps that follow each other and are one."""
    runs = [range(1)]
    for place in range(1, len(gaps)):
        run = runs[-1]
        if _near(gaps[place], float(np.median(gaps[run.start : run.stop]))):
            runs[-1] = range(run.start, place + 1)
        else:
            runs.append(range(place, place + 1))
    return runs


def _told(before: range, after: range, order: Sequence[int], said: Corroboration) -> bool:
    """Whether headers tell the change from one step to the next, or that no slice is missing.

    The slice in which two steps meet may be of either.
    """
    numbers = [said.numbers[place] for place in order[before.start : after.stop + 1]]
    known = np.array([number for number in numbers if number is not None], dtype=np.int64)
    if len(known) == len(numbers):
        strides = np.diff(known) * np.sign(known[-1] - known[0])
        if strides.min() > 0:  # in the order of the slices: without a hole, or with one
            return bool(strides.max() == 1)
    sides = (order[before.start : before.stop], order[after.start + 1 : after.stop + 1])
    first, second = ({said.acquisitions[place] for place in side} for side in sides)
    if not first & second and "" not in first | second:
        return True
    thin, thick = (_thickness(side, said) for side in sides)
    return thin is not None and thick is not None and abs(thin - thick) > THICKNESS_SHARE * max(thin, thick)


def _thickness(side: Sequence[int], said: Corroboration) -> float | None:
    """The one thickness of a step's slices, if all say it."""
    values = [said.thickness[place] for place in side]
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known or max(known) - min(known) > THICKNESS_SHARE * max(known):
        return None
    return max(known)


def canonical_axial(pixels: npt.NDArray[Any], orientation: Floats, *, copy: bool = True) -> npt.NDArray[Any]:
    """Turns slices (..., rows, columns) so that columns run to the patient's left (+x) and rows to the back (+y).

    Args:
        copy: whether the result lies in one piece; else it is a view.
    """
    row, column = orientation[:3], orientation[3:]
    if abs(row[1]) > abs(row[0]):
        pixels, row, column = pixels.swapaxes(-1, -2), column, row
    pixels = pixels[..., ::-1] if row[0] < 0 else pixels
    pixels = pixels[..., ::-1, :] if column[1] < 0 else pixels
    return np.ascontiguousarray(pixels) if copy else pixels


def squared(hounsfield: npt.NDArray[np.float32], spacing: Floats) -> npt.NDArray[np.float32]:
    """A slice (rows, columns) of pixels that are not square as one of square pixels: a triangle filter over the exact
    extent."""
    from PIL import Image

    rows, columns = squared_shape(hounsfield.shape[0], hounsfield.shape[1], spacing)
    picture = Image.fromarray(np.ascontiguousarray(hounsfield))
    return np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR), dtype=np.float32)


def squared_shape(rows: int, columns: int, spacing: Floats) -> tuple[int, int]:
    """Rows and columns of square pixels as fine as the finer side of those that are there; at most MAX_SIDE."""
    extent = rows * float(spacing[0]), columns * float(spacing[1])
    side = max(float(spacing.min()), max(extent) / MAX_SIDE)
    return max(1, round(extent[0] / side)), max(1, round(extent[1] / side))
