"""Every note of a folder's tables: its verdict, its times, its windows, and which others say the same.

One pass reads each table. Of a text only its tokens are kept, in the private folder; what an item says are numbers.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast, get_args

import polars as pl

from extractors.extractor import KEPT
from extractors.items import (
    BESIDE_FILES,
    CUT,
    CUTS,
    FoundItem,
    TimePrecision,
    file_fingerprint,
    foreign_item,
    foreign_number,
    identity_of,
    unread_item,
)
from extractors.note.kept import FILE, Kept
from extractors.note.marks import marked
from extractors.note.passage import COUNTED, Passage, counted
from extractors.note.settings import NOTE, NoteSettings
from extractors.note.tables import find_files
from extractors.note.tokens import Tokens, load_tokens
from extractors.note.vocabulary import Vocabulary
from warehouse.errors import RawFileChangedError, TimeloomError

MODALITY = "note"
# What is said of an item by its first vocabulary; and numbers and marks that it has where they are more than nothing.
_OF_PRIMARY = ("tokens", "tokens_cut")
_MARKED = (
    "blanks", "mojibake", "of_visit", "addendum", "parent", "parent_absent", "exact_copies",
    "near_copies", "copied_from", "stored_early", "time_unreadable", "no_visit", "id_repeated",
)  # fmt: skip


def index(
    settings: NoteSettings,
    links: pl.DataFrame | None,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
    kept: Path | None = None,
) -> list[FoundItem]:
    """The modality's items, as `extractors.extractor.Extractor` says: one a note, and one for all other files.

    A crosswalk, by `note_id` or `patient_id`, is laid over by the run.

    Args:
        workers: not asked: the tokenizer's library uses every core.
        kept: the folder where the notes' tokens are left for their reader.

    Raises:
        TimeloomError: a table that the settings name is missing, is no text in its encoding, or lacks a column.
        RawFileChangedError: a file is not the same before and after it was read.
    """
    loaded = map(load_tokens, settings.cut_by)
    cutters = {tokens.vocabulary.name: tokens for tokens in loaded}
    found = find_files(settings)
    items = [unread_item(MODALITY, entry.path, BESIDE_FILES[entry.kind]) for entry in found.beside]
    with _folder(kept) as folder:
        with Passage(settings, cutters, folder) as passage:
            for number, file in enumerate(found.files):
                try:
                    passage.add(file)
                except RawFileChangedError:
                    raise
                except TimeloomError:
                    if settings.note_rules:
                        raise
                    items.append(unread_item(MODALITY, file.path, "failed_unreadable"))
                if progress is not None:
                    progress(number + 1, len(found.files))
        primary, tokens_of = next(iter(cutters)), Kept(folder / FILE).tokens
        notes = marked(settings, passage.notes(), passage.signatures(), lambda place: tokens_of(place, primary))
        items += [_item(row, cutters, settings, str(folder / FILE)) for row in notes.iter_rows(named=True)]
    others = sorted(set(found.others) - set(notes["path"]))  # text files that a table names are notes
    if others:
        total = sum(foreign_number(_fingerprint(settings.path / path)) for path in others)
        items.append(foreign_item(MODALITY, NOTE.foreign, len(others), total))
    return items


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """Where tokens are written: for good, or for as long as notes are compared."""
    if kept is not None:
        yield kept
    else:
        with TemporaryDirectory() as folder:
            yield Path(folder)


def _item(row: dict[str, Any], cutters: Mapping[str, Tokens], settings: NoteSettings, kept: str) -> FoundItem:
    """An item of a note.

    By which vocabularies it is cut is no part of its identity: an encoder that comes or goes makes no other item of it.
    """
    geometry: dict[str, Any] = {"table": row["table"], "note": row["note"]}
    if row["kind"]:
        geometry["kind"] = row["kind"]
    geometry |= {name: row[name] for name in _MARKED if row[name]}
    parts = [f"note:{row['table']}:{row['note']}", f"text:{row['letters']}"]
    units = None
    if any(row[counted("tokens", name)] for name in cutters):
        windows = {"window": settings.window, "stride": settings.stride, "at_most": settings.at_most}
        cuts = {name: _cut(row, tokens.vocabulary) | windows for name, tokens in cutters.items()}
        primary = next(iter(cuts))
        geometry |= {name: cuts[primary][name] for name in _OF_PRIMARY if name in cuts[primary]}
        geometry |= {CUT: primary, CUTS: cuts}
        geometry |= {"stamp": row["stamp"], KEPT: kept, "place": [row["batch"], row["row"]]}
        parts.append(f"windows:{sorted(windows.items())}")
        units = cuts[primary]["units"]
    return FoundItem(
        modality=MODALITY,
        raw_subject=row["subject"],
        identity=identity_of(parts),
        paths=(row["path"],),
        time=row["time"],
        time_source=row["source"],
        time_precision=_precision(row["precision"]),
        available_time=row["available"],
        verdict=row["verdict"],
        units_expected=units,
        geometry=geometry,
        names={"note_id": row["id"] or ""},
    )


def _cut(row: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """How a note is cut by a vocabulary: what is counted of it, and the marks around each window."""
    found = {what: row[counted(what, vocabulary.name)] for what in COUNTED}
    if not found["tokens_cut"]:
        del found["tokens_cut"]
    return found | {"marks": list(vocabulary.around)}


def _precision(text: str | None) -> TimePrecision:
    return cast(TimePrecision, text) if text in get_args(TimePrecision) else "day"


def _fingerprint(path: Path) -> str:
    try:
        return file_fingerprint(path) if path.is_file() else f"no file:{path.name}"
    except OSError:
        return f"closed:{path.name}"
