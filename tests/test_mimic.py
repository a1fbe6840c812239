"""Real data: every table of the MIMIC-IV demo is accounted for, and events equal a recomputation with csv alone."""

import csv
import gzip
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from raw_tables import convert

from extractors.deid import load_key
from extractors.source import Source, load_source
from pipelines import meds
from pipelines.config import RunConfig
from pipelines.fingerprints import Fingerprints
from warehouse.layout import Layout

SUBJECTS = 3


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    if path.name.endswith(".gz"):
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    else:
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


@pytest.fixture(scope="module")
def demo(real_data: Path) -> Path:
    folder = real_data / "mimic-iv-demo-2.2"
    if not folder.is_dir():
        pytest.skip("no mimic-iv-demo-2.2 in the real data")
    return folder


@pytest.fixture(scope="module")
def converted(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[pl.DataFrame, dict[str, Any]]]:
    """Table to its segment and account."""
    work = tmp_path_factory.mktemp("mimic")
    config = RunConfig.model_validate(
        {
            "sources": [{"source": "mimic-iv", "path": str(demo)}],
            "deid": {"mode": "limited", "subject_ids": "keep", "dates": "keep"},
            "buckets": 2,
        }
    )
    layout = Layout(work / "warehouse")
    found = {}
    load_key(config.deid, layout.private, create=True)
    for task in meds.plan(config, work, layout, Fingerprints(layout.private)):
        result = meds.run(task.params, work)
        (segment,) = result.files
        found[task.params["table"]] = (pl.read_parquet(work / segment), result.counts)
    return found


def test_every_table_is_accounted_for_with_difference_0(demo: Path, converted: dict[str, Any]) -> None:
    raw = {path: str(path.relative_to(demo)).removesuffix(".gz").removesuffix(".csv") for path in demo.rglob("*.csv*")}
    assert set(raw.values()) == set(converted)
    differences = {}
    for path, table in raw.items():
        counts = converted[table][1]
        accounted = counts["events"] + counts["static"] + counts["reference"] + sum(counts["quarantined"].values())
        differences[table] = (sum(1 for _ in rows_of(path)) - counts["raw"], counts["raw"] - accounted)
        assert counts["emitted"] == len(converted[table][0])
    assert differences == dict.fromkeys(raw.values(), (0, 0))


def test_no_time_of_the_demo_is_unreadable(converted: dict[str, Any]) -> None:
    unreadable = {
        (table, column): bad
        for table, (_, counts) in converted.items()
        for column, (_, bad) in counts["times"].items()
        if bad
    }
    assert unreadable == {}


def test_known_counts(converted: dict[str, Any]) -> None:
    labs, diagnoses, patients = (converted[f"hosp/{name}"] for name in ("labevents", "diagnoses_icd", "patients"))
    assert (labs[1]["raw"], labs[1]["events"]) == (107_727, 107_727)
    assert labs[1]["partial"]["unknown_available_time"] == 992
    assert (diagnoses[1]["raw"], diagnoses[1]["events"]) == (4_506, 4_506)
    deaths = patients[0].filter(pl.col("code") == "MEDS_DEATH")
    assert len(deaths) == deaths["subject_id"].n_unique() == 31
    assert converted["hosp/admissions"][0]["code"].str.starts_with("HOSPITAL_ADMISSION/").sum() == 275
    assert converted["hosp/prescriptions"][1]["raw"] == 18_087
    assert converted["icu/inputevents"][1]["raw"] == 20_404
    assert converted["icu/icustays"][1]["events"] == 140


def test_of_infusions_recorded_after_their_end_none_is_available_before_it_is_recorded(
    demo: Path, converted: dict[str, Any]
) -> None:
    late = sum(1 for row in rows_of(demo / "icu/inputevents.csv.gz") if row["storetime"] > row["endtime"])
    ends = converted["icu/inputevents"][0].filter(pl.col("code").str.starts_with("INFUSION_END/"))
    assert late == ends.filter(pl.col("available_time") > pl.col("time")).height == 6_882


def chosen(demo: Path) -> list[int]:
    """The subjects with the most diagnoses among those that died, so that every table below has rows of theirs."""
    dead = {row["subject_id"] for row in rows_of(demo / "hosp/patients.csv.gz") if row["dod"]}
    number = Counter(row["subject_id"] for row in rows_of(demo / "hosp/diagnoses_icd.csv.gz"))
    return [int(subject) for subject, _ in number.most_common() if subject in dead][:SUBJECTS]


def mine(demo: Path, table: str, subjects: list[int]) -> list[dict[str, str]]:
    return [row for row in rows_of(demo / f"{table}.csv.gz") if int(row["subject_id"]) in subjects]


def at(text: str) -> datetime | None:
    if len(text) == len("2020-01-01"):
        return datetime.fromisoformat(text).replace(hour=23, minute=59, second=59, microsecond=999_999)
    return datetime.fromisoformat(text) if text else None


def events_of(frame: pl.DataFrame, subjects: list[int], prefix: str, *columns: str) -> Counter[tuple[Any, ...]]:
    own = frame.filter(pl.col("subject_id").is_in(subjects) & pl.col("code").str.starts_with(prefix))
    return Counter(own.select("subject_id", "code", "time", "available_time", *columns).iter_rows())


