"""Is a group of CT slices a volume? Arithmetic on positions and orientations, in millimetres (DICOM PS3.3 C.7.6.2).

Tolerances: orientation and in-plane spacing 1e-3; gaps 5 % of the median or 0.1 mm, whichever is more; tilt 0.05.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from extractors.items import OK

Floats = npt.NDArray[np.float64]

PLANE_TOLERANCE = 1e-3
GAP_SHARE, GAP_MM = 0.05, 0.1
TILT = 0.05
SAME_POSITION_MM = 0.01
SPACING_MM = (0.02, 10.0)
MAX_GAP_MM = 100.0
MORE_THAN_SLICES = 3
MAX_SLICES = 10_000


@dataclass(frozen=True)
class SliceOrder:
    """A verdict, the order of slices from feet to head, the median gap, and the ends along the normal, in mm."""

    verdict: str
    order: list[int]
    gap: float | None
    extent: tuple[float, float] = (0.0, 0.0)


def same_plane(first: Floats, second: Floats) -> bool:
    """Whether two slices' orientations and spacings (8,) agree."""
    return bool(np.abs(first - second).max() <= PLANE_TOLERANCE)


def plausible_spacing(spacing: Floats) -> bool:
    """Whether pixels are as wide and high, in mm, as scanners for people make them."""
    return bool((spacing >= SPACING_MM[0]).all() and (spacing <= SPACING_MM[1]).all())


def judge(orientation: Floats, positions: Floats) -> SliceOrder:
    """Judges slices of one orientation (6,) at positions (n, 3)."""
    row, column = orientation[:3], orientation[3:]
    normal = np.cross(row, column)
    skewed = max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 10 * PLANE_TOLERANCE
    if skewed:
        return SliceOrder("failed_inconsistent_geometry", list(range(len(positions))), None)
    if normal[2] < 0:
        normal = -normal
    heights = positions @ normal
    order = np.lexsort((positions[:, 1], positions[:, 0], heights))
    steps = np.diff(positions[order], axis=0)
    gaps = steps @ normal
    gap = round(float(np.median(gaps)), 4) if len(gaps) else None
    extent = float(heights.min()), float(heights.max())
    return SliceOrder(_verdict(normal, steps, gaps), [int(index) for index in order], gap, extent)


def _verdict(normal: Floats, steps: Floats, gaps: Floats) -> str:
    if int(np.abs(normal).argmax()) != 2:
        return "refused_not_axial"
    if len(gaps) + 1 <= MORE_THAN_SLICES:
        return "failed_too_few_slices"
    if len(gaps) + 1 > MAX_SLICES:
        return "failed_too_many_units"
    if (gaps < SAME_POSITION_MM).any():
        return "failed_duplicate_position"
    sideways = np.linalg.norm(steps - gaps[:, None] * normal, axis=1)
    total = steps.sum(axis=0)
    drift = float(np.linalg.norm(total - (total @ normal) * normal))
    if drift > TILT * gaps.sum() or (sideways > np.maximum(TILT * gaps, GAP_MM)).any():
        return "failed_gantry_tilt"
    median = float(np.median(gaps))
    if median > MAX_GAP_MM:
        return "failed_inconsistent_geometry"
    if (np.abs(gaps - median) <= max(GAP_SHARE * median, GAP_MM)).all():
        return OK
    return "failed_missing_slice" if (gaps > 1.5 * median).any() else "failed_inconsistent_geometry"


def canonical_axial(pixels: npt.NDArray[Any], orientation: Floats) -> npt.NDArray[Any]:
    """Turns a slice (rows, columns) so that columns run to the patient's left (+x) and rows to the back (+y)."""
    row, column = orientation[:3], orientation[3:]
    if abs(row[1]) > abs(row[0]):
        pixels, row, column = pixels.T, column, row
    pixels = pixels[:, ::-1] if row[0] < 0 else pixels
    pixels = pixels[::-1] if column[1] < 0 else pixels
    return np.ascontiguousarray(pixels)
