"""Writes a whole simulated hospital: tables, CT, slides, and the truth of what was planted."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from extractors.simulate.course import BLOCK, imaging_plan, simulate_subject
from extractors.simulate.ecg import export_ecgs
from extractors.simulate.export import SIGNAL, Exported, write_table
from extractors.simulate.faults import plant_image_faults, plant_table_faults
from extractors.simulate.films import export_films
from extractors.simulate.images import MANIFEST, MODALITIES, write_images
from extractors.simulate.nifti import export_nifti
from extractors.simulate.notes import export_notes
from extractors.simulate.record import TABLES, Record, Row
from extractors.simulate.studies import KINDS, Planned, rows_of, studies_of, studies_plan
from extractors.simulate.task_cases import TRUTH, plant_task_cases
from warehouse.errors import TimeloomError
from warehouse.files import sync_directory, write_json
from warehouse.progress import Progress

GENERATOR_VERSION = 2
MARKER = "SIMULATED.json"

Export = Callable[[Path, int, Mapping[str, Sequence[Planned]], Callable[[], None]], Exported]
EXPORTS: Mapping[str, Export] = {
    "ecg": export_ecgs,
    "cxr": export_films,
    "note": export_notes,
    "nifti": export_nifti,
}
"""By kind of study, what writes them: a function of the export's folder, the seed, all studies by kind with their
subjects, and what is called for each."""
MADE = {
    "ct": "CT series",
    "wsi": "slides",
    "ecg": "ECGs",
    "cxr": "chest x-rays",
    "note": "notes",
    "nifti": "CT in NIfTI",
}
"""Kinds of items that can be asked for, and what they are called."""
READ_AS = {**{kind: kind for kind in MADE}, "nifti": "ct"}
"""By kind, the modality that reads it."""


@dataclass(frozen=True)
class Arguments:
    """What a hospital is made by; `modalities` in the order of MADE."""

    seed: int
    subjects: int
    imaging_share: float
    modalities: tuple[str, ...]
    task_cases: bool = False

    def as_json(self) -> dict[str, Any]:
        """As the marker of a finished hospital keeps it."""
        plain = {"generator_version": GENERATOR_VERSION, **asdict(self)}
        del plain["task_cases"]
        with_cases = {"task_cases": True} if self.task_cases else {}
        return plain | {"modalities": list(self.modalities)} | with_cases


@dataclass(frozen=True)
class SimulationSummary:
    """What a simulated hospital holds.

    Attributes:
        subjects: patients.
        rows: data rows of each exported table, faults included.
        items: good items of each kind in MADE that was asked for; faulty ones come on top.
        faults: planted faults by name, how many of each.
        truth: the folder that says what was planted; no part of the export.
    """

    subjects: int
    rows: dict[str, int]
    items: dict[str, int]
    faults: dict[str, int]
    truth: Path

    @property
    def in_words(self) -> str:
        """The items, as a line that people read."""
        return ", ".join(f"{self.items[name]} {title}" for name, title in MADE.items() if name in self.items)


def simulate(
    out: Path,
    *,
    subjects: int = 500,
    seed: int = 0,
    imaging_share: float = 0.15,
    modalities: Collection[str] = tuple(MADE),
    task_cases: bool = False,
    progress: Progress | None = None,
) -> SimulationSummary:
    """Writes a simulated cancer hospital to `out`, the same bytes for the same arguments.

    The hospital appears whole or not at all: it is built beside `out` and renamed. If `out` already holds the
    hospital of these arguments, nothing is written.

    Args:
        out: a folder that is absent, empty, or an earlier simulation.
        subjects: patients, at least 20, so that every fault finds a place.
        seed: any integer from 0.
        imaging_share: share of subjects with images, 0 to 1, and of those with each of ECGs, x-rays and notes; a
            third of it have CT in NIfTI.
        modalities: what is written of MADE. Without one of them all others, and the rows of its visits, are the same.
        task_cases: plant a patient for each rule of the tasks besides; truth/labels.csv says what each task answers.
        progress: called with what is written (`subjects`, `images`), how many are done and how many there are.

    Raises:
        TimeloomError: an argument is out of range, `out` holds something else, or `out` cannot be written.
    """
    if subjects < BLOCK:
        raise TimeloomError(
            f"a simulated hospital needs at least {BLOCK} subjects, not {subjects}", remedy=f"ask for {BLOCK} or more"
        )
    if seed < 0:
        raise TimeloomError(f"the seed {seed} is negative", remedy="give a seed from 0")
    if not 0.0 <= imaging_share <= 1.0:
        raise TimeloomError(f"the imaging share {imaging_share} is no share", remedy="give a number from 0 to 1")
    unknown = [name for name in modalities if name not in MADE]
    if unknown or not modalities:
        raise TimeloomError(
            f"nobody simulates {unknown[0]}" if unknown else "no modality is asked for",
            remedy=f"name some of {', '.join(MADE)}",
        )
    arguments = Arguments(seed, subjects, imaging_share, tuple(name for name in MADE if name in modalities), task_cases)
    if (known := _already_there(out, arguments)) is not None:
        return known
    with appearing_whole(out) as staging:
        said = asdict(_write(staging, arguments, progress or _silent))
        del said["truth"]
        write_json(staging / MARKER, {"arguments": arguments.as_json(), "summary": said})
    return SimulationSummary(**said, truth=out / "truth")


@contextmanager
def appearing_whole(out: Path) -> Iterator[Path]:
    """A folder beside `out`, which is absent or empty, that takes its name when the block has ended, or goes.

    Raises:
        TimeloomError: something cannot be written.
    """
    # One fixed name: the leftover of a killed run is removed by the next one.
    staging = out.parent / f".{out.name}.part"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        staging.replace(out)
        sync_directory(out.parent)
    except OSError as error:
        raise TimeloomError(
            f"the simulated hospital cannot be written: {error.strerror}",
            remedy="free space, or choose a folder that can be written",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _silent(what: str, done: int, total: int) -> None:
    """Progress for callers who want none."""


def _already_there(out: Path, arguments: Arguments) -> SimulationSummary | None:
    """The summary of an equal simulation in `out`; None where `out` is free."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise TimeloomError("the folder of the simulated hospital is a file", remedy="choose another folder")
    if not any(out.iterdir()):
        return None
    try:
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
        same = marker["arguments"] == arguments.as_json()
        summary = SimulationSummary(**marker["summary"], truth=out / "truth")
    except (OSError, ValueError, KeyError, TypeError):
        raise TimeloomError(
            "the folder of the simulated hospital holds something else", remedy="choose an empty or absent folder"
        ) from None
    if not same:
        raise TimeloomError(
            "the folder holds a hospital simulated with another seed, size, imaging share, version or other modalities",
            remedy="choose another folder, or remove this one",
        )
    return summary


