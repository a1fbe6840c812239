"""Chest x-rays of a tree: each file decoded once and judged; then what a table and the configuration say of it.

Which object, whose, when and from which side is read from DICOM headers, or from the table of JPEG and PNG files. The
rules are listed in docs/verdicts.md.
"""

import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO, get_args

import numpy as np
import xxhash

from extractors.cxr.copies import fingerprint_of, near_copies
from extractors.cxr.film import dicom_picture, image_picture, may_be_other, open_dicom, origin_of
from extractors.cxr.grey import Picture
from extractors.cxr.header import FilmHeader, moments, spacing_of
from extractors.cxr.settings import CXR, CxrSettings
from extractors.cxr.table import Row, name_of, rows_of
from extractors.cxr.views import laterality_of, view_of, yes_or_no
from extractors.dicom.files import disk_stamp, is_regular
from extractors.dicom.time import earliest
from extractors.extractor import Examined, Finding
from extractors.items import (
    BESIDE_FILES,
    OK,
    TWO_SUBJECTS,
    FoundItem,
    TimePrecision,
    VerdictError,
    foreign_item,
    foreign_number,
    identity_of,
    stream_fingerprint,
)
from extractors.trees import Entry, walk
from warehouse.errors import TimeloomError

MODALITY = "cxr"
_FILES_A_TASK = 8


@dataclass(frozen=True)
class Film:
    """What one file is, before a table or a configuration says anything of it; JSON by `asdict`.

    Attributes:
        verdict: of the file alone.
        content: of the picture's pixels; empty where there is none.
        near: bits of the picture's outline in hex, by which copies of other brightness are found.
    """

    path: str
    verdict: str
    origin: str = ""
    fingerprint: str = ""
    stamp: str = ""
    series: str = ""
    study: str = ""
    accession: str = ""
    subject: str = ""
    issuer: str = ""
    time: str = ""
    time_source: str = ""
    time_precision: str = "day"
    capture: bool = False
    raw: bool = False
    view: str = ""
    view_code: str = ""
    laterality: str = ""
    burned_in: str = ""
    body_part: str = ""
    rows: int = 0
    columns: int = 0
    contrast: float = 0.0
    content: str = ""
    near: str = ""
    near_copies: int = 0
    geometry: dict[str, Any] = field(default_factory=dict)


def index(
    settings: CxrSettings, links: object, progress: Callable[[int, int], None] | None, workers: int | None
) -> list[FoundItem]:
    """The modality's items, as `extractors.extractor.Extractor` says; `links` are tied to patients by the run."""
    findings: dict[str, list[Finding]] = defaultdict(list)
    foreign: list[str] = []
    for count, (entry, examined) in enumerate(_examined(settings, workers or os.cpu_count() or 1), 1):
        findings[str(PurePosixPath(entry.path).parent)] += examined.findings
        foreign += examined.foreign
        if progress is not None:
            progress(count, 0)
    found = items(settings, chain.from_iterable(map(beside, findings.values())))
    if foreign:
        found.append(foreign_item(MODALITY, CXR.foreign, len(foreign), sum(map(foreign_number, foreign))))
    return sorted(found, key=lambda item: (item.paths, item.identity))


def _examined(settings: CxrSettings, workers: int) -> Iterator[tuple[Entry, Examined]]:
    """What each file is, in the order of the walk. A few are read here: processes take a second to start."""
    entries = walk(settings.path)
    first = list(islice(entries, _FILES_A_TASK * workers if workers > 1 else 0))
    look = partial(examine, settings)
    if len(first) < _FILES_A_TASK * workers or workers == 1:
        yield from ((entry, look(entry)) for entry in chain(first, entries))
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        rest = iter(lambda: list(islice(entries, _FILES_A_TASK * workers * 8)), [])
        try:
            for batch in chain([first], rest):
                yield from zip(batch, pool.map(look, batch, chunksize=_FILES_A_TASK), strict=True)
        except BrokenProcessPool as error:
            raise TimeloomError(
                "a process that reads x-rays was killed", remedy="give the run more memory or fewer workers"
            ) from error


def examine(settings: CxrSettings, entry: Entry) -> Examined:
    """What one file is: a film with its verdict, or what is neither DICOM, JPEG nor PNG."""
    if entry.kind != "file":
        return _as_finding(Film(entry.path, BESIDE_FILES[entry.kind]))
    path = settings.path / entry.path
    try:
        status = path.stat()
        if not is_regular(status):
            return Examined([], [entry.path])
        with path.open("rb") as file:
            fingerprint = stream_fingerprint(file, status.st_size)
            film = Film(entry.path, "failed_unreadable", fingerprint=fingerprint, stamp=disk_stamp(status))
            file.seek(0)
            head = file.read(512)
            origin = origin_of(head, entry.path)
            if origin is None:
                return Examined([], [fingerprint])
            file.seek(0)
            if origin == "dicom":
                found = _dicom(
                    settings, replace(film, origin=origin), file, status.st_size, may_be_other(head, entry.path)
                )
                return found if isinstance(found, Examined) else _as_finding(found)
            return _as_finding(_image(settings, replace(film, origin=origin), file))
    except OSError:
        return _as_finding(Film(entry.path, "failed_unreadable"))


