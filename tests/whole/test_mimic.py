"""Real data: the MIMIC-IV demo is converted, and compared with its raw files, read with the standard library.

TIMELOOM_MIMIC_SEED draws other subjects for the recomputation, TIMELOOM_MIMIC_SUBJECTS more of them.
"""

import csv
import os
import random
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from extractors.source import load_source
from flows.runs.convert import convert
from flows.runs.settings import RunSettings
from tests.support.raw.mimic_reference import TABLES, Demo, Event

SEED = int(os.environ.get("TIMELOOM_MIMIC_SEED", "20261121"))
SUBJECTS = int(os.environ.get("TIMELOOM_MIMIC_SUBJECTS", "10"))
KNOWN_AT_DISCHARGE = (
    "ICD10CM/",
    "ICD9CM/",
    "ICD10PCS/",
    "ICD9PCS/",
    "DRG/",
    "DRG_SEVERITY/",
    "DRG_MORTALITY/",
    "HCPCS/",
)
# The order of events at the same time.
KINDS = ["visit_start", "clinical", "image", "death", "visit_end"]


def to_meds(work: Path, folder: Path, source: str = "mimic-iv") -> Path:
    """The MEDS dataset that `timeloom meds` makes of a folder of tables."""
    work.mkdir(parents=True, exist_ok=True)
    raw = {
        "name": "mimic-iv-demo",
        "sources": [{"source": source, "path": str(folder)}],
        "deid": {"mode": "limited", "subject_ids": "keep", "dates": "keep"},
        "buckets": 2,
    }
    (work / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    convert(RunSettings(work / "run.yaml", work / "root", workers=1), work / "meds")
    return work / "meds"


def events_of(dataset: Path) -> pl.DataFrame:
    return pl.read_parquet(sorted((dataset / "data").glob("*.parquet")))


def tables_of(folder: Path) -> list[str]:
    """Every table of the export, by its path below the folder."""
    return sorted(str(path.relative_to(folder)).partition(".csv")[0] for path in folder.rglob("*.csv*"))


@pytest.fixture(scope="module")
def folder(real_data: Path) -> Path:
    folder = real_data / "mimic-iv-demo-2.2"
    if not folder.is_dir():
        pytest.skip("no mimic-iv-demo-2.2 in the real data")
    return folder


@pytest.fixture(scope="module")
def demo(folder: Path) -> Demo:
    return Demo(folder)


@pytest.fixture(scope="module")
def dataset(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_meds(tmp_path_factory.mktemp("mimic"), folder)


@pytest.fixture(scope="module")
def events(dataset: Path) -> pl.DataFrame:
    return events_of(dataset)


@pytest.fixture(scope="module")
def ledger(dataset: Path) -> pl.DataFrame:
    return pl.read_parquet(dataset / "ledger.parquet")


# The ledger.


def rows_in(ledger: pl.DataFrame, table: str, *outcomes: str) -> int:
    return int(ledger.filter((pl.col("table") == table) & pl.col("outcome").is_in(outcomes))["rows"].sum())


def unaccounted(ledger: pl.DataFrame, counted: dict[str, int]) -> dict[str, tuple[int, int]]:
    """For tables with their numbers of rows: raw rows that the ledger lacks, and its raw rows without an outcome."""
    found = {}
    for table, number in counted.items():
        raw = rows_in(ledger, table, "raw")
        found[table] = (number - raw, raw - rows_in(ledger, table, "events", "static", "reference", "quarantined"))
    return {table: differences for table, differences in found.items() if differences != (0, 0)}


def test_every_table_is_accounted_for_with_difference_0(
    folder: Path, demo: Demo, ledger: pl.DataFrame, dataset: Path
) -> None:
    counted = {table: sum(1 for _ in demo.lines(table)) - 1 for table in tables_of(folder)}
    assert len(counted) == 31 and sum(counted.values()) == 729_738
    assert unaccounted(ledger, counted) == {}
    assert rows_in(ledger, "hosp/labevents", "events") == 107_727
    assert pl.read_parquet(dataset / "quarantine.parquet").is_empty()
    # The check finds a missing row, and a row without an outcome.
    assert unaccounted(ledger, counted | {"hosp/omr": counted["hosp/omr"] + 1}) == {"hosp/omr": (1, 0)}
    static = (pl.col("table") == "hosp/poe") & (pl.col("outcome") == "events")
    lost = ledger.with_columns(pl.when(static).then(pl.col("rows") - 1).otherwise("rows").alias("rows"))
    assert unaccounted(lost, counted) == {"hosp/poe": (0, 1)}


def test_every_time_of_the_demo_is_read(demo: Demo, ledger: pl.DataFrame) -> None:
    assert set(ledger.filter(pl.col("outcome") == "partial")["reason"]) == {"unknown_available_time"}
    read = {
        (table, *reason.split(" ", 1)): rows
        for table, outcome, reason, rows in ledger.select("table", "outcome", "reason", "rows").iter_rows()
        if outcome == "time_format"
    }
    stored = [str(row["storetime"]) for row in demo.rows("icu/procedureevents")]
    fractions = sum("." in text for text in stored)
    assert read["icu/procedureevents", "storetime", "%Y-%m-%d %H:%M:%S%.f"] == fractions == 242
    assert read["icu/procedureevents", "storetime", "%Y-%m-%d %H:%M:%S"] == len(stored) - fractions
    drawn = {row["charttime"] is None for row in demo.rows("hosp/microbiologyevents")}
    assert drawn == {True, False}
    assert ("hosp/microbiologyevents", "charttime|chart_day", "%Y-%m-%d") in read


def test_known_counts(events: pl.DataFrame) -> None:
    by_table = dict(events["source"].value_counts().iter_rows())
    assert sum(by_table.values()) == 472_745
    assert {table: by_table[f"hosp/{table}"] for table in ("labevents", "diagnoses_icd", "drgcodes", "omr")} == {
        "labevents": 107_727, "diagnoses_icd": 4_506, "drgcodes": 896, "omr": 3_836,
    }  # fmt: skip
    deaths = events.filter(pl.col("code") == "MEDS_DEATH")
    assert len(deaths) == deaths["subject_id"].n_unique() == 31
    assert starting(events, "HOSPITAL_ADMISSION/").height == 275
    assert starting(events, "ICU_ADMISSION/").height == 140
    labs = starting(events, "MIMIC_LAB/")
    assert labs["numeric_value"].count() == 95_750
    assert labs["value_flag"].count() == 504
    assert labs.filter(pl.col("numeric_value").is_null() & pl.col("text_value").is_null()).height == 421
    estimated = events.filter(pl.col("availability") == "estimated")["source"].value_counts()
    assert dict(estimated.iter_rows()) == {"hosp/labevents": 992, "hosp/microbiologyevents": 16}


def starting(events: pl.DataFrame, prefix: str) -> pl.DataFrame:
    return events.filter(pl.col("code").str.starts_with(prefix))


# The recomputation.


@pytest.fixture(scope="module")
def drawn(demo: Demo) -> set[int]:
    return set(random.Random(SEED).sample(demo.subjects(), SUBJECTS))


@pytest.fixture(scope="module")
def expected(demo: Demo, drawn: set[int]) -> Counter[Event]:
    return Counter(event for table in TABLES for event in demo.events(table, drawn))


@pytest.fixture(scope="module")
def made(events: pl.DataFrame, drawn: set[int]) -> list[Event]:
    events_of_drawn = events.filter(pl.col("subject_id").is_in(list(drawn)))
    return [Event(*row) for row in events_of_drawn.select(Event._fields).iter_rows()]


def differences(expected: Counter[Event], made: Iterable[Event]) -> tuple[list[Event], list[Event]]:
    """The expected events that are missing, and the events that are not expected."""
    counted = Counter(made)
    return list((expected - counted).elements()), list((counted - expected).elements())


def test_events_of_drawn_subjects_equal_a_recomputation_field_by_field(
    demo: Demo, expected: Counter[Event], made: list[Event], drawn: set[int]
) -> None:
    assert len(drawn) == SUBJECTS
    rows = [(table, row) for table in TABLES for row in demo.rows(table) if int(str(row["subject_id"])) in drawn]
    assert {table for table, _ in rows} == {event.source for event in expected}
    assert len(made) >= len(rows) > 1000
    assert differences(expected, made) == ([], [])


CHANGES: dict[str, Any] = {
    "subject_id": lambda value: value + 1,
    "time": lambda value: value + timedelta(microseconds=1),
    "code": lambda value: f"{value} ",
    "numeric_value": lambda value: float(np.nextafter(np.float32(value), np.float32(np.inf))),
    "text_value": lambda value: value.swapcase() + ".",
    "available_time": lambda value: value - timedelta(microseconds=1),
    "time_precision": lambda value: "month",
    "kind": lambda value: "image",
    "unit": lambda value: "furlong",
    "source": lambda value: "hosp/other",
    "visit_id": lambda value: value + 1,
    "item_key": lambda value: "key",
    "availability": lambda value: "assumed",
    "value_flag": lambda value: "=",
}


@pytest.mark.parametrize("field", Event._fields)
def test_the_recomputation_finds_one_changed_field(expected: Counter[Event], made: list[Event], field: str) -> None:
    of_interest = [
        place for place, event in enumerate(made) if field == "item_key" or getattr(event, field) is not None
    ]
    place = random.Random(SEED).choice(of_interest)
    wrong = made[place]._replace(**{field: CHANGES[field](getattr(made[place], field))})
    assert differences(expected, [*made[:place], wrong, *made[place + 1 :]]) == ([made[place]], [wrong])


def test_the_recomputation_finds_an_event_that_is_lost_or_there_twice(
    expected: Counter[Event], made: list[Event]
) -> None:
    assert differences(expected, made[1:]) == (made[:1], [])
    assert differences(expected, [*made, made[0]]) == ([], made[:1])


def test_lags_of_every_code_and_table_equal_a_recomputation(demo: Demo, dataset: Path) -> None:
    made = {(table, code): (lag, rows) for table, code, lag, rows in read_lags(dataset).iter_rows()}
    recomputed = {(table, code): found for table in TABLES for code, found in demo.lags(table).items()}
    assert len(recomputed) > 500 and {table for table, code in recomputed if code == ""} == {
        table for table, _ in recomputed
    }
    assert made == recomputed


def read_lags(dataset: Path) -> pl.DataFrame:
    return pl.read_parquet(dataset / "lags.parquet").select("source", "code", "lag_us", "rows")


# Death, order, input order.


def test_as_many_events_after_death_as_counted_in_the_raw_files(
    demo: Demo, events: pl.DataFrame, ledger: pl.DataFrame
) -> None:
    died = {event.subject_id: event.time for event in demo.events("hosp/patients") if event.code == "MEDS_DEATH"}
    later = Counter(
        event
        for table in TABLES
        for event in demo.events(table, set(died))
        # A day that ended after the death may have started before it.
        if event.time and earliest(event) > died[event.subject_id]
    )
    assert set(events["conflict"].drop_nulls()) == {"after_death", "end_before_start"}
    marked = events.filter(pl.col("conflict") == "after_death")
    assert Counter(Event(*row) for row in marked.select(Event._fields).iter_rows()) == later
    assert later.total() == 529
    assert rows_of_conflicts(ledger)["after_death"] == 529


def test_orders_that_end_before_they_start_as_counted_in_the_raw_files(folder: Path, ledger: pl.DataFrame) -> None:
    """Prescriptions and pharmacy orders that were stopped, and whose start was moved on."""
    wrong = 0
    for table, starts in (("prescriptions", ["starttime"]), ("pharmacy", ["starttime", "entertime"])):
        rows = pl.read_csv(folder / "hosp" / f"{table}.csv.gz", infer_schema=False)
        wrong += rows.filter(pl.col("stoptime") < pl.coalesce(starts)).height
    assert rows_of_conflicts(ledger) == {"after_death": 529, "end_before_start": wrong}
    assert wrong == 1390


def earliest(event: Event) -> datetime:
    assert event.time is not None
    day = event.time.replace(hour=0, minute=0, second=0, microsecond=0)
    return day if event.time_precision == "day" else event.time


def rows_of_conflicts(ledger: pl.DataFrame) -> dict[str, int]:
    return dict(ledger.filter(pl.col("outcome") == "conflict").select("reason", "rows").iter_rows())


def in_order(frame: pl.DataFrame) -> bool:
    """Whether events stand in the documented order: subject, time (static facts first), a coarse date after a moment,
    kind, code, source."""
    coarse = ["day", "month", "year"]
    keys = [
        (
            subject,
            time or datetime.min,
            coarse.index(precision) + 1 if precision in coarse else 0,
            KINDS.index(kind),
            *rest,
        )
        for subject, time, precision, kind, *rest in frame.select(
            "subject_id", "time", "time_precision", "kind", "code", "source"
        ).iter_rows()
    ]
    return all(first <= second for first, second in pairwise(keys))


def test_files_are_in_the_total_order(dataset: Path) -> None:
    files = [pl.read_parquet(path) for path in sorted((dataset / "data").glob("*.parquet"))]
    assert len(files) == 2
    assert all(in_order(frame) for frame in files)
    assert not set(files[0]["subject_id"]) & set(files[1]["subject_id"])
    # Some moments have events of several kinds; the check finds a visit's end that moves before them.
    frame = files[0]
    ends = frame.with_row_index().filter((pl.col("kind") == "visit_end") & (pl.col("time") == pl.col("time").shift()))
    place = int(ends["index"][0])
    assert not in_order(pl.concat([frame[: place - 1], frame[place], frame[place - 1], frame[place + 1 :]]))


def test_shuffled_rows_give_the_same_bytes(folder: Path, dataset: Path, demo: Demo, tmp_path: Path) -> None:
    for path in folder.rglob("*.csv*"):
        table, other = str(path.relative_to(folder)).partition(".csv")[0], tmp_path / "raw" / path.relative_to(folder)
        other.parent.mkdir(parents=True, exist_ok=True)
        if table not in TABLES:
            other.symlink_to(path)
            continue
        header, *records = demo.lines(table)
        random.Random(SEED).shuffle(records)
        with other.with_name(path.name.removesuffix(".gz")).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *records])
    again = to_meds(tmp_path / "again", tmp_path / "raw")
    for name in ("data/0000.parquet", "data/0001.parquet", "lags.parquet", "metadata/codes.parquet"):
        assert (again / name).read_bytes() == (dataset / name).read_bytes(), name