def _write(root: Path, arguments: Arguments, progress: Progress) -> SimulationSummary:
    seed, modalities = arguments.seed, arguments.modalities
    plan = imaging_plan(seed, arguments.subjects, arguments.imaging_share)
    further = studies_plan(seed, arguments.subjects, arguments.imaging_share)
    rows: dict[str, list[Row]] = {table: [] for table in TABLES}
    of_studies: dict[str, list[Row]] = {table: [] for table in TABLES}
    kept: list[Record] = []
    planned: dict[str, list[Planned]] = {kind: [] for kind in KINDS}
    for index in range(1, arguments.subjects + 1):
        record = simulate_subject(seed, index, plan.get(index, frozenset()))
        for table, of_subject in record.rows().items():
            rows[table].extend(of_subject)
        if record.images or not kept:
            kept.append(record)
        studies = studies_of(seed, record, further.get(index, ()))
        wanted = [study for study in studies if study.kind in modalities]
        for study in wanted:
            planned[study.kind].append((record, study))
        for table, of_subject in rows_of(record, wanted).items():
            of_studies[table].extend(of_subject)
        progress("subjects", index, arguments.subjects)

    images = [image for record in kept for image in record.images if MODALITIES[image.kind] in modalities]
    total, done = len(images) + sum(map(len, planned.values())), 0

    def one_more() -> None:
        nonlocal done
        done += 1
        progress("images", done, total)

    signal, manifest = write_images(root, seed, kept, modalities, one_more)
    host = next((record for record in kept if record.images), kept[0])
    faults, faulty_slides = plant_image_faults(root, seed, host, modalities)
    for kind, export in EXPORTS.items():
        # CT has a table of its NIfTI files, be there any or not.
        if kind in modalities or (kind == "nifti" and "ct" in modalities):
            exported = export(root, seed, planned, one_more)
            signal += exported.signal
            faults += exported.faults
    if arguments.task_cases:
        cases, truth = plant_task_cases(seed)
        for table, of_cases in cases.items():
            of_studies[table].extend(of_cases)
        write_table(root / "truth" / "labels.csv", pl.DataFrame(truth, TRUTH, orient="row"))
    # The visits of studies come last, so that the rows before them are the same whatever is asked for.
    tables, table_faults = plant_table_faults({name: _frame(name, rows[name]) for name in TABLES}, seed)
    for name, frame in tables.items():
        write_table(root / "tables" / f"{name}.csv", pl.concat([frame, _frame(name, of_studies[name])]))
    if "wsi" in modalities:
        write_table(root / "slides" / "manifest.csv", pl.DataFrame(manifest + faulty_slides, MANIFEST, orient="row"))
    write_table(root / "truth" / "signal.csv", pl.DataFrame(signal, SIGNAL, orient="row"))
    faults += table_faults
    write_json(root / "truth" / "faults.json", [fault.as_json() for fault in faults])
    kinds = Counter(str(row[1]) for row in signal)
    return SimulationSummary(
        arguments.subjects,
        {name: len(frame) + len(of_studies[name]) for name, frame in tables.items()},
        {name: kinds["slide" if name == "wsi" else name] for name in modalities},
        {fault.name: fault.count for fault in faults},
        root / "truth",
    )


def _frame(table: str, rows: list[Row]) -> pl.DataFrame:
    """Rows as a frame, with times and dates as the hospital prints them."""
    frame = pl.DataFrame(rows, TABLES[table], orient="row")
    return frame.with_columns(
        [
            pl.from_epoch(name, "s").dt.strftime("%Y-%m-%d %H:%M:%S").alias(name)
            for name in frame.columns
            if name.endswith("_time")
        ]
        + [
            pl.from_epoch(name, "d").dt.strftime("%Y-%m-%d").alias(name)
            for name in frame.columns
            if name.endswith("_date")
        ]
    )
