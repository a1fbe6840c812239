"""Every ECG of a tree, read whole and judged: its verdict, its time, and how many windows it has.

Times are those of acquisition, of the file or of the site's table; a file's comments, and when it was written, never
count. A table that names records gives their subjects and times; files that it does not name keep what they say
themselves.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, cast, get_args

import polars as pl

from extractors.ecg.files import Kind, files_of, find_files, kind_of
from extractors.ecg.judge import described, judge
from extractors.ecg.read import READING, read_recording, windows_of
from extractors.ecg.recording import Recording, RefusedError
from extractors.ecg.settings import ECG, EcgSettings
from extractors.ecg.wfdb_record import ENDING
from extractors.items import (
    BESIDE_FILES,
    OK,
    FoundItem,
    TimePrecision,
    VerdictError,
    file_fingerprint,
    foreign_item,
    foreign_number,
    identity_of,
    nobodys_item,
    unread_item,
)
from extractors.judging import judge_each
from warehouse.errors import RawFileChangedError
from warehouse.files import signature

MODALITY = "ecg"
FILES_A_WORKER = 64  # fewer are judged before another process has started


@dataclass(frozen=True)
class Row:
    """What a site's table says of a file."""

    subject: str | None
    time: datetime | None
    precision: TimePrecision
    available: datetime | None


@dataclass(frozen=True)
class _File:
    """A file to be judged; `row` is None where no table names it, `kind` where it is not there."""

    path: str
    kind: Kind | None
    row: Row | None = None


def index(
    settings: EcgSettings,
    links: pl.DataFrame | None,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
    known: Sequence[FoundItem] = (),
) -> list[FoundItem]:
    """The modality's items, as `extractors.extractor.Extractor` says: one a recording, and one for all other files.

    A crosswalk by `path` names records with or without their ending; one by `patient_id` is laid over by the run.

    Args:
        known: items of an earlier night; recordings whose files stand as they did then are not read.

    Raises:
        RawFileChangedError: a file is not the same before and after it was judged.
    """
    root, found = settings.path, find_files(settings.path)
    by_path = links is not None and settings.crosswalk is not None and settings.crosswalk.match == "path"
    files = _named(root, found.files, _rows(cast(pl.DataFrame, links)) if by_path else {})
    judged = judge_each(
        files,
        partial(_judged, settings),
        lambda file: (file.path, state_of(root, file.path, file.kind)),
        known,
        workers=workers,
        a_worker=FILES_A_WORKER,
        progress=progress,
        chunk=16,
    )
    items = [_tied(file, item) for file, item in zip(files, judged, strict=True)]
    items += [unread_item(MODALITY, entry.path, BESIDE_FILES[entry.kind]) for entry in found.beside]
    if found.others:
        total = sum(foreign_number(_fingerprint(root / path)) for path in found.others)
        items.append(foreign_item(MODALITY, ECG.foreign, len(found.others), total))
    return sorted(items, key=lambda item: (item.paths, item.identity))


def _rows(links: pl.DataFrame) -> dict[str, Row]:
    """By path, without a header's ending, what a table says."""
    rows: dict[str, Row] = {}
    named = links.select("match", "subject_id", "time", "time_precision", "available_time").drop_nulls("match")
    for match, subject, time, precision, available in named.iter_rows():
        known: TimePrecision = precision if precision in get_args(TimePrecision) else "day"
        key = PurePosixPath(match).as_posix().removesuffix(ENDING)
        rows.setdefault(key, Row(subject, time, known, available))
    return rows


def _named(root: Path, files: list[tuple[str, Kind]], rows: dict[str, Row]) -> list[_File]:
    """Files with what the table says of them, and rows whose files are not there."""
    named = [_File(path, kind, rows.get(path.removesuffix(ENDING))) for path, kind in files]
    seen = {file.path.removesuffix(ENDING) for file in named}
    return named + [_File(key, _kind_of_named(root, key), row) for key, row in rows.items() if key not in seen]


