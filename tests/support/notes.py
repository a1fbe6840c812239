"""Made tables of notes, as hospitals write them."""

import csv
import gzip
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from extractors.items import FoundItem
from extractors.note.settings import NOTE, NoteSettings

DISCHARGE = ("note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime", "text")
DETAIL = ("note_id", "subject_id", "field_name", "field_value", "field_ordinal")


def csv_bytes(columns: Sequence[str], rows: Sequence[Sequence[Any]], encoding: str = "utf-8") -> bytes:
    """Rows as Python's own csv module writes them; None is an empty field."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    return text.getvalue().encode(encoding)


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]], encoding: str = "utf-8") -> Path:
    """A CSV, gzipped where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = csv_bytes(columns, rows, encoding)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def write_discharge(folder: Path, rows: Sequence[Mapping[str, Any]], details: Sequence[Sequence[Any]] = ()) -> Path:
    """MIMIC-IV-Note's tables of discharge summaries; what a row does not say is of one subject and stay."""
    usual = {"subject_id": 10, "hadm_id": 20, "note_type": "DS", "note_seq": 1, "charttime": "2130-05-06 00:00:00"}
    filled = [[{**usual, **row}.get(name) for name in DISCHARGE] for row in rows]
    write_table(folder / "note" / "discharge.csv.gz", DISCHARGE, filled)
    write_table(folder / "note" / "discharge_detail.csv.gz", DETAIL, details)
    return folder


def write_text_files(folder: Path, texts: Mapping[str, str], subjects: Mapping[str, str]) -> Path:
    """Text files by name, gzipped where that says so, and an index table beside them, which it gives."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        content = text.encode()
        (folder / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    rows = [(name, subject, "2130-05-06 10:00:00") for name, subject in subjects.items()]
    return write_table(folder / "notes.csv", ("path", "subject_id", "charttime"), rows)


def found_in(folder: Path, kept: Path | None = None, **settings: Any) -> list[FoundItem]:
    """What the index finds below a folder, other files apart."""
    made = NoteSettings.model_validate({"path": folder, **settings})
    found = NOTE.index_items(made, None, workers=1, kept=kept)
    return [item for item in found if item.verdict != NOTE.foreign]