# Leakage.


def too_early(events: pl.DataFrame, demo: Demo) -> Counter[str]:
    """By table, the events known only at discharge that are available before it, or whose stay or time is unknown."""
    discharged = {int(str(row["hadm_id"])): str(row["dischtime"]) for row in demo.rows("hosp/admissions")}
    coded = events.filter(pl.any_horizontal(pl.col("code").str.starts_with(prefix) for prefix in KNOWN_AT_DISCHARGE))
    return Counter(
        table
        for table, visit, available in coded.select("source", "visit_id", "available_time").iter_rows()
        if visit is None or available is None or available < datetime.fromisoformat(discharged[visit])
    )


def test_nothing_known_only_at_discharge_is_available_before_it(events: pl.DataFrame, demo: Demo) -> None:
    coded = {"hosp/diagnoses_icd", "hosp/procedures_icd", "hosp/drgcodes", "hosp/hcpcsevents"}
    assert coded <= set(events["source"])
    assert too_early(events, demo) == {}
    for code in events.filter(pl.col("source").is_in(coded))["code"].unique():
        assert code.startswith(KNOWN_AT_DISCHARGE)


@pytest.mark.parametrize("table", ["diagnoses_icd", "procedures_icd", "drgcodes", "hcpcsevents"])
def test_the_check_finds_a_source_whose_availability_is_swapped(
    folder: Path, demo: Demo, tmp_path: Path, table: str
) -> None:
    whole = load_source("mimic-iv").model_dump(mode="json")
    kept = {f"hosp/{name}": whole["tables"][f"hosp/{name}"] for name in ("admissions", table)}
    for name in kept:
        (tmp_path / "raw" / "hosp").mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / f"{name}.csv.gz").symlink_to(folder / f"{name}.csv.gz")
    source = whole | {"tables": kept, "codes": [], "crosswalks": {}, "reading": {}}
    assert early(source, demo, tmp_path / "right") == {}
    # A mapping with this mistake makes the facts known at admission.
    kept[f"hosp/{table}"]["joins"][0]["columns"]["dischtime"] = "admittime"
    assert early(source, demo, tmp_path / "swapped")[f"hosp/{table}"] > 0


def early(source: dict[str, Any], demo: Demo, work: Path) -> Counter[str]:
    work.mkdir()
    (work / "source.yaml").write_text(yaml.safe_dump(source), encoding="utf-8")
    return too_early(events_of(to_meds(work, work.parent / "raw", str(work / "source.yaml"))), demo)
