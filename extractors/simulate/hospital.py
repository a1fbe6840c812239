"""Writes a whole simulated hospital: tables, CT, slides, and the truth of what was planted."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from extractors.simulate.course import BLOCK, imaging_plan, simulate_subject
from extractors.simulate.faults import plant_image_faults, plant_table_faults
from extractors.simulate.images import MANIFEST, SIGNAL, write_images
from extractors.simulate.record import TABLES, Record, Row
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, sync_directory, write_json
from warehouse.progress import Progress

GENERATOR_VERSION = 1
MARKER = "SIMULATED.json"


@dataclass(frozen=True)
class SimulationSummary:
    """What a simulated hospital holds.

    Attributes:
        subjects: patients.
        rows: data rows of each exported table, faults included.
        ct_series: good CT series; faulty ones come on top.
        slides: good slides; faulty ones come on top.
        faults: planted faults by name, how many of each.
        truth: the folder that says what was planted; no part of the export.
    """

    subjects: int
    rows: dict[str, int]
    ct_series: int
    slides: int
    faults: dict[str, int]
    truth: Path


def simulate(
    out: Path,
    *,
    subjects: int = 500,
    seed: int = 0,
    imaging_share: float = 0.15,
    progress: Progress | None = None,
) -> SimulationSummary:
    """Writes a simulated cancer hospital to `out`, the same bytes for the same arguments.

    The hospital appears whole or not at all: it is built beside `out` and renamed. If `out` already holds the
    hospital of these arguments, nothing is written.

    Args:
        out: a folder that is absent, empty, or an earlier simulation.
        subjects: patients, at least 20, so that every fault finds a place.
        seed: any integer from 0.
        imaging_share: share of subjects with images, 0 to 1.
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
    arguments = {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "subjects": subjects,
        "imaging_share": imaging_share,
    }
    if (known := _already_there(out, arguments)) is not None:
        return known
    # One fixed name: the leftover of a killed run is removed by the next one.
    staging = out.parent / f".{out.name}.part"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        summary = _write(staging, subjects, seed, imaging_share, progress or _silent)
        said = asdict(summary)
        del said["truth"]
        write_json(staging / MARKER, {"arguments": arguments, "summary": said})
        staging.replace(out)
        sync_directory(out.parent)
    except OSError as error:
        raise TimeloomError(
            f"the simulated hospital cannot be written: {error.strerror}",
            remedy="free space, or choose a folder that can be written",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return SimulationSummary(**said, truth=out / "truth")


def _silent(what: str, done: int, total: int) -> None:
    """Progress for callers who want none."""


def _already_there(out: Path, arguments: dict[str, int | float]) -> SimulationSummary | None:
    """The summary of an equal simulation in `out`; None where `out` is free."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise TimeloomError("the folder of the simulated hospital is a file", remedy="choose another folder")
    if not any(out.iterdir()):
        return None
    try:
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
        same = marker["arguments"] == arguments
        summary = SimulationSummary(**marker["summary"], truth=out / "truth")
    except (OSError, ValueError, KeyError, TypeError):
        raise TimeloomError(
            "the folder of the simulated hospital holds something else", remedy="choose an empty or absent folder"
        ) from None
    if not same:
        raise TimeloomError(
            "the folder holds a hospital simulated with another seed, size, imaging share or version",
            remedy="choose another folder, or remove this one",
        )
    return summary


def _write(root: Path, subjects: int, seed: int, imaging_share: float, progress: Progress) -> SimulationSummary:
    plan = imaging_plan(seed, subjects, imaging_share)
    rows: dict[str, list[Row]] = {table: [] for table in TABLES}
    kept: list[Record] = []
    for index in range(1, subjects + 1):
        record = simulate_subject(seed, index, plan.get(index, frozenset()))
        for table, of_subject in record.rows().items():
            rows[table].extend(of_subject)
        if record.images or not kept:
            kept.append(record)
        progress("subjects", index, subjects)

    total, done = sum(len(record.images) for record in kept), 0

    def one_more() -> None:
        nonlocal done
        done += 1
        progress("images", done, total)

    signal, manifest = write_images(root, seed, kept, one_more)
    host = next((record for record in kept if record.images), kept[0])
    image_faults, faulty_slides = plant_image_faults(root, seed, host)
    tables, table_faults = plant_table_faults({name: _frame(name, rows[name]) for name in TABLES}, seed)

    for name, frame in tables.items():
        _write_csv(root / "tables" / f"{name}.csv", frame)
    _write_csv(root / "slides" / "manifest.csv", pl.DataFrame(manifest + faulty_slides, MANIFEST, orient="row"))
    _write_csv(root / "truth" / "signal.csv", pl.DataFrame(signal, SIGNAL, orient="row"))
    faults = image_faults + table_faults
    write_json(root / "truth" / "faults.json", [fault.as_json() for fault in faults])
    return SimulationSummary(
        subjects,
        {name: len(frame) for name, frame in tables.items()},
        total - len(manifest),
        len(manifest),
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


def _write_csv(path: Path, frame: pl.DataFrame) -> None:
    with atomic_write(path) as temporary:
        frame.write_csv(temporary)