def _as_finding(film: Film) -> Examined:
    series = film.series if film.verdict.startswith("refused_") and film.series else film.path
    return Examined([Finding(asdict(film), series, film.study)], [])


def _dicom(settings: CxrSettings, film: Film, file: BinaryIO, size: int, other: bool) -> Film | Examined:
    try:
        opened = open_dicom(file, size)
    except VerdictError as error:
        return replace(film, verdict=error.verdict)
    except Exception:  # pydicom raises almost anything on damaged bytes; the verdict says what matters
        return Examined([], [film.fingerprint]) if other else film
    if opened is None:
        return Examined([], [])
    texts = opened.elements.values
    if other and not texts.get("SOPClassUID"):
        return Examined([], [film.fingerprint])
    film = replace(
        film,
        verdict=opened.verdict,
        series=texts.get("SeriesInstanceUID", ""),
        study=texts.get("StudyInstanceUID", ""),
    )
    if opened.header is None:
        return film
    film = _told(film, opened.header, settings.timezone)
    if film.verdict != OK:
        return film
    try:
        return _seen(film, dicom_picture(opened, settings.stretch), opened.header)
    except VerdictError as error:
        return replace(film, verdict=error.verdict)
    except MemoryError:
        raise
    except Exception:  # decoders raise almost anything on damaged bytes
        return replace(film, verdict="failed_unreadable")


def _told(film: Film, header: FilmHeader, site_timezone: str | None) -> Film:
    """A film with what its header says of it."""
    texts = header.texts
    moment = earliest([moments(header, site_timezone)])
    spacing, source = spacing_of(texts)
    geometry: dict[str, Any] = {"spacing_mm": spacing, "spacing_source": source}
    if moment is not None:
        film = replace(film, time=moment.time.isoformat(), time_source=moment.source, time_precision=moment.precision)
        if moment.utc_offset_minutes is not None:
            geometry["utc_offset_minutes"] = moment.utc_offset_minutes
    return replace(
        film,
        accession=texts["AccessionNumber"],
        subject=texts["PatientID"],
        issuer=" ".join(texts["IssuerOfPatientID"].upper().split()),
        capture=header.capture,
        raw=header.raw,
        view=texts["ViewPosition"],
        view_code=header.view_code,
        laterality=laterality_of(texts["ImageLaterality"], texts["Laterality"]),
        burned_in=texts["BurnedInAnnotation"],
        body_part=texts["BodyPartExamined"] or header.region,
        geometry=geometry,
    )


def _image(settings: CxrSettings, film: Film, file: BinaryIO) -> Film:
    try:
        return _seen(replace(film, verdict=OK), image_picture(file, settings.stretch, whole=True))
    except VerdictError as error:
        return replace(film, verdict=error.verdict)
    except MemoryError:
        raise
    except Exception:  # Pillow raises many things on damaged bytes
        return film


def _seen(film: Film, picture: Picture, header: FilmHeader | None = None) -> Film:
    """A film with what its pixels say."""
    rows, columns = picture.pixels.shape
    grey: dict[str, Any] = {"grey": picture.voi}
    if header is not None:
        grey["inverted"] = header.scale.inverted
        grey["windows_refused"] = header.scale.unusable_windows + picture.refused
    return replace(
        film,
        rows=rows,
        columns=columns,
        contrast=round(picture.contrast, 6),
        content=xxhash.xxh3_128_hexdigest(f"{rows}x{columns}:".encode() + np.ascontiguousarray(picture.pixels).data),
        near=fingerprint_of(picture.pixels),
        geometry={**film.geometry, **grey},
    )


def beside(findings: Sequence[Finding]) -> list[Finding]:
    """The findings of a folder, each with how many others look like it: it is told, and changes no verdict."""
    films = [(place, found.value["near"]) for place, found in enumerate(findings) if found.value["near"]]
    counted = dict(zip((place for place, _ in films), near_copies([near for _, near in films]), strict=True))
    return [
        replace(found, value={**found.value, "near_copies": counted[place]}) if counted.get(place) else found
        for place, found in enumerate(findings)
    ]