def _kind_of_named(root: Path, path: str) -> Kind | None:
    """Of a file that a table names and the tree has, but that looked like no ECG; None where it is away or outside."""
    parts = PurePosixPath(path)
    return None if parts.is_absolute() or ".." in parts.parts else kind_of(root, path)


def state_of(root: Path, path: str, kind: Kind | None) -> str:
    """What tells that a recording's judgement stands: its files as they are. Empty where one is away."""
    if kind is None:
        return ""
    try:
        return json.dumps([signature(root / part) for part in files_of(root, path, kind)])
    except OSError:
        return ""


def _tied(file: _File, item: FoundItem) -> FoundItem:
    """A judged recording with what the table says of whose it is, and when."""
    stated, row = item.geometry["judged"], file.row
    subject = stated["subject"] if row is None else row.subject
    time, source, precision = (
        stated["time"] and datetime.fromisoformat(stated["time"]),
        stated["source"],
        stated["precision"],
    )
    if row is not None and row.time is not None:
        time, source, precision = row.time, "crosswalk", row.precision
    verdict = stated["verdict"]
    # A WFDB header has no field for a subject: whether one is missing is for the run to say, which knows the table.
    says_subject = row is not None or stated["names_subject"]
    if verdict == OK and says_subject and not subject:
        verdict = "failed_no_subject"
    elif verdict == OK and says_subject and time is None:
        verdict = "failed_no_time"
    return replace(
        item,
        raw_subject=subject,
        time=time,
        time_source=source,
        time_precision=precision,
        available_time=row.available if row is not None else None,
        verdict=verdict,
    )


def _judged(settings: EcgSettings, file: _File) -> FoundItem:
    """A recording by its files alone; what they say of subject and time stands in its geometry.

    Raises:
        RawFileChangedError: a file is not the same before and after.
    """
    root = settings.path
    before = state_of(root, file.path, file.kind)
    verdict, content, units = OK, "", None
    recording: Recording | None = None
    geometry: dict[str, Any] = {}
    try:
        if file.kind is None:
            raise VerdictError("failed_missing_file")
        recording = read_recording(root, file.path, file.kind, settings)
        geometry = described(recording)
        judged = judge(recording, settings)
        content = judged.content
        units, left_out = windows_of(judged.leads.shape[1], judged.rate, settings)
        reading = settings.model_dump(mode="json", include=set(READING))
        geometry = {**judged.facts, "stamp": content, "reading": reading}
        if left_out:
            geometry["windows_left_out"] = left_out
    except RefusedError as error:
        verdict = error.verdict
        geometry |= error.facts
    except VerdictError as error:
        verdict = error.verdict
    if before != state_of(root, file.path, file.kind):
        raise RawFileChangedError("a file of the ECGs")
    return nobodys_item(
        modality=MODALITY,
        identity=_identity(settings, file, content),
        paths=recording.files if recording is not None else (file.path,),
        verdict=verdict,
        units_expected=units,
        geometry=geometry | {"state": before, "judged": _stated(verdict, recording)},
        content=content,
    )


def _stated(verdict: str, recording: Recording | None) -> dict[str, Any]:
    """What a recording says itself, as JSON, so that another table can be laid over it another night."""
    moment = recording.moment if recording is not None else None
    return {
        "verdict": verdict,
        "subject": recording.subject if recording is not None else None,
        "names_subject": recording is not None and recording.names_subject,
        "time": moment.time.isoformat() if moment is not None else None,
        "source": moment.source if moment is not None else "",
        "precision": moment.precision if moment is not None else "day",
    }


def _identity(settings: EcgSettings, file: _File, content: str) -> str:
    """Of what can be read, its signal and how it is read; else of its file, as far as there is one."""
    if content:
        return identity_of([content, f"reading:{settings.model_dump_json(include=set(READING))}"])
    if file.kind is None:
        return identity_of([f"absent:{file.path}"])
    return identity_of([_fingerprint(settings.path / file.path), f"file:{file.path}"])


def _fingerprint(path: Path) -> str:
    try:
        return file_fingerprint(path) if path.is_file() else f"no file:{path.name}"
    except OSError:
        return f"closed:{path.name}"
