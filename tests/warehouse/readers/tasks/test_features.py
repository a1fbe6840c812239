"""Features against plain loops: what was known by each prediction time, and nothing else."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cohort import (
    CODES,
    ETHNICITIES,
    SEXES,
    START,
    TASK,
    Fact,
    Label,
    cohort,
    draw,
    known_by,
    label_frame,
    later,
    split_of,
    vector,
)
from warehouse import Release, TimeloomError
from warehouse.embeddings.store import close_stores
from warehouse.readers.tasks.counting import units_of
from warehouse.readers.tasks.features import FeatureTable

UNITS = {
    "ICD10CM/C50911": "ICD10CM/C50", "ICD10CM/C5001": "ICD10CM/C50", "ICD10CM/D70": "ICD10CM/D70",
    "ICD10PCS/30233N1": "ICD10PCS/302", "ICD10PCS/D702ZZZ": "ICD10PCS/D70",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_stores()


def cells(table: FeatureTable) -> list[dict[str, float]]:
    """Each label's columns by name, those that are 0 left out."""
    names = table.columns["name"].to_list()
    dense = table.dense()
    return [
        {
            name: float(value)
            for name, value in zip(names, row, strict=True)
            if value != 0 or name == "age_at_first_event"
        }
        for row in dense
    ]


def expected(facts: Sequence[Fact], label: Label) -> dict[str, float]:
    """What a label's subject had, counted one by one."""
    found: Counter[str] = Counter()
    had = known_by(facts, label.subject, label.time)
    for fact in had:
        if fact.code in CODES:
            found[UNITS.get(fact.code, fact.code)] += 1
    cell: dict[str, float] = dict(found)
    for attribute in (SEXES, ETHNICITIES):
        stated = [fact for fact in had if fact.code in attribute]
        if stated:
            order = sorted(
                stated,
                key=lambda fact: (fact.code.endswith("UNKNOWN"), -1 if fact.known is None else fact.known, fact.code),
            )
            cell[order[0].code] = 1.0
    birth = [fact.time for fact in had if fact.code == "MEDS_BIRTH"]
    timed = [fact.time for fact in had if fact.time is not None and fact.code != "MEDS_BIRTH"]
    cell["age_at_first_event"] = np.nan
    if birth and timed:
        days = (min(timed) - birth[0]) // 1440
        cell["age_at_first_event"] = float(np.float32(days / 365.2425))
    return cell


def same(found: dict[str, float], wanted: dict[str, float]) -> bool:
    return found.keys() == wanted.keys() and all(
        value == wanted[name] or (np.isnan(value) and np.isnan(wanted[name])) for name, value in found.items()
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Fact], list[Label], Release]:
    facts, labels = draw(5)
    return facts, labels, cohort(tmp_path_factory.mktemp("features") / "root", facts, labels)


def in_order(release: Release, labels: Sequence[Label]) -> list[Label]:
    """Labels in the order of the features' rows."""
    by_row: defaultdict[tuple[int, datetime], list[Label]] = defaultdict(list)
    for label in labels:
        by_row[label.subject, START + timedelta(minutes=label.time)].append(label)
    rows = release.labels(TASK)
    return [by_row[row["subject_id"], row["prediction_time"]].pop(0) for row in rows.iter_rows(named=True)]


def test_every_cell_is_what_plain_loops_count(drawn: tuple[list[Fact], list[Label], Release]) -> None:
    facts, labels, release = drawn
    table = release.features(TASK, least_share=0.0, modalities=[]).read()
    ordered = in_order(release, labels)
    train = {UNITS.get(fact.code, fact.code) for fact in facts if split_of(fact.subject) == "train"}
    wanted = [
        {name: value for name, value in expected(facts, label).items() if name in train or name.startswith("age")}
        for label in ordered
    ]
    assert len(table.rows) == len(labels) and table.rows["boolean_value"].sum() == sum(
        label.outcome for label in labels
    )
    for found, row in zip(cells(table), wanted, strict=True):
        assert same(found, row)
    # A subject with no event at all has rows, and two labels of one subject have their own counts.
    silent = {label.subject for label in labels} - {fact.subject for fact in facts}
    assert silent and set(table.rows["subject_id"]) >= silent
    assert any(first.subject == second.subject and a != b for first, second, a, b in zip(
        ordered, ordered[1:], wanted, wanted[1:], strict=False))  # fmt: skip


