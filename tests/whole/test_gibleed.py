"""GiBleed, real data of OMOP CDM 5.3: the ledger, counts by SQL, ten persons computed again, and its other forms."""

import gzip
import math
import random
import shutil
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from extractors.tables.database import database_columns, database_frames, database_tables
from flows.runs.run import Run
from pipelines.config import load_config
from pipelines.engine.local import LocalEngine
from warehouse.layout import Layout, ReleaseLayout

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "omop-gibleed.yaml"
# Tables without rows in GiBleed: each has only its own header, as a row.
HEADERS_ONLY = {"death", "visit_detail", "device_exposure", "specimen", "note", "payer_plan_period"}


@pytest.fixture(scope="module")
def gibleed(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GiBleed, unpacked."""
    packed = real_data / "omop-gibleed-duckdb" / "eunomia.duckdb.gz"
    if not packed.is_file():
        pytest.skip("no omop-gibleed-duckdb in the real data")
    path = tmp_path_factory.mktemp("gibleed") / "eunomia.duckdb"
    with gzip.open(packed) as file, path.open("wb") as out:
        shutil.copyfileobj(file, out)
    return path


@pytest.fixture(scope="module")
def sql(gibleed: Path) -> Callable[[str], list[tuple[Any, ...]]]:
    """Queries a copy of GiBleed, so that our way of opening it cannot change the answer."""
    copy = Path(shutil.copy(gibleed, gibleed.with_name("copy.duckdb")))

    def ask(query: str) -> list[tuple[Any, ...]]:
        with duckdb.connect(str(copy), read_only=True) as connection:
            return connection.execute(query).fetchall()

    return ask


def aligned(root: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events and ledger of the documented configuration, run up to its aligned events and their ledger."""
    monkeypatch.setenv("TIMELOOM_GIBLEED", str(database))
    config = load_config(EXAMPLE).model_copy(update={"buckets": 4})
    with Run(config, EXAMPLE.parent, Layout(root), LocalEngine(1)) as run:
        for name, step in run.steps:
            run.carry_out(name, step)
            if name == "metadata":
                break
        tree = ReleaseLayout(run.staging / "release")
        events = pl.concat(pl.read_parquet(tree.events(bucket)) for bucket in range(4))
        return events.sort("subject_id", maintain_order=True), pl.read_parquet(tree.ledger)


@pytest.fixture(scope="module")
def release(gibleed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events and ledger of all of GiBleed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return aligned(tmp_path_factory.mktemp("release"), gibleed, monkeypatch)


Asked = Callable[[str], list[tuple[Any, ...]]]


def test_every_table_of_gibleed_is_accounted_for_with_difference_0(
    sql: Asked, release: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    ledger = release[1].filter(pl.col("table") != "all tables")
    settled = pl.col("outcome").is_in(["events", "static", "reference", "quarantined"])
    found = {
        table: (raw, accounted)
        for table, raw, accounted in ledger.group_by("table")
        .agg(
            pl.col("rows").filter(pl.col("outcome") == "raw").sum().alias("raw"),
            pl.col("rows").filter(settled).sum().alias("accounted"),
        )
        .iter_rows()
    }
    # The name of a table that no rule mentions does not appear.
    (unmapped,) = (table for table in found if table.startswith("unmapped-"))
    found["ontime"] = found.pop(unmapped)
    tables = [name for (name,) in sql("SELECT table_name FROM duckdb_tables()")]
    counts = {name: sql(f"SELECT count(*) FROM {name}")[0][0] for name in tables}
    assert len(tables) == 38
    assert found == {name: (rows, rows) for name, rows in counts.items()}
    quarantined = ledger.filter((pl.col("outcome") == "quarantined") & (pl.col("rows") > 0))
    assert {tuple(row) for row in quarantined.select("table", "reason", "rows").iter_rows()} == {
        *((table, "bad_subject_id", 1) for table in HEADERS_ONLY),
        (unmapped, "unmapped_table", 1),
    }


def test_every_code_of_gibleed_occurs_as_often_as_sql_counts(
    sql: Asked, release: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    events = release[0]
    clinical = [
        ("condition_occurrence", "condition", "condition_end_date IS NOT NULL", "CONDITION_END/"),
        ("procedure_occurrence", "procedure", "false", ""),
        ("drug_exposure", "drug", "drug_exposure_end_date <> drug_exposure_start_date", "DRUG_END/"),
        ("measurement", "measurement", "false", ""),
        ("observation", "observation", "false", ""),
    ]
    for name, prefix, ends, ended in clinical:
        code = "upper(vocabulary_id) || '/' || concept_code"
        joined = f"FROM {name} JOIN concept ON concept_id = {prefix}_concept_id"
        expected: dict[str, int] = dict(sql(f"SELECT {code}, count(*) {joined} GROUP BY 1"))
        expected |= dict(sql(f"SELECT '{ended}' || {code}, count(*) {joined} WHERE {ends} GROUP BY 1"))
        found = events.filter(pl.col("source") == name).group_by("code").len()
        assert dict(found.iter_rows()) == expected, name
    others = events.filter(~pl.col("source").is_in([name for name, *_ in clinical]))
    (persons,) = sql("SELECT count(*) FROM person")[0]
    assert dict(others.group_by("source").len().iter_rows()) == {
        "person": 4 * persons,
        "observation_period": 2 * 5343,
        "visit_occurrence": 2 * 1037,
    }
    assert events.height == 330_997


def test_persons_births_and_deaths_of_gibleed(sql: Asked, release: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    events = release[0]
    born = events.filter(pl.col("code") == "MEDS_BIRTH").select("subject_id", pl.col("time").dt.date())
    assert dict(born.iter_rows()) == dict(sql("SELECT person_id, birth_datetime::DATE FROM person"))
    # GiBleed has observation periods of twice as many persons as it has persons; they are kept.
    strangers = set(events["subject_id"]) - set(born["subject_id"])
    periods = sql("SELECT person_id FROM observation_period WHERE person_id NOT IN (SELECT person_id FROM person)")
    assert strangers == {person for (person,) in periods}
    assert len(strangers) == 5343 - 2694
    assert events.filter(pl.col("kind") == "death").is_empty()
    sex = events.filter(pl.col("code").str.starts_with("DEMO/SEX/")).select("subject_id", pl.col("code").str.slice(9))
    assert dict(sex.iter_rows()) == dict(sql("SELECT person_id, gender_source_value FROM person"))


def test_no_diagnosis_of_a_stay_in_gibleed_is_known_before_its_end(
    sql: Asked, release: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    coded = release[0].filter(pl.col("source").is_in(["condition_occurrence", "procedure_occurrence"]))
    ends: dict[int, date] = dict(sql("SELECT visit_occurrence_id, visit_end_date FROM visit_occurrence"))
    stays = coded.filter(pl.col("visit_id").is_in(list(ends)))
    assert stays.height == 551 + 1 + 517, "rows of these visits; one condition has an end"
    assert (stays["availability"] == "recorded").all()
    end = stays["visit_id"].replace_strict(ends, return_dtype=pl.Date)
    assert (stays["available_time"].dt.date() >= end).all()
    assert (stays["time"].dt.date() < end).any(), "and would be, at their own time"


def test_ten_persons_of_gibleed_field_by_field(sql: Asked, release: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    """Computed again in plain Python from rows that SQL gives, for persons of a seeded draw and with a stay."""
    staying = [person for (person,) in sql("SELECT DISTINCT person_id FROM visit_occurrence ORDER BY 1")]
    chosen = random.Random(7).sample(staying, 10)
    concepts = {
        number: f"{name.upper()}/{code}"
        for number, name, code in sql("SELECT concept_id, vocabulary_id, concept_code FROM concept")
    }
    left: dict[int, date] = dict(sql("SELECT visit_occurrence_id, visit_end_date FROM visit_occurrence"))
    lasting = estimates(sql, concepts, left)
    columns = ["time", "code", "numeric_value", "available_time", "availability", "time_precision", "kind"]
    columns += ["source", "visit_id"]
    for person in chosen:
        found = release[0].filter(pl.col("subject_id") == person).select(columns).rows()
        expected = list(recomputed(sql, person, concepts, left, lasting))
        assert sorted(found, key=str) == sorted(expected, key=str)
        assert len(expected) > 20
        times = [row[0] for row in found if row[0] is not None]
        assert times == sorted(times)


def end_of(day: date) -> datetime:
    return datetime.combine(day, time(23, 59, 59, 999999))


def estimates(sql: Asked, concepts: dict[int, str], left: dict[int, date]) -> dict[tuple[str, str], timedelta]:
    """Of each table and code, and of the whole table as code "", how long stays go on after a fact: in whole days, from
    the first moment of its day, two weeks at most, for 95 of 100 rows whose stay is known."""
    lasted: dict[tuple[str, str], list[int]] = {}
    for table, number, start, further in (
        ("condition_occurrence", "condition_concept_id", "condition_start_date", "condition_end_date"),
        ("procedure_occurrence", "procedure_concept_id", "procedure_date", "NULL"),
    ):
        rows = sql(f"SELECT {number}, {start}, {further}, visit_occurrence_id FROM {table}")
        for concept, begun, ended, visit in rows:
            for day, prefix in ((begun, ""), (ended, "CONDITION_END/")):
                if day is not None and visit in left:
                    days = min(max((left[visit] - day).days, 0) + 1, 14)
                    for code in (f"{prefix}{concepts[concept]}", ""):
                        lasted.setdefault((table, code), []).append(days)
    return {
        (table, code): timedelta(days=sorted(days)[math.ceil(0.95 * len(days)) - 1])
        for (table, code), days in lasted.items()
        if len(days) >= 100 or not code
    }


def recomputed(
    sql: Asked,
    person: int,
    concepts: dict[int, str],
    left: dict[int, date],
    lasting: dict[tuple[str, str], timedelta],
) -> Iterator[tuple[Any, ...]]:
    def of(columns: str, table: str) -> list[tuple[Any, ...]]:
        return sql(f"SELECT {columns} FROM {table} WHERE person_id = {person}")

    def event(day: date, code: str, source: str, visit: int | None = None, **other: Any) -> tuple[Any, ...]:
        known, how = end_of(day), "time"
        if visit in left and other.get("coded"):
            known, how = end_of(max(day, left[visit])), "recorded"
        elif visit and other.get("coded"):
            known, how = end_of(day) + lasting.get((source, code), lasting[source, ""]), "estimated"
        return (end_of(day), code, other.get("value"), known, how, "day", other.get("kind", "clinical"), source, visit)

    ((sex, race, race_said, ethnicity, said, born),) = of(
        "gender_source_value, race_concept_id, race_source_value, ethnicity_concept_id, ethnicity_source_value,"
        " birth_datetime",
        "person",
    )
    race = f"OMOP/{race}" if race else f"OMOP_SOURCE/{race_said.upper()}"
    ethnicity = f"OMOP/{ethnicity}" if ethnicity else f"OMOP_SOURCE/{said.upper()}"
    for code in (f"DEMO/SEX/{sex}", f"DEMO/RACE/{race}", f"DEMO/ETHNICITY/{ethnicity}"):
        yield (None, code, None, None, None, None, "clinical", "person", None)
    birth = datetime.combine(born, time())
    yield (birth, "MEDS_BIRTH", None, birth, "time", "day", "clinical", "person", None)
    for start, end in of("observation_period_start_date, observation_period_end_date", "observation_period"):
        yield event(start, "OBSERVATION_PERIOD_START", "observation_period")
        yield event(end, "OBSERVATION_PERIOD_END", "observation_period")
    for kind, start, end, visit in of(
        "visit_concept_id, visit_start_date, visit_end_date, visit_occurrence_id", "visit_occurrence"
    ):
        begun = datetime.combine(start, time())
        columns = (begun, f"VISIT_START/{concepts[kind]}", None, begun, "time", "day")
        yield (*columns, "visit_start", "visit_occurrence", visit)
        yield event(end, f"VISIT_END/{concepts[kind]}", "visit_occurrence", visit, kind="visit_end")
    for number, start, end, visit in of(
        "condition_concept_id, condition_start_date, condition_end_date, visit_occurrence_id", "condition_occurrence"
    ):
        yield event(start, concepts[number], "condition_occurrence", visit, coded=True)
        if end:
            yield event(end, f"CONDITION_END/{concepts[number]}", "condition_occurrence", visit, coded=True)
    for number, day, visit in of("procedure_concept_id, procedure_date, visit_occurrence_id", "procedure_occurrence"):
        yield event(day, concepts[number], "procedure_occurrence", visit, coded=True)
    for number, start, end, visit, quantity in of(
        "drug_concept_id, drug_exposure_start_date, drug_exposure_end_date, visit_occurrence_id, quantity",
        "drug_exposure",
    ):
        yield event(start, concepts[number], "drug_exposure", visit, value=quantity)
        if end != start:
            yield event(end, f"DRUG_END/{concepts[number]}", "drug_exposure", visit)
    for name in ("measurement", "observation"):
        for number, day, visit in of(f"{name}_concept_id, {name}_date, visit_occurrence_id", name):
            yield event(day, concepts[number], name, visit)


def test_a_database_csv_and_parquet_give_the_same_events(
    gibleed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty persons in three forms. CSV and Parquet are written by DuckDB from its own types, not from our texts."""
    small = tmp_path / "small.duckdb"
    forms = {"csv": tmp_path / "csv", "parquet": tmp_path / "parquet"}
    for folder in forms.values():
        folder.mkdir()
    with duckdb.connect(str(small)) as connection:
        connection.execute(f"ATTACH '{gibleed}' AS whole (READ_ONLY)")
        for (name,) in connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE database_name = 'whole'"
        ).fetchall():
            columns = [
                column
                for (column,) in connection.execute(f"SELECT column_name FROM (DESCRIBE whole.{name})").fetchall()
            ]
            chosen = "WHERE PERSON_ID <= 60" if "PERSON_ID" in columns else "LIMIT 500"
            connection.execute(f"CREATE TABLE {name} AS FROM whole.{name} {chosen}")
            if "column" not in columns[0]:
                connection.execute(f"COPY {name} TO '{forms['csv'] / name}.csv' (HEADER)")
                connection.execute(f"COPY {name} TO '{forms['parquet'] / name}.parquet'")
        connection.execute("DETACH whole")
    for name in set(database_tables(small)) - {path.stem for path in forms["csv"].iterdir()}:
        empty = pl.concat(database_frames(small, name, database_columns(small, name)))
        empty.write_csv(forms["csv"] / f"{name}.csv")
        empty.write_parquet(forms["parquet"] / f"{name}.parquet")
    events, ledger = aligned(tmp_path / "a", small, monkeypatch)
    assert events["subject_id"].n_unique() == 60
    assert events.height > 3000
    for form, folder in forms.items():
        others, other_ledger = aligned(tmp_path / f"b-{form}", folder, monkeypatch)
        assert others.equals(events), form
        named = ~pl.col("table").str.starts_with("unmapped-")
        assert other_ledger.filter(named).equals(ledger.filter(named)), form
