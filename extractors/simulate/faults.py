"""Faults of a real export, planted on top of the good data so that verdicts and ledgers have something to show."""

from collections.abc import Collection
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from extractors.simulate.codes import CT_FINDINGS, SLIDE_FINDINGS
from extractors.simulate.ct import Series, Volume, localizer, phantom, write_series
from extractors.simulate.export import Fault, clock, cut_short, of_items
from extractors.simulate.record import DAY, HOUR, Record, Row
from extractors.simulate.slides import scan_time, tissue, write_slide

BAD_TIMES = ("2019-13-45 99:99", "31/02/2020 10:00", "not recorded", "0000-00-00 00:00:00")
LABS_PER_BAD_TIME = 2_000
ROWS_PER_DUPLICATE = 1_000
ORPHAN_ENCOUNTER = "E9999999999"


def plant_table_faults(tables: dict[str, pl.DataFrame], seed: int) -> tuple[dict[str, pl.DataFrame], list[Fault]]:
    """Spoils rows of the finished tables (times already text). The findings of the signal are left alone."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0, 2]))
    tables = dict(tables)
    faults = [
        _bad_times(tables, rng),
        _duplicates(tables, "labs", "lab_id", rng),
        _duplicates(tables, "medications", "encounter_id", rng),
        _admission_after_death(tables, rng),
        _no_end(tables, rng),
        _orphan_diagnosis(tables, rng),
    ]
    return tables, faults


def plant_image_faults(
    root: Path, seed: int, host: Record, modalities: Collection[str]
) -> tuple[list[Fault], list[Row]]:
    """Writes three faulty CT series and two faulty slides of `host`, on days before its first image.

    Returns the faults and the rows that slides/manifest.csv has for the faulty slides.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0, 3]))
    # Drawn whether they are written or not, so that the slides are the same.
    volumes = localizer(rng, 128), phantom(rng, 0, 64, 12), phantom(rng, 1, 64, 10)
    first = min((image.time for image in host.images), default=host.visits[0].start)
    noon = first // DAY * DAY + 12 * HOUR
    faults = _faulty_series(root, seed, host, noon, volumes) if "ct" in modalities else []
    if "wsi" not in modalities:
        return faults, []
    slides, manifest = _faulty_slides(root, host, noon, rng)
    return faults + slides, manifest