def test_means_are_of_items_available_by_then(drawn: tuple[list[Fact], list[Label], Release]) -> None:
    facts, labels, release = drawn
    table = release.features(TASK).read()
    zeros = missing = 0
    for row, label in enumerate(in_order(release, labels)):
        for modality in ("ct", "wsi"):
            keys = [fact.key for fact in known_by(facts, label.subject, label.time) if fact.modality == modality]
            found = table.vectors[modality][row]
            assert table.rows[f"items_{modality}"][row] == len(keys)
            if keys:
                mean = np.mean([vector(modality, str(key)) for key in keys], axis=0, dtype=np.float64)
                np.testing.assert_allclose(found, mean, rtol=1e-6, atol=1e-7)
                zeros += not mean.any()
            else:
                assert np.isnan(found).all()
                missing += 1
    # A vector of zeros that was measured is not a vector that is missing.
    assert zeros and missing


@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 1000), added=st.lists(st.sampled_from([*CODES, *ETHNICITIES, "NEW/1"]), min_size=1, max_size=9)
)
def test_events_known_after_the_prediction_time_change_no_cell(
    tmp_path_factory: pytest.TempPathFactory, seed: int, added: list[str]
) -> None:
    facts, labels = draw(seed, subjects=8)
    labels = [*labels, Label(1, 3, True)]
    before = cohort(tmp_path_factory.mktemp("before") / "root", facts, labels, subjects=8)
    last = {label.subject: 0 for label in labels}
    for label in labels:
        last[label.subject] = max(last[label.subject], label.time)
    # Behind each subject's last label: whole events, an item, and one whose time is before and which is known after.
    further = [later(Fact(subject, code, 0, 0), minute) for subject, minute in last.items() for code in added]
    further += [Fact(subject, "LOINC/2160-0", 0, minute + 1) for subject, minute in last.items()]
    further += [Fact(subject, "IMAGE/CT", 0, minute + 1, "ct", f"ct-{subject}-9") for subject, minute in last.items()]
    after = cohort(tmp_path_factory.mktemp("after") / "root", [*facts, *further], labels, subjects=8)
    first, second = (release.features(TASK, least_share=0.0).read() for release in (before, after))
    assert first.rows.equals(second.rows)
    # A code that train has now and had not may bring a column; those there were are as they were.
    names = set(first.columns["name"])
    assert names <= set(second.columns["name"])
    for row, other in zip(cells(first), cells(second), strict=True):
        assert same(row, {name: value for name, value in other.items() if name in names})
    for modality, vectors in first.vectors.items():
        np.testing.assert_array_equal(vectors, second.vectors[modality])
    close_stores()


def test_a_fact_at_the_prediction_time_counts_and_one_a_second_later_does_not(tmp_path: Path) -> None:
    facts = [Fact(1, "LOINC/2160-0", 4, 10), Fact(1, "RXNORM/2555", 10, 11)]
    release = cohort(tmp_path / "root", facts, [Label(1, 10, True)])
    at = label_frame([Label(1, 10, True)])
    second = pl.duration(seconds=1)
    names = ["LOINC/2160-0", "RXNORM/2555"]

    def counts(frame: pl.DataFrame, **options: str) -> list[float]:
        table = release.features(frame, least_share=0.0, modalities=[], **options).read()  # type: ignore[arg-type]
        return [cells(table)[0].get(name, 0.0) for name in names]

    assert counts(at) == [1.0, 0.0]
    assert counts(at.with_columns(pl.col("prediction_time") - second)) == [0.0, 0.0]
    assert counts(at.with_columns(pl.col("prediction_time") + timedelta(seconds=60))) == [1.0, 1.0]
    # By `time` both had happened.
    assert counts(at, clock="time") == [1.0, 1.0]


def test_an_unknown_value_is_none_where_another_is_known_by_then(tmp_path: Path) -> None:
    facts = [Fact(1, "DEMO/ETHNICITY/UNKNOWN", 3, 3), Fact(1, "DEMO/ETHNICITY/B", 7, 7), Fact(1, "LOINC/2160-0", 1, 1)]
    release = cohort(tmp_path / "root", facts, [Label(1, minute, True) for minute in (2, 4, 8)])
    rows = cells(release.features(TASK, least_share=0.0, modalities=[]).read())
    stated = [{name for name in row if name.startswith("DEMO/")} for row in rows]
    assert stated == [set(), {"DEMO/ETHNICITY/UNKNOWN"}, {"DEMO/ETHNICITY/B"}]


def test_codes_are_of_train_and_of_enough_of_its_subjects(tmp_path: Path) -> None:
    subjects = range(1, 334)  # 200 of train
    facts = [Fact(subject, "LOINC/2160-0", 1, 1) for subject in subjects]
    train = [subject for subject in subjects if split_of(subject) == "train"]
    assert len(train) == 200
    facts += [Fact(subject, "ICD10CM/C50911", 1, 1) for subject in train[:1]]
    facts += [Fact(subject, "ICD10CM/C5001", 1, 1) for subject in train[1:2]]
    # One subject's many events are one subject; in held_out a code is as good as nowhere.
    facts += [Fact(train[0], "RXNORM/2555", 1, 1)] * 9
    facts += [Fact(subject, "ICD10CM/D70", 1, 1) for subject in subjects if split_of(subject) == "held_out"]
    release = cohort(tmp_path / "root", facts, [Label(4, 9, True), Label(5, 9, True)], subjects=333)
    columns = release.features(TASK, modalities=[]).columns
    assert columns["name"].to_list() == ["ICD10CM/C50", "LOINC/2160-0", "age_at_first_event"]
    assert columns["train_subjects"].to_list() == [2, 200, 200]
    assert release.features(TASK, modalities=[], least_share=0.011).columns["name"][0] == "LOINC/2160-0"


