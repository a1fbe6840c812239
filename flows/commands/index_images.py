"""What a tree of images, signals or notes holds, before any encoder is loaded: items, verdicts, times and sizes.

The table counts; which item is which stands only in the file that is asked for, which belongs beside the images: paths
of a hospital's tree may name patients.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from extractors.dicom.files import MEMBER
from extractors.items import OK, VERDICTS, FoundItem
from extractors.kinds import kinds_of
from extractors.modalities import EXTRACTORS, extractor_of
from extractors.vectors import settings as vectors
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write
from warehouse.modalities import MODALITIES
from warehouse.progress import Progress

QUARANTINED = 2
_VECTORS = (
    f" If these are {vectors.VECTORS.reads}, a run takes them in the place of an encoder:"
    " modalities.<name>.encoder: {imported: ...} (docs/imported-vectors.md)."
)
_COLUMNS = (
    "modality", "verdict", "units", "files", "bytes", "time_tag", "time_precision", "time", "available_time",
    "first_file", "name",
)  # fmt: skip


def index_tree(
    path: Path, modality: str | None, workers: int | None, progress: Progress
) -> tuple[dict[str, Any], list[FoundItem]]:
    """Indexes `path` for one modality, or for each: a description as JSON, and the items themselves.

    A file that one modality refuses may be another's: a slide is no CT. Modalities to which no file belongs are left
    out where something is usable. `exit_code`: 0 where something is usable and
    nothing failed, else 2.

    Raises:
        TimeloomError: there is no such folder, or no file in it.
    """
    if not path.is_dir():
        raise TimeloomError(f"there is no folder {path}", remedy="give the folder that the images lie in")
    names = list(EXTRACTORS) if modality is None else [modality]
    items = [item for name in names for item in _find(path, name, workers, progress)]
    usable = [item for item in items if item.verdict == OK]
    read = {name for item in usable for name in _archives(item)}
    counted = kinds_of(path, left_out=read)
    others = dict(sorted(counted.items(), key=lambda each: (-each[1], each[0])))
    if not items and not others:
        raise TimeloomError(f"{path} holds no file", remedy="give the folder that the images lie in")
    groups: dict[tuple[str, str], list[FoundItem]] = defaultdict(list)
    for item in _of_interest(items) if usable else items:
        groups[item.modality, item.verdict].append(item)
    # The usable first, then what failed, then what is another modality's.
    order = sorted(groups, key=lambda key: (key[0], key[1] != OK, key[1].startswith("refused_"), key[1]))
    failed = any(item.verdict.startswith("failed_") for item in items)
    return {
        "path": str(path),
        "groups": [{"modality": key[0], "verdict": key[1], **_summary(groups[key], path)} for key in order],
        "usable": len(usable),
        "not_read": others,
        "summary": _in_words(names, usable, len(read), others),
        "exit_code": QUARANTINED if failed or not usable else 0,
    }, items


def _of_interest(items: list[FoundItem]) -> list[FoundItem]:
    """Items without those of modalities to which every file of the tree is another's, or no item's at all."""
    others = {name for item in items if not _is_other(item) for name in _archives(item)}
    concerned = {
        item.modality
        for item in items
        if item.verdict != EXTRACTORS[item.modality].foreign and not (_is_other(item) and others >= _archives(item))
    }
    return [item for item in items if item.modality in concerned]


def _is_other(item: FoundItem) -> bool:
    """Whether a file is of another kind than its modality's, as a slide is no CT."""
    return item.verdict.startswith("refused_not_")


def _archives(item: FoundItem) -> set[str]:
    """An item's files; of an archive's members, the archive."""
    return {name.partition(MEMBER)[0] for name in item.paths}


def _in_words(names: list[str], usable: list[FoundItem], read: int, others: dict[str, int]) -> str:
    """A line on what was read and what else lies there; where nothing is usable, on what is read at all, too."""
    lying = ", ".join(f"{number:,} {kind}" for kind, number in others.items())
    if usable:
        found = f"Files of usable items: {read:,}." + (f" Of the others: {lying}." if lying else "")
        return found + _noted_in_words(usable) + _lacking_in_words(usable)
    reads = "; ".join(f"{MODALITIES[name].title} from {EXTRACTORS[name].reads}" for name in names)
    found = f"Nothing is usable. Found: {lying or 'no file'}. Read would be {reads}."
    return found + _VECTORS if vectors.KINDS & others.keys() else found