def test_diagnoses_equal_a_recomputation(demo: Path, converted: dict[str, Any]) -> None:
    subjects = chosen(demo)
    discharged = {row["hadm_id"]: at(row["dischtime"]) for row in rows_of(demo / "hosp/admissions.csv.gz")}
    expected: Counter[tuple[Any, ...]] = Counter()
    for row in mine(demo, "hosp/diagnoses_icd", subjects):
        known = discharged[row["hadm_id"]]
        code = f"ICD{row['icd_version']}CM/{row['icd_code'].strip().upper().replace('.', '')}"
        expected[int(row["subject_id"]), code, known, known, int(row["hadm_id"])] += 1
    assert sum(expected.values()) > 100
    assert events_of(converted["hosp/diagnoses_icd"][0], subjects, "ICD", "visit_id") == expected


def test_labs_equal_a_recomputation(demo: Path, converted: dict[str, Any]) -> None:
    subjects = chosen(demo)
    expected: Counter[tuple[Any, ...]] = Counter()
    for row in mine(demo, "hosp/labevents", subjects):
        time, stored = at(row["charttime"]), at(row["storetime"])
        assert time is not None
        said = row["valuenum"] or (row["value"] if row["value"] != "___" else "") or row["comments"]
        number, words = None, said.strip() or None
        with suppress(ValueError):
            number, words = float(np.float32(float(said))), None
        unit = row["valueuom"].strip() if row["valueuom"] else None
        visit = int(row["hadm_id"]) if row["hadm_id"] else None
        key = (int(row["subject_id"]), f"MIMIC_LAB/{row['itemid']}", time, max(time, stored or time))
        expected[(*key, number, words, unit, visit)] += 1
    assert sum(expected.values()) > 1000
    columns = ("numeric_value", "text_value", "unit", "visit_id")
    assert events_of(converted["hosp/labevents"][0], subjects, "MIMIC_LAB/", *columns) == expected


def test_admissions_equal_a_recomputation(demo: Path, converted: dict[str, Any]) -> None:
    subjects = chosen(demo)
    expected: Counter[tuple[Any, ...]] = Counter()
    for row in mine(demo, "hosp/admissions", subjects):
        subject, visit = int(row["subject_id"]), int(row["hadm_id"])
        kind = f"{row['admission_type'].upper()}/{row['admission_location'].upper() or 'UNKNOWN'}"
        begun, ended = at(row["admittime"]), at(row["dischtime"])
        expected[subject, f"HOSPITAL_ADMISSION/{kind}", begun, begun, "visit_start", visit] += 1
        where = row["discharge_location"].upper() or "UNKNOWN"
        expected[subject, f"HOSPITAL_DISCHARGE/{where}", ended, ended, "visit_end", visit] += 1
    assert sum(expected.values()) > SUBJECTS
    assert events_of(converted["hosp/admissions"][0], subjects, "HOSPITAL_", "kind", "visit_id") == expected


def test_deaths_equal_a_recomputation(demo: Path, converted: dict[str, Any]) -> None:
    everyone = [int(row["subject_id"]) for row in rows_of(demo / "hosp/patients.csv.gz")]
    in_hospital: dict[str, str] = {}
    for row in rows_of(demo / "hosp/admissions.csv.gz"):
        if row["deathtime"]:
            in_hospital[row["subject_id"]] = min(row["deathtime"], in_hospital.get(row["subject_id"], "9"))
    expected: Counter[tuple[Any, ...]] = Counter()
    for row in rows_of(demo / "hosp/patients.csv.gz"):
        died = in_hospital.get(row["subject_id"]) or row["dod"]
        if died:
            precision = "day" if len(died) == 10 else "s"
            expected[int(row["subject_id"]), "MEDS_DEATH", at(died), at(died), "death", precision] += 1
    assert 0 < len(in_hospital) < sum(expected.values()) == 31
    assert events_of(converted["hosp/patients"][0], everyone, "MEDS_DEATH", "kind", "time_precision") == expected


def early_diagnoses(demo: Path, diagnoses: pl.DataFrame) -> int:
    """Diagnoses that could be read before their stay's discharge."""
    discharged = {int(row["hadm_id"]): at(row["dischtime"]) for row in rows_of(demo / "hosp/admissions.csv.gz")}
    return sum(
        1 for visit, known in diagnoses.select("visit_id", "available_time").iter_rows() if known < discharged[visit]
    )


def test_no_diagnosis_is_available_before_its_discharge(demo: Path, converted: dict[str, Any], tmp_path: Path) -> None:
    assert early_diagnoses(demo, converted["hosp/diagnoses_icd"][0]) == 0
    # The same check finds the fault when the mapping stamps diagnoses at admission.
    raw = load_source("mimic-iv").model_dump()
    rule = raw["tables"]["hosp/diagnoses_icd"]
    rule["joins"][0]["columns"] = {"dischtime": "admittime"}
    folder = tmp_path / "hosp"
    folder.mkdir()
    for name in ("diagnoses_icd.csv.gz", "admissions.csv.gz"):
        (folder / name).symlink_to(demo / "hosp" / name)
    rule["joins"][0]["table"] = "admissions"
    tables = {"diagnoses_icd": rule, "admissions": raw["tables"]["hosp/admissions"]}
    source = Source.model_validate(raw | {"tables": tables})
    wrong, _ = convert(tmp_path, source, "diagnoses_icd", folder / "diagnoses_icd.csv.gz")
    assert early_diagnoses(demo, wrong) > 4_000