def test_icd_10_codes_become_three_characters_and_others_stay() -> None:
    codes = {
        "ICD10CM/C50911": "ICD10CM/C50", "ICD10CM/C50.911": "ICD10CM/C50", "icd10cm/s72001a": "ICD10CM/S72",
        "ICD10PCS/30233N1": "ICD10PCS/302", "ICD10CM/I10": "ICD10CM/I10", "ICD9CM/17401": "ICD9CM/17401",
        "ICD10CM/C5": "ICD10CM/C5", "LOINC/2160-0": "LOINC/2160-0", "X/ICD10CM/C50911": "X/ICD10CM/C50911",
    }  # fmt: skip
    assert units_of(pl.Series(list(codes))).to_list() == list(codes.values())


def test_parquet_is_loaded_in_one_line_and_is_the_matrix(
    drawn: tuple[list[Fact], list[Label], Release], tmp_path: Path
) -> None:
    _, labels, release = drawn
    features = release.features(TASK)
    table, written = features.read(), features.write(tmp_path / "out")
    rows, columns = (pl.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("rows", "columns"))
    assert rows.equals(table.rows) and columns.equals(table.columns) and written["rows.parquet"] == len(labels)
    m = pl.read_parquet(tmp_path / "out" / "matrix.parquet")
    loaded = scipy.sparse.coo_array((m["value"], (m["row"], m["column"])), shape=(len(rows), len(columns)))
    # Both ways of scoring a row, and both ways of loading, give the same numbers, what is missing included.
    np.testing.assert_array_equal(loaded.toarray(), table.dense())
    matrix = scipy.sparse.csr_array(table.csr, shape=table.shape)
    np.testing.assert_array_equal(matrix.toarray(), table.dense())
    weights = np.random.default_rng(0).standard_normal(len(columns)).astype(np.float32)
    np.testing.assert_allclose(matrix[[3], :] @ weights, table.dense()[3] @ weights, rtol=1e-5)
    vectors = pq.read_table(tmp_path / "out" / "ct.parquet")["vector"]
    present = (table.rows["items_ct"] > 0).to_numpy()
    assert (np.asarray(vectors.is_valid()) == present).all() and present.any() and not present.all()
    kept = np.stack([row.as_py() for row in vectors if row.is_valid])
    np.testing.assert_array_equal(kept.astype(np.float32), table.vectors["ct"][present])
    assert json.loads((tmp_path / "out" / "features.json").read_text())["rows"] == len(labels)
    with pytest.raises(TimeloomError, match="not empty"):
        features.write(tmp_path / "out")


def test_a_task_without_labels_has_columns_and_no_row(tmp_path: Path) -> None:
    release = cohort(tmp_path / "root", [Fact(1, "LOINC/2160-0", 1, 1)], [])
    table = release.features(TASK).read()
    assert len(table.rows) == 0 and table.shape == table.dense().shape == (0, 2)
    assert release.features(TASK).write(tmp_path / "out")["matrix.parquet"] == 0


def test_what_is_wrong_is_one_line(drawn: tuple[list[Fact], list[Label], Release], tmp_path: Path) -> None:
    release = drawn[2]
    rows = label_frame([Label(1, 1, True)])
    for wrong, said in (
        ("no_task", "no labels of no_task"),
        (tmp_path / "nowhere", "no label file"),
        (rows.drop("boolean_value"), "lack the column boolean_value"),
        (rows.with_columns(pl.lit(None, pl.Boolean).alias("boolean_value")), "nulls in boolean_value"),
        (rows.with_columns(pl.lit("soon").alias("prediction_time")), "columns of other types"),
    ):
        with pytest.raises(TimeloomError, match=said):
            release.labels(wrong)  # type: ignore[arg-type]
    with pytest.raises(TimeloomError, match="no vectors of ecg"):
        release.features(TASK, modalities=["ecg"])
    with pytest.raises(TimeloomError, match="no clock"):
        release.features(TASK, clock="birth")  # type: ignore[arg-type]
    rows.write_parquet(tmp_path / "labels.parquet")
    assert len(release.labels(tmp_path / "labels.parquet")) == 1
