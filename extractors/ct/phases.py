"""The volumes of one series: slices are judged as a whole first, and parted where two of them stand at one place.

Scanners number table positions, halves of a scan, phases and gates alike, so that a number alone tells nothing: whether
the whole is a volume does. Where it is none because places are taken twice, the slices are parted by the first of these
that makes volumes of them: acquisition number, reconstruction, place in the heart's cycle, time of acquisition, of the
image, of the series.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from extractors.ct.geometry import (
    MORE_THAN_SLICES,
    SAME_POSITION_MM,
    Corroboration,
    Floats,
    GeometryRule,
    SliceOrder,
    heights_of,
    judge,
    same_plane,
)
from extractors.ct.header import SliceHeader
from extractors.items import OK, VerdictError

Slices = Sequence[SliceHeader]
Places = npt.NDArray[np.int64]
Partition = list[list[int]]
_CLOCKS = 3


def volumes_of(slices: Slices, rule: GeometryRule) -> list[list[SliceHeader]]:
    """Slices of one series, in groups that are to be volumes: of one frame of reference, matrix and plane each."""
    planes: list[list[SliceHeader]] = []
    for found in slices:
        for members in planes:
            if members[0].key == found.key and same_plane(array(members[0].plane), array(found.plane)):
                members.append(found)
                break
        else:
            planes.append([found])
    return [part for members in planes for part in _parted(members, rule, 0) or [members]]


def judged(slices: Slices, rule: GeometryRule) -> SliceOrder:
    """What slices of one plane are together."""
    positions = np.stack([array(found.position) for found in slices])
    said = Corroboration(
        [found.thickness for found in slices],
        [found.acquisition for found in slices],
        [found.number for found in slices],
    )
    return judge(array(slices[0].plane)[:6], positions, rule, said)


def array(value: Floats | None) -> Floats:
    """A slice's geometry, which it has where its verdict is OK."""
    if value is None:
        raise VerdictError("failed_missing_geometry")
    return value


def _parted(slices: list[SliceHeader], rule: GeometryRule, first: int) -> list[list[SliceHeader]] | None:
    """The slices as volumes of their own; None where they are one, or nothing parts them.

    Of ways that make volumes of as many slices, the first that makes one for each slice of the fullest place is right,
    else the first of all: a number may be that of a table position, of which each phase has many.

    Args:
        first: of the ways to part them, the first that has not been tried.
    """
    whole = judged(slices, rule).verdict
    places = _places(heights_of(array(slices[0].plane)[:6], np.stack([array(found.position) for found in slices])))
    fullest = int(np.bincount(places).max())
    if fullest == 1 and ((whole == OK and not _interleaved(slices, places)) or whole == "failed_too_few_slices"):
        return None
    place_of = {id(found): place for found, place in zip(slices, places.tolist(), strict=True)}
    best: list[list[SliceHeader]] | None = None
    best_rank = (0, True)
    for number, (partition, by_number) in enumerate(_partitions(slices, places)):
        if number < first or len(partition) < 2:
            continue
        parts = [[slices[index] for index in part] for part in partition]
        if fullest > 1:
            parts = [inner for part in parts for inner in _parted(part, rule, number + 1) or [part]]
        spans = [[place_of[id(found)] for found in part] for part in parts]
        # What a number tells apart may be a single slice, as of a test bolus; of times, fragments would be made.
        numbered = by_number and len(partition) <= fullest
        if not numbered and (not _overlap(spans) or any(len(set(span)) < len(span) for span in spans)):
            continue
        if not by_number and min(map(len, parts)) <= MORE_THAN_SLICES:
            continue
        good = sum(len(part) for part in parts if judged(part, rule).verdict == OK)
        rank = good, len(parts) == fullest
        if rank > best_rank and (fullest > 1 or good == len(slices)):
            best, best_rank = parts, rank
    return best


def _places(heights: Floats) -> Places:
    """Which of the places along the normal each slice stands at: those within SAME_POSITION_MM are one; (n,)."""
    order = np.argsort(heights, kind="stable")
    numbers = np.concatenate([[0], np.cumsum(np.diff(heights[order]) >= SAME_POSITION_MM)])
    places = np.empty(len(heights), dtype=np.int64)
    places[order] = numbers
    return places


def _interleaved(slices: Slices, places: Places) -> bool:
    """Whether two acquisitions that have numbers lie inside each other, without a place in common."""
    spans: dict[str, list[int]] = defaultdict(list)
    for found, place in zip(slices, places.tolist(), strict=True):
        if found.acquisition:
            spans[found.acquisition].append(place)
    ends = sorted((min(span), max(span)) for span in spans.values())
    return any(after[0] < before[1] for before, after in pairwise(ends))


def _overlap(spans: Sequence[Sequence[int]]) -> bool:
    """Whether each part, by its places, lies inside the next for half of the shorter: phases do, fragments do not."""
    ends = sorted((min(span), max(span)) for span in spans)
    return all(
        min(before[1], after[1]) - after[0] >= min(before[1] - before[0], after[1] - after[0]) / 2
        for before, after in pairwise(ends)
    )


def _partitions(slices: Slices, places: Places) -> Iterator[tuple[Partition, bool]]:
    """Ways to part slices, and whether they are the acquisition's numbers; a way that parts nothing is one part."""
    yield _by(slices, places, lambda found: found.acquisition), True
    yield _by(slices, places, lambda found: (*found.kind, found.kernel)), False
    yield _by(slices, places, lambda found: "".join(found.cardiac) and found.cardiac), False
    for clock in range(_CLOCKS):
        times = [found.clocks[clock] if clock < len(found.clocks) else None for found in slices]
        known = np.array([time for time in times if time is not None])
        whole = len(known) == len(slices)
        yield _by_pauses(known, places) if whole else [], False
        yield _by_return(known, places) if whole else [], False


def _by(slices: Slices, places: Places, value: Callable[[SliceHeader], Hashable]) -> Partition:
    """One part for each value. Slices without one belong where alone their place is free; no partition where it is
    not: a missing number is not a number of its own."""
    parts: dict[Hashable, list[int]] = defaultdict(list)
    lacking = []
    for index, found in enumerate(slices):
        label = value(found)
        if label:
            parts[label].append(index)
        else:
            lacking.append(index)
    taken = {label: set(places[part].tolist()) for label, part in parts.items()}
    for index in lacking:
        free = [label for label, those in taken.items() if places[index] not in those]
        if len(free) != 1:
            return []
        parts[free[0]].append(index)
        taken[free[0]].add(int(places[index]))
    return list(parts.values())


def _by_pauses(times: Floats, places: Places) -> Partition:
    """Parts between the longest pauses: as many as slices stand at the fullest place."""
    order = np.argsort(times, kind="stable")
    wanted = int(np.bincount(places).max()) - 1
    pauses = np.diff(times[order])
    longest = np.argsort(-pauses, kind="stable")[:wanted]
    left = np.delete(pauses, longest)
    if wanted < 1 or len(longest) < wanted or (len(left) and left.max() >= pauses[longest].min()):
        return []  # which are the longest is not known
    return [part.tolist() for part in np.split(order, np.sort(longest) + 1)]


def _by_return(times: Floats, places: Places) -> Partition:
    """A part ends where a scanner comes back to a place; slices of one moment stay together."""
    parts: Partition = [[]]
    seen: set[int] = set()
    for moment in np.unique(times):
        those = np.flatnonzero(times == moment)
        at = set(places[those].tolist())
        if seen & at:
            parts.append([])
            seen = set()
        parts[-1] += those.tolist()
        seen |= at
    return parts