def _faulty_series(
    root: Path, seed: int, host: Record, noon: int, volumes: tuple[Volume, Volume, Volume]
) -> list[Fault]:
    def series(days_before: int, **changes: Any) -> Series:
        accession = f"A{host.index:06d}{90 + days_before:02d}"
        return Series(seed, host.patient_id, accession, 2, noon - days_before * DAY, **changes)

    scout = series(3, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    write_series(_folder(root, scout), scout, volumes[0])

    gap = series(4)
    write_series(_folder(root, gap), gap, volumes[1])[5].unlink()

    cut = series(5, suffix=".dcm")
    broken = write_series(_folder(root, cut), cut, volumes[2])[4]
    cut_short(broken, 0.5)

    def found(name: str, what: str, path: Path, verdict: str) -> Fault:
        return of_items(root, name, what, [path], verdict)

    return [
        found("ct_localizer", "a series that is a localizer", _folder(root, scout), "refused_localizer"),
        found("ct_missing_slice", "slice 6 of 12 is missing", _folder(root, gap), "failed_missing_slice"),
        found("ct_truncated_file", "one slice is cut short in its pixels", broken, "failed_unreadable"),
    ]


def _faulty_slides(root: Path, host: Record, noon: int, rng: np.random.Generator) -> tuple[list[Fault], list[Row]]:
    manifest: list[Row] = []
    slides: list[Path] = []
    for number, say_mpp in ((96, False), (97, True)):
        collected = noon - (number - 90) * DAY
        path = root / "slides" / f"H{host.index:06d}-{number}.svs"
        write_slide(path, tissue(rng, 2, (1024, 1024), 0.5), 0.5, scan_time(collected, rng), say_mpp)
        manifest.append((path.name, host.patient_id, clock(collected), None))
        slides.append(path)
    cut_short(slides[1], 0.4)
    lacking, cut = [slides[0]], [slides[1]]
    return [
        of_items(root, "slide_without_mpp", "neither the file nor the manifest gives µm/px", lacking, "failed_no_mpp"),
        of_items(root, "slide_corrupt", "the file is cut short", cut, "failed_unreadable"),
    ], manifest


def _folder(root: Path, series: Series) -> Path:
    return root / "ct" / series.accession / f"S{series.number}"


def _some(rng: np.random.Generator, candidates: pl.Series, count: int) -> list[int]:
    """`count` different values of `candidates`, ascending."""
    chosen = rng.choice(len(candidates), size=min(count, len(candidates)), replace=False)
    return sorted(int(candidates[int(k)]) for k in chosen)


def _bad_times(tables: dict[str, pl.DataFrame], rng: np.random.Generator) -> Fault:
    labs = tables["labs"].with_row_index("row")
    count = max(2, len(labs) // LABS_PER_BAD_TIME)
    rows = _some(rng, labs.filter(~pl.col("loinc").is_in(CT_FINDINGS + SLIDE_FINDINGS))["row"], count)
    bad = [BAD_TIMES[k % len(BAD_TIMES)] for k in range(len(rows))]
    tables["labs"] = tables["labs"].with_columns(tables["labs"]["collected_time"].scatter(rows, bad))
    return Fault(
        "labs_unparsable_time",
        "collected_time is no time",
        len(rows),
        "labs",
        tuple(tables["labs"]["lab_id"].gather(rows)),
        "quarantined",
        "unparsable_time",
    )


def _duplicates(tables: dict[str, pl.DataFrame], table: str, key: str, rng: np.random.Generator) -> Fault:
    frame = tables[table]
    readable = frame.with_row_index("row")
    if table == "labs":
        readable = readable.filter(~pl.col("collected_time").is_in(BAD_TIMES))
    rows = _some(rng, readable["row"], max(2, len(frame) // ROWS_PER_DUPLICATE))
    again = frame[rows]
    tables[table] = pl.concat([frame, again])
    return Fault(
        f"{table}_duplicate_row",
        "a row is exported twice, equal in every column; the copies end the file",
        len(rows),
        table,
        tuple(again[key]),
        "quarantined",
        "duplicate_row",
    )


def _admission_after_death(tables: dict[str, pl.DataFrame], rng: np.random.Generator) -> Fault:
    deaths = tables["deaths"]
    patient, day = deaths.select("patient_id", "death_date").row(int(rng.integers(len(deaths))))
    died = date.fromisoformat(day)
    encounter = f"E{patient[1:]}9000"
    row = pl.DataFrame(
        {
            "encounter_id": encounter,
            "patient_id": patient,
            "type": "inpatient",
            "start_time": f"{died + timedelta(days=3)} 09:30:00",
            "end_time": f"{died + timedelta(days=5)} 14:00:00",
            "insurance": "Medicare",
        },
        schema=tables["encounters"].schema,
    )
    tables["encounters"] = pl.concat([tables["encounters"], row])
    return Fault(
        "death_before_admission",
        "an admission begins after its patient's death",
        1,
        "encounters",
        (encounter,),
        "conflict",
        "death_before_admission",
    )


def _no_end(tables: dict[str, pl.DataFrame], rng: np.random.Generator) -> Fault:
    encounters = tables["encounters"].with_row_index("row")
    stays = encounters.filter((pl.col("type") == "inpatient") & ~pl.col("encounter_id").str.ends_with("9000"))
    row = _some(rng, stays["row"], 1)
    tables["encounters"] = tables["encounters"].with_columns(tables["encounters"]["end_time"].scatter(row, None))
    return Fault(
        "encounter_without_end",
        "a stay has no end_time: no event ends it, and when its codes became known is open",
        1,
        "encounters",
        tuple(tables["encounters"]["encounter_id"].gather(row)),
        "partial",
        "unknown_available_time",
    )


def _orphan_diagnosis(tables: dict[str, pl.DataFrame], rng: np.random.Generator) -> Fault:
    diagnoses = tables["diagnoses"]
    row = diagnoses[int(rng.integers(len(diagnoses)))].with_columns(
        pl.lit(ORPHAN_ENCOUNTER).alias("encounter_id"), pl.lit(9, dtype=pl.Int64).alias("seq")
    )
    tables["diagnoses"] = pl.concat([diagnoses, row])
    return Fault(
        "diagnosis_without_encounter",
        "encounter_id names no encounter, so that when the code became known is open",
        1,
        "diagnoses",
        (ORPHAN_ENCOUNTER,),
        "partial",
        "availability_join_missed",
    )