def items(settings: CxrSettings, findings: Iterable[Finding]) -> list[FoundItem]:
    """The items of films: one each, and one for the refused files of a series."""
    films = sorted((Film(**found.value) for found in findings), key=lambda film: film.path)
    table = settings.table
    rows = {} if table is None else rows_of(table, {name_of(film.path, table.matched_by) for film in films})
    refused: dict[tuple[str, str], list[Film]] = defaultdict(list)
    found = []
    for film in films:
        row = None if table is None else rows.get(name_of(film.path, table.matched_by))
        if film.verdict.startswith("refused_") and film.series:
            refused[film.series, film.verdict].append(film)
        else:
            found.append(_item(settings, film, row))
    found += [_refused(members) for members in refused.values()]
    return sorted(found, key=lambda item: (item.paths, item.identity))


def _refused(films: Sequence[Film]) -> FoundItem:
    identity = identity_of(film.fingerprint or film.path for film in films)
    paths = tuple(film.path for film in films)
    return FoundItem(
        MODALITY, None, identity, paths, None, "", "day", None, films[0].verdict, None, {"files": len(films)}
    )


def _item(settings: CxrSettings, film: Film, row: Row | None) -> FoundItem:
    view, position, source, disagree = _view(film, row)
    laterality = laterality_of(row.laterality if row else "", film.laterality)
    burned_in = yes_or_no((row and row.burned_in) or film.burned_in)
    subject = row.subjects[0] if row and row.subjects else film.subject or None
    time = datetime.fromisoformat(film.time) if film.time else None
    time_source, precision = film.time_source, film.time_precision
    if row is not None and row.time is not None:
        time, time_source, precision = row.time, "table", row.precision
    verdict = film.verdict
    if verdict == OK:
        body_part = (row and row.body_part) or film.body_part
        verdict = _verdict(settings, film, view, burned_in, body_part)
    if verdict == OK and row is not None and len(row.subjects) > 1:
        verdict = TWO_SUBJECTS
    # Of JPEG and PNG a run's table says whose they are: without one the files alone are judged.
    if verdict == OK and (film.origin == "dicom" or settings.table is not None) and settings.crosswalk is None:
        verdict = "failed_no_subject" if subject is None else OK if time is not None else "failed_no_time"
    geometry: dict[str, Any] = {"origin": film.origin, "burned_in": burned_in}
    if film.content:
        geometry |= {
            "rows": film.rows, "columns": film.columns, "view": view, "view_position": position,
            "view_source": source, "views_disagree": disagree, "laterality": laterality,
            "near_copies": film.near_copies, "stretch": list(settings.stretch), **film.geometry,
        }  # fmt: skip
    return FoundItem(
        modality=MODALITY,
        raw_subject=subject,
        identity=film.content or identity_of([film.fingerprint or film.path]),
        paths=(film.path,),
        time=time,
        time_source=time_source,
        time_precision=_precision(precision),
        available_time=row.available if row else None,
        verdict=verdict,
        units_expected=1 if film.content else None,
        geometry={**geometry, "stamp": film.stamp},
        content=film.content,
        issuer="" if row and row.subjects else film.issuer,
        names={"study_uid": film.study, "series_uid": film.series, "accession_number": film.accession},
    )


def _precision(text: str) -> TimePrecision:
    """A precision of items; what a table writes by the month stands at a day."""
    known: dict[str, TimePrecision] = {name: name for name in get_args(TimePrecision)}
    return known.get(text, "day")


def _view(film: Film, row: Row | None) -> tuple[str, str, str, bool]:
    """The view, its position's name, who says so, and whether table and header say two different things."""
    views = [
        (*view_of(position, code), source)
        for position, code, source in (
            (row.view if row else "", row.view_code if row else "", "table"),
            (film.view, film.view_code, "header"),
        )
    ]
    known = [found for found in views if found[0] != "unknown"]
    view, position, source = known[0] if known else ("unknown", "", "")
    return view, position, source, len({found[0] for found in known}) > 1


def _verdict(settings: CxrSettings, film: Film, view: str, burned_in: str, body_part: str) -> str:
    """What a configuration says of a film that could be read."""
    if film.capture and not settings.secondary_captures:
        return "refused_secondary_capture"
    if film.raw and not settings.for_processing:
        return "refused_for_processing"
    if burned_in == "yes" and settings.burned_in == "refuse":
        return "refused_burned_in"
    words = body_part.upper()
    if words and not any(part.upper() in words for part in settings.body_parts):
        return "refused_not_chest"
    if min(film.rows, film.columns) < settings.least_side:
        return "refused_too_small"
    if film.contrast < settings.least_contrast or not film.contrast:
        return "failed_blank"
    return OK if view in settings.views else "refused_view"
