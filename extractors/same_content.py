"""Which items have one content and several subjects: nobody can say whose it is, so no item of it is usable."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from extractors.extractor import Extractor, imported
from extractors.items import OK, FoundItem, UnitRequest, VerdictError


def of_two_subjects(
    found: Sequence[FoundItem],
    subjects: Sequence[int | None],
    whole: Callable[[int], FoundItem],
    extractor: Extractor,
    root: Path,
) -> list[bool]:
    """Of each item (n,), whether another subject has an item of the same content.

    Items are compared that could be used. Where a modality tells content by a part of it only, all of it is read of
    those that seem alike.

    Args:
        found: items, of which paths may be left out.
        subjects: whose they are, in the end (n,); None where nobody knows.
        whole: an item with its paths, by its place in `found`.
        root: the folder that paths are relative to.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for place, (item, subject) in enumerate(zip(found, subjects, strict=True)):
        if item.verdict == OK and subject is not None:
            alike[item.content or item.identity].append(place)
    marked = [False] * len(found)
    for places in alike.values():
        if _several(subjects, places):
            for same in _same(whole, places, extractor, root):
                if _several(subjects, same):
                    for place in same:
                        marked[place] = True
    return marked


def _several(subjects: Sequence[int | None], places: Iterable[int]) -> bool:
    return len({subjects[place] for place in places}) > 1


def _same(whole: Callable[[int], FoundItem], places: list[int], extractor: Extractor, root: Path) -> list[list[int]]:
    """Items that seem alike, in groups of those that are."""
    if not extractor.digest:
        return [places]
    groups: dict[str, list[int]] = defaultdict(list)
    digest = imported(extractor.digest)
    for place in places:
        item = whole(place)
        try:
            known = digest(UnitRequest(root, item.paths, item.geometry))
        except VerdictError:
            known = ""  # it will fail when it is encoded
        # Items of one identity are the same, whatever can be read of them.
        groups[known or item.identity].append(place)
    return [*groups.values()]
