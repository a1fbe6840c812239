"""Copies of one instance: sent twice, by another node, in another transfer syntax, with a mended header.

A SOP Instance UID names one image. Where two files of it have equal pixels at one place and one patient, they are that
image, whatever else their headers say. Where they have not, both stay, and the volume is refused for it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from extractors.ct.geometry import SAME_POSITION_MM, same_plane
from extractors.ct.header import SliceHeader
from extractors.ct.read import slice_digests
from extractors.items import VerdictError


@dataclass(frozen=True)
class Distinct:
    """Slices of which each stands once, and how many copies of them were left out."""

    slices: list[SliceHeader]
    copies: int


def distinct(root: Path, slices: Sequence[SliceHeader]) -> Distinct:
    """Slices of one series, each once. Of copies the one of the least fingerprint stays, wherever it lies.

    Files of the same size and ends are the same; of others that share a UID the pixels are read.
    """
    groups: dict[tuple[str, int | None], list[SliceHeader]] = defaultdict(list)
    for found in slices:
        groups[found.instance, found.frame].append(found)
    kept: set[int] = set()
    for (instance, _), members in groups.items():
        kept |= {id(found) for found in (_apart(root, members) if instance else _by_bytes(members))}
    once = [found for found in slices if id(found) in kept]
    return Distinct(once, len(slices) - len(once))


def _by_bytes(members: Sequence[SliceHeader]) -> list[SliceHeader]:
    first: dict[str, SliceHeader] = {}
    for found in members:
        first.setdefault(found.fingerprint or found.path, found)
    return [first[fingerprint] for fingerprint in sorted(first)]


def _apart(root: Path, members: Sequence[SliceHeader]) -> list[SliceHeader]:
    """Those of files with one instance UID that are no copies of one another."""
    files = _by_bytes(members)
    if len(files) == 1:
        return files
    decoded = len({found.syntax for found in files}) > 1 or any(found.frame is not None for found in files)
    kept: list[tuple[SliceHeader, str]] = []
    for found in files:
        try:
            pixels = slice_digests(root, found.path, found.stamp, decoded)[found.frame or 0]
        except VerdictError:
            pixels = found.path  # it will fail when it is read
        if not any(pixels == other and _one_place(found, before) for before, other in kept):
            kept.append((found, pixels))
    return [found for found, _ in kept]


def _one_place(first: SliceHeader, second: SliceHeader) -> bool:
    """Whether two slices stand at one place in one patient."""
    if (first.subject, first.issuer) != (second.subject, second.issuer):
        return False
    if first.plane is None or second.plane is None or first.position is None or second.position is None:
        return False
    return same_plane(first.plane, second.plane) and bool(
        np.abs(first.position - second.position).max() < SAME_POSITION_MM
    )
