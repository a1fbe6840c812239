"""Ids in one spelling, judged one by one; columns of ids as tables are read; ids of images and merges alike."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractors.crosswalk import CrosswalkConfig, read_crosswalk, relink
from extractors.deid import SYNTHETIC_KEY, DeidConfig, Deidentifier
from extractors.ids import NULL_IDS, SubjectIds, known_ids, plain_numbers
from extractors.reading import Reading
from extractors.source import Source
from extractors.tables.id_columns import IdKind, IdReader, id_kinds
from extractors.tables.rows import TextColumn
from pipelines.splitting.merges import read_merges
from tests.support.raw.raw_tables import KEEP, convert, csv_text, quarantine_of
from warehouse.errors import TimeloomError

HASH = {"mode": "synthetic", "dates": "keep"}


def text(*values: str | None) -> pl.Series:
    return pl.Series("x", values, dtype=pl.String)


SPELLINGS = [
    ("1001", "1001"), ("1001.0", "1001"), ("-7.000", "-7"), ("007", "007"), ("007.0", "007"), (" 12 ", "12"),
    ("\ufeff12", "12"), ("1\u200b2", "12"), ("12\u00a0", "12"), ("P\u00ad5", "P5"), ("\u200d", None), ("1.5", "1.5"),
    ("1.0.0", "1.0.0"), ("A.0", "A.0"), ("1e3", "1e3"), ("1e+05", None), ("1.23457E+11", None), ("", None), (" ", None),
    (None, None), ("NULL", None), ("Null", None), ("nULL", None), ("NA", None), ("N/A", None), ("None", None),
    ("nan", None), ("NaN", None), (r"\N", None), ("-", None), (".", None), ('""', None), (" NULL ", None),
    ("\ufeffNULL", None), ("#N/A", None), ("<NA>", None), ("NAN01", "NAN01"), ("P-1", "P-1"), ("a_b", "a_b"),
]  # fmt: skip


@pytest.mark.parametrize(("given_text", "expected"), SPELLINGS, ids=repr)
def test_an_id_has_one_spelling(given_text: str | None, expected: str | None) -> None:
    assert known_ids(text(given_text)).to_list() == [expected]


@given(st.lists(st.sampled_from([given_text for given_text, _ in SPELLINGS])))
def test_an_id_does_not_depend_on_those_beside_it(given_texts: list[str | None]) -> None:
    expected = dict(SPELLINGS)
    assert known_ids(text(*given_texts)).to_list() == [expected[given_text] for given_text in given_texts]
    assert known_ids(known_ids(text(*given_texts))).equals(known_ids(text(*given_texts)), null_equal=True)


def test_a_key_is_freed_of_what_tools_made_of_it_alone() -> None:
    found = plain_numbers(text("3000963.0", "NA", " 5", "250.00", "250.1", "\ufeff8", None))
    assert found.to_list() == ["3000963", "NA", " 5", "250", "250.1", "8", None]


MENDED = SubjectIds(r"P?\d+", ("upper", r"^(\w+)\^\^\^HOSP$", "strip_zeros"))


def test_a_site_mends_its_ids_in_one_line() -> None:
    found = MENDED.of(text("p0504", "P0504^^^HOSP", "000100", "100", "100.0", "Q1", "0", None, "NULL"))
    assert found.to_list() == ["P0504", "P0504", "100", "100", "100", None, "0", None, None]


def test_steps_that_leave_nothing_leave_no_id() -> None:
    assert SubjectIds(normalise=(r"^X(.*)$",)).of(text("X", "XNA", "X5", "5")).to_list() == [None, None, "5", "5"]


# --- tables


def source_of(reading: dict[str, Any] | None = None) -> Source:
    source = Source.model_validate(
        {
            "name": "s",
            "subject": "pid",
            "tables": {
                "patients": {"events": [{"code": "SEX/{sex}"}]},
                "labs": {
                    "visit": "vid",
                    "joins": [
                        {"table": "visits", "key": "vid", "columns": {"left": "left"}},
                        {"table": "patients", "key": "pid", "columns": {"sex": "sex"}},
                        {
                            "table": "items",
                            "key": {"itemid": "itemid"},
                            "columns": {"label": "label"},
                            "optional": True,
                        },
                    ],
                    "events": [{"code": "{label|LAB}/{sex|U}", "time": "at", "available": "left"}],
                },
                "visits": {"visit": "vid", "events": [{"code": "V", "time": "left"}]},
                "items": {"role": "reference"},
            },
        }
    )
    return source.read_as(Reading.model_validate(reading or {}))


def labs_of(folder: Path, rows: list[Any], deid: dict[str, Any], reading: dict[str, Any] | None = None) -> Any:
    (folder / "patients.csv").write_text("pid,sex\n1001,F\nP0504,M\n")
    (folder / "visits.csv").write_text("vid,pid,left\n501,1001,2020-01-03 10:00:00\nV9,P0504,2020-01-04 10:00:00\n")
    (folder / "items.csv").write_text("itemid,label\n7,K\nNA,SODIUM\n")
    path = folder / "labs.csv"
    path.write_text(csv_text(["pid", "vid", "itemid", "at"], rows))
    return convert(folder, source_of(reading), "labs", path, deid)


def test_floats_are_the_same_patients_visits_and_keys(tmp_path: Path) -> None:
    at = "2020-01-01 09:00:00"
    found, counts = labs_of(tmp_path, [("1001.0", "501.0", "7.0", at), ("1001", "501", "7", at)], KEEP)
    assert found["subject_id"].to_list() == [1001, 1001] and found["visit_id"].to_list() == [501, 501]
    assert found["code"].to_list() == ["K/F", "K/F"]
    assert set(found["availability"]) == {"recorded"} and counts["quarantined"] == {}
    hashed, _ = labs_of(tmp_path, [("1001.0", "501.0", "7.0", at), ("1001", "501", "7", at)], HASH)
    assert hashed["subject_id"].n_unique() == hashed["visit_id"].n_unique() == 1


@pytest.mark.parametrize("nothing", [null for null in NULL_IDS if null not in ('""',)] + ["NULL", "NaN", "None", " "])
def test_what_spells_nothing_is_no_patient_and_no_visit(tmp_path: Path, nothing: str) -> None:
    at = "2020-01-01 09:00:00"
    rows = [(nothing, "501", "7", at), ("P0504", nothing, "7", at), ("P0504", "V9", "NA", at)]
    found, counts = labs_of(tmp_path, rows, HASH)
    assert quarantine_of(tmp_path, counts) == [(1, "bad_subject_id")]
    assert found["visit_id"].is_null().to_list() == [True, False]
    # A key that is none of a patient or visit may be called so.
    assert found["code"].to_list() == ["K/M", "SODIUM/M"]


def test_invisible_characters_go_and_are_counted(tmp_path: Path) -> None:
    at = "2020-01-01 09:00:00"
    rows = [("\ufeffP0504", "V9\u200b", "7", at), ("P0504\u00a0", "V9", "7", at), ("P05\u00ad04", "V9", "7", at)]
    rows.append(("P0504\x00\x00", "\x1fV9", "7", at))
    found, counts = labs_of(tmp_path, [*rows, ("P0504", "V9", "7", at)], HASH)
    assert found["subject_id"].n_unique() == found["visit_id"].n_unique() == 1
    assert found["code"].to_list() == ["K/M"] * 5
    assert counts["partial"] == {"invisible_in_subject_id": 4, "invisible_in_visit_id": 2}


def test_the_sites_steps_hold_for_every_table_and_join(tmp_path: Path) -> None:
    at = "2020-01-01 09:00:00"
    reading = {"subject_normalise": ["upper", r"^(\w+)\^", "strip_zeros"], "subject_pattern": r"P?\d+"}
    rows = [
        ("p0504", "V9", "7", at),
        ("P0504^^^HOSP", "V9", "7", at),
        ("0001001", "501", "7", at),
        ("X", "501", "7", at),
    ]
    found, counts = labs_of(tmp_path, rows, HASH, reading)
    assert found["code"].to_list() == ["K/M", "K/M", "K/F"]
    assert found["subject_id"].n_unique() == 2
    assert quarantine_of(tmp_path, counts) == [(4, "bad_subject_id")]
    patients, _ = convert(tmp_path, source_of(reading), "patients", tmp_path / "patients.csv", HASH)
    assert set(patients["subject_id"]) == set(found["subject_id"])


def test_a_subject_that_is_derived_is_mended_too(tmp_path: Path) -> None:
    table = {"subject": "who", "derive": {"who": "'p' || number"}, "events": [{"code": "X", "time": "at"}]}
    source = Source.model_validate({"name": "s", "subject": "pid", "tables": {"t": table}})
    source = source.read_as(Reading(subject_normalise=["upper"]))
    (tmp_path / "t.csv").write_text("number,at\n5,2020-01-01\n")
    found, _ = convert(tmp_path, source, "t", tmp_path / "t.csv", HASH)
    expected = Deidentifier(DeidConfig.model_validate(HASH), SYNTHETIC_KEY).subject_ids(text("P5"))
    assert found["subject_id"].to_list() == expected.to_list()


def test_columns_of_ids_are_what_the_source_says_and_what_is_joined_with_them() -> None:
    kinds = id_kinds(source_of())
    assert kinds["labs"] == {"vid": IdKind.VISIT, "pid": IdKind.SUBJECT}
    assert kinds["visits"] == {"vid": IdKind.VISIT, "pid": IdKind.SUBJECT}
    assert kinds.get("items", {}) == {}


def test_a_subject_that_is_looked_up_is_one_in_the_other_table_too() -> None:
    orders = {"role": "reference"}
    join = {"table": "orders", "key": "order_no", "columns": {"pid": "patient"}}
    results = {"joins": [join], "events": [{"code": "X", "time": "at"}]}
    source = Source.model_validate({"name": "s", "subject": "pid", "tables": {"orders": orders, "results": results}})
    assert id_kinds(source)["orders"] == {"patient": IdKind.SUBJECT}


def test_columns_that_number_something_are_freed_of_floats_and_codes_are_not() -> None:
    reader = IdReader({}, SubjectIds())
    texts = TextColumn(text("250.0", "7", None))
    for name in ("order_no", "ITEMID", "concept_id", "accession_number", "PAT_ENC_CSN"):
        assert reader.read(name, texts).rows.to_list() == ["250", "7", None]
    for name in ("icd", "code", "value", "idea"):
        assert reader.read(name, texts).rows.to_list() == ["250.0", "7", None]


# --- crosswalks and merges


def test_a_crosswalks_ids_are_mended_by_its_own_keys(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("match,subject_id\na,p0504\nb,\ufeffP0504\nc,NULL\nd,12.0\ne,Q1\n")
    plain = read_crosswalk(CrosswalkConfig(file=tmp_path / "x.csv"))
    assert plain["subject_id"].to_list() == ["p0504", "P0504", None, "12", "Q1"]
    keys = {"subject_normalise": ["upper"], "subject_pattern": r"P?\d+"}
    mended = read_crosswalk(CrosswalkConfig.model_validate({"file": tmp_path / "x.csv", **keys}))
    assert mended["subject_id"].to_list() == ["P0504", "P0504", None, "12", None]


def test_patient_ids_of_headers_and_crosswalk_are_compared_in_one_spelling(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("match,subject_id\np0504,NULL\nP0504,7\n12,8\n")
    patients = SubjectIds(normalise=("upper", r"^(\w+)\^"))
    links = read_crosswalk(CrosswalkConfig(file=tmp_path / "x.csv", match="patient_id"), patients=patients)
    times = dict.fromkeys(["time", "available_time"], pl.Datetime("us"))
    items = pl.DataFrame({"raw_subject": patients.of(text("P0504^^^HOSP", "12.0", "13"))}).with_columns(
        *(pl.lit(None, dtype).alias(name) for name, dtype in times.items()),
        *(pl.lit("ok", pl.String).alias(name) for name in ("time_source", "time_precision", "verdict")),
        pl.col("raw_subject").alias("reference"),
    )
    assert relink(items, links)["raw_subject"].to_list() == ["7", "8", None]


def test_merges_name_ids_as_tables_do(tmp_path: Path) -> None:
    path = tmp_path / "merges.csv"
    path.write_text("old,new\np0504,12.0\n")
    deid = DeidConfig.model_validate(HASH)
    pairs = read_merges(path, deid, tmp_path, [SubjectIds(normalise=("upper",))])
    plain = tmp_path / "plain.csv"
    plain.write_text("old,new\nP0504,12\n")
    assert pairs.equals(read_merges(plain, deid, tmp_path, []))


def test_an_id_that_two_sources_read_differently_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "merges.csv"
    spellings = [SubjectIds(normalise=("upper",)), SubjectIds()]
    path.write_text("old,new\n1,2\n")
    assert len(read_merges(path, DeidConfig.model_validate(HASH), tmp_path, spellings)) == 1
    path.write_text("old,new\n1,2\nSECRET,secret\n")
    with pytest.raises(TimeloomError, match=r"line 3 of the merges merges\.csv") as caught:
        read_merges(path, DeidConfig.model_validate(HASH), tmp_path, spellings)
    assert "secret" not in str(caught.value).lower()