def _noted(items: Iterable[FoundItem]) -> Counter[str]:
    """How many items of one modality have something odd, by what it is."""
    return Counter(key for item in items for key in EXTRACTORS[item.modality].noted if item.geometry.get(key))


def _noted_in_words(usable: Iterable[FoundItem]) -> str:
    by_modality: dict[str, list[FoundItem]] = defaultdict(list)
    for item in usable:
        by_modality[item.modality].append(item)
    found = ((name, _noted(items)) for name, items in by_modality.items())
    return "".join(
        f" Of the {MODALITIES[name].title} items: {', '.join(f'{number:,} {key}' for key, number in counted.items())}."
        for name, counted in found
        if counted
    )


def _lacking_in_words(usable: Iterable[FoundItem]) -> str:
    """What must tell of some items whose they are."""
    lacking = Counter(item.modality for item in usable if _says_nobody(item))
    return "".join(
        f" {number:,} {MODALITIES[name].title} items say neither whose they are nor when: a run needs a crosswalk"
        f" or a table that does (modalities.{name})."
        for name, number in lacking.items()
    )


def _find(path: Path, modality: str, workers: int | None, progress: Progress) -> list[FoundItem]:
    extractor = extractor_of(modality)
    # Who an item is of may stand in the run's crosswalk; here only the files are judged.
    settings = extractor.settings(path=path)
    return extractor.index_items(settings, None, partial(progress, modality), workers)


def _summary(items: list[FoundItem], root: Path) -> dict[str, Any]:
    tags: dict[str, int] = defaultdict(int)
    for item in items:
        tags[_tag(item)] += 1
    return {
        "items": len(items),
        "units": sum(item.units_expected or 0 for item in items),
        # Of many items one file may hold all.
        "files": len({path for item in items for path in item.paths})
        + sum(_files(item) for item in items if not item.paths),
        "bytes": _bytes({path for item in items for path in item.paths}, root),
        "times": dict(sorted(tags.items())),
        "noted": dict(sorted(_noted(items).items())),
    }


def _says_nobody(item: FoundItem) -> bool:
    """Whether the files of an item say neither whose it is nor when, so that the crosswalk of a run has to."""
    return EXTRACTORS[item.modality].needs_crosswalk or (item.raw_subject is None and item.time is None)


def _tag(item: FoundItem) -> str:
    """Which tag gave the time; a slide's comes from the crosswalk of a run, never from the file."""
    return "crosswalk" if EXTRACTORS[item.modality].needs_crosswalk else item.time_source or "none"


def _files(item: FoundItem) -> int:
    return len(item.paths) or int(item.units_expected or 0)


def _bytes(paths: Iterable[str], root: Path) -> int:
    """Bytes of files; an archive's members count as the archive, once."""
    total = 0
    for path in {name.partition("!/")[0] for name in paths}:
        try:
            total += (root / path).stat().st_size
        except OSError:
            continue
    return total


def _plain(text: str) -> str:
    """A cell that a spreadsheet takes for a text; it would carry out what starts as a formula does."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def write_items(items: Iterable[FoundItem], root: Path, out: Path) -> None:
    """A CSV of one row an item, to look a verdict up. It names files, times and ids: readable by its owner only."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for item in items:
        rows.writerow(
            [item.modality, item.verdict, item.units_expected, _files(item), _bytes(item.paths, root)]
            + [_plain(_tag(item)), item.time_precision if item.time else "", item.time, item.available_time]
            + [_plain(item.paths[0] if item.paths else ""), _plain(" ".join(filter(None, item.names.values())))]
        )
    with atomic_write(out) as temporary:
        temporary.touch(0o600)
        temporary.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")


def print_index(description: dict[str, Any], console: Console) -> None:
    """The description as a table, with the meaning of each verdict."""
    table = Table(title=f"Items under {description['path']}")
    for name in ("modality", "verdict"):
        table.add_column(name, no_wrap=True)
    for name in ("items", "units", "files", "MB"):
        table.add_column(name, justify="right")
    table.add_column("time from")
    table.add_column("meaning")
    for group in description["groups"]:
        times = ", ".join(f"{tag} {count}" for tag, count in group["times"].items())
        cells = [f"{group[name]:,}" for name in ("items", "units", "files")] + [f"{group['bytes'] / 1e6:,.1f}"]
        shown = "" if group["verdict"].startswith("refused_") else times
        table.add_row(group["modality"], group["verdict"], *cells, shown, VERDICTS[group["verdict"]])
    if description["groups"]:
        console.print(table)
    console.print(description["summary"], highlight=False, markup=False, soft_wrap=True)
