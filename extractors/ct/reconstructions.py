"""Several reconstructions of one CT acquisition: which of them to keep.

A scanner makes several volumes of the same rays: thick and thin, soft and sharp. All of them would count one scan
several times. Two volumes are reconstructions of one acquisition if study, patient and frame of reference are the same,
the acquisition numbers and times do not differ, and half of the shorter one's length lies inside the other. Phases of
contrast are acquisitions of their own: their times or numbers differ. What was made from slices later may have lost
both, and comes after what the scanner made.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from extractors.ct.image_type import Derivation
from extractors.items import FoundItem, identity_of

OVERLAP = 0.5
COVERAGE = 0.9
SAME_TIME = timedelta(seconds=1)

# Sharp kernels as vendors name them: GE and others in words; Siemens B50f, Br64, I70f, Hr60; Canon FC30, FC5x, FC8x;
# Philips D, E, L, YA to YD.
SHARP_KERNELS = (
    "bone", "lung", "edge", "sharp", r"^[bhiqu][a-z]?[5-9]\d", r"^fc(3|5|8)\d", r"^(d|e|l|y[a-d])$",
)  # fmt: skip


class ReconstructionConfig(BaseModel):
    """Which reconstruction of a CT acquisition is embedded.

    First those that are nearest to the scanner's own slices (ImageType) and do not stand askew. Of those that cover at
    least nine tenths of the longest one: first by kernel, then by how far the slice thickness is from the range, then
    the one with more slices, then by content.

    Attributes:
        keep: `one`, or `all`.
        thickness_mm: the preferred range of SliceThickness.
        prefer_kernels: patterns of ConvolutionKernel, best first: regular expressions, searched without regard to case.
        avoid_kernels: patterns of kernels that come last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: Literal["one", "all"] = "one"
    thickness_mm: tuple[float, float] = (2.0, 5.0)
    prefer_kernels: tuple[str, ...] = ()
    avoid_kernels: tuple[str, ...] = Field(default=SHARP_KERNELS)

    @field_validator("thickness_mm")
    @classmethod
    def _a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1]:
            raise ValueError("thickness_mm is a range: the smaller number first")
        return value

    @field_validator("prefer_kernels", "avoid_kernels")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression") from error
        return value


@dataclass(frozen=True)
class Volume:
    """A usable volume and what tells its acquisition."""

    item: FoundItem
    study: str
    frame_of_reference: str
    acquisitions: frozenset[str]
    times: tuple[datetime, datetime] | None  # first and last acquisition time; None where no slice has one
    extent: tuple[float, float]  # mm along the normal
    kernel: str
    thickness: float | None
    derivation: Derivation = Derivation.ORIGINAL
    oblique: bool = False  # and no gantry is tilted

    @property
    def length(self) -> float:
        """Millimetres from the first slice to the last."""
        return self.extent[1] - self.extent[0]


def choose(volumes: Sequence[Volume], config: ReconstructionConfig) -> list[FoundItem]:
    """The volumes' items, all but the best reconstruction of each acquisition with refused_other_reconstruction.

    Items of an acquisition with several carry `reconstruction_group` and `reconstructions` in their geometry.
    """
    items = []
    for group in _acquisitions(volumes):
        if len(group) == 1:
            items.append(group[0].item)
            continue
        name = identity_of(volume.item.identity for volume in group)[:16]
        chosen: list[Volume] = []
        nearest = min(volume.derivation for volume in group)
        longest = max(volume.length for volume in group if volume.derivation == nearest)
        for volume in sorted(group, key=lambda candidate: _rank(candidate, longest, config)):
            refused = config.keep == "one" and any(same_acquisition(volume, other) for other in chosen)
            if not refused:
                chosen.append(volume)
            geometry = {**volume.item.geometry, "reconstruction_group": name, "reconstructions": len(group)}
            verdict = "refused_other_reconstruction" if refused else volume.item.verdict
            items.append(replace(volume.item, verdict=verdict, geometry=geometry))
    return items


def same_acquisition(first: Volume, second: Volume) -> bool:
    """Whether two volumes are reconstructions of one acquisition."""
    if _scan(first) != _scan(second) or not (first.study and first.frame_of_reference):
        return False
    numbered = bool(first.acquisitions and second.acquisitions)
    if numbered and not first.acquisitions & second.acquisitions:
        return False
    # Workstations take the number along, and may write their own time.
    made_later = max(first.derivation, second.derivation) > Derivation.UNKNOWN
    timed = first.times is not None and second.times is not None
    if first.times is not None and second.times is not None and not (made_later and numbered):
        earlier, later = sorted((first.times, second.times))
        if later[0] - earlier[1] > SAME_TIME:
            return False
    shared = min(first.extent[1], second.extent[1]) - max(first.extent[0], second.extent[0])
    return (numbered or timed or made_later) and shared >= OVERLAP * min(first.length, second.length)


def _scan(volume: Volume) -> tuple[str, str, str | None, str]:
    """What reconstructions of one acquisition share in any case."""
    return volume.study, volume.frame_of_reference, volume.item.raw_subject, volume.item.issuer


def _acquisitions(volumes: Sequence[Volume]) -> list[list[Volume]]:
    """Volumes that are linked by being the same acquisition; each study's apart, so that cost stays linear."""
    studies: dict[tuple[str, str, str | None, str], list[list[Volume]]] = defaultdict(list)
    for volume in volumes:
        groups = studies[_scan(volume)]
        linked = [group for group in groups if any(same_acquisition(volume, other) for other in group)]
        merged = [*(member for group in linked for member in group), volume]
        groups[:] = [group for group in groups if not any(group is other for other in linked)] + [merged]
    return [group for groups in studies.values() for group in groups]


def _rank(volume: Volume, longest: float, config: ReconstructionConfig) -> tuple[int, bool, bool, int, float, int, str]:
    low, high = config.thickness_mm
    thickness = volume.thickness
    off = float("inf") if thickness is None else max(low - thickness, thickness - high, 0.0)
    return (
        int(volume.derivation),
        volume.oblique,
        volume.length < COVERAGE * longest,
        kernel_rank(volume.kernel, config),
        off,
        -(volume.item.units_expected or 0),
        volume.item.identity,
    )


def kernel_rank(kernel: str, config: ReconstructionConfig) -> int:
    """The place of a kernel: in the order of `prefer_kernels`, then unnamed ones, then those to avoid."""
    for place, pattern in enumerate(config.prefer_kernels):
        if re.search(pattern, kernel, re.IGNORECASE):
            return place
    avoided = any(re.search(pattern, kernel, re.IGNORECASE) for pattern in config.avoid_kernels)
    return len(config.prefer_kernels) + avoided
