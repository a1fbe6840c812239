"""Tables A1 and A2: lengths and the three intervals against plain loops; splits that pass the gate, and splits that do
not."""

from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.split import SPLITS, assign
from tests.support.tokens.populations import freeze_all, population
from validation.measure.anew import measure_anew
from validation.measure.cohort.splits import FEWEST, measure_splits, smd
from validation.measure.cohort.subjects import (
    IMAGING,
    KINDS,
    MODALITY_SETS,
    STRUCTURED,
    measure_cohorts,
    measure_gaps,
    measure_sets,
    read_subjects,
    set_of,
)
from validation.measure.measures import Measures
from validation.measure.tasks import Facts
from validation.measurements import Measurements
from validation.report.cells import Cells
from validation.report.tables import balance_table
from warehouse.layout import ReleaseLayout
from warehouse.manifest import ProfileEntry
from warehouse.modalities import INDEXED
from warehouse.parquet import empty_frame, write_table
from warehouse.schemas import SCHEME_SUBJECTS, SUBJECTS, TIMELINES
from warehouse.tokens import TokenType

START = datetime(2020, 1, 1)
DAY = 86_400.0
EVERYONE = dict.fromkeys(range(6), "train")
Token = tuple[int, int, int | None]  # subject, type, seconds

types = st.sampled_from([int(kind) for kind in TokenType])
tokens = st.lists(st.tuples(st.integers(0, 5), types, st.none() | st.integers(0, 400_000)), max_size=60)


def write_release(path: Path, rows: list[Token]) -> ReleaseLayout:
    """Six subjects in two buckets; 0 to 2 have CT."""
    tree = ReleaseLayout(path)
    frame = pl.DataFrame(
        {
            "subject_id": [row[0] for row in rows],
            "token_id": [7] * len(rows),
            "type": [row[1] for row in rows],
            "time": [None if row[2] is None else START + timedelta(seconds=row[2]) for row in rows],
            "item_key": [None] * len(rows),
        },
        schema=empty_frame(TIMELINES).schema,
    )
    subjects = pl.DataFrame({"subject_id": range(6)}).with_columns(
        pl.lit(1, pl.Int64).alias("events"),
        pl.lit(0, pl.Int64).alias("static_events"),
        (pl.col("subject_id") < 3).cast(pl.Int64).alias("ct"),
        *(pl.lit(0, pl.Int64).alias(name) for name in INDEXED if name != "ct"),
        pl.lit(2.5).alias("mean_interval_days"),
    )
    for bucket in range(2):
        in_bucket = pl.col("subject_id") % 2 == bucket
        write_table(tree.timeline("x", bucket), frame.filter(in_bucket), TIMELINES, "timeline")
        write_table(tree.subjects(bucket), subjects.filter(in_bucket), SUBJECTS, "subjects")
    return tree


def measures_of(tree: ReleaseLayout, splits: dict[int, str]) -> Measures:
    """What the stage measures of the timelines."""
    order = pl.DataFrame({"subject_id": list(splits), "split": list(splits.values())}).with_columns(order=0.0)
    write_table(tree.scheme_subjects("s"), order, SCHEME_SUBJECTS, "subjects")
    entry = ProfileEntry(vocabulary_hash="", vocabulary_size=0, scheme="s", rules_hash="", plans={})
    return measure_anew(tree, Facts(2, {"x": entry}, {}, "s", "x"))


def times_of(rows: list[Token], subject: int, population: str) -> list[int]:
    kinds = {int(kind) for kind in KINDS[population]}
    return sorted(row[2] for row in rows if row[0] == subject and row[1] in kinds and row[2] is not None)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens)
def test_lengths_and_intervals_are_those_of_plain_loops(tmp_path: Path, rows: list[Token]) -> None:
    tree = write_release(tmp_path / "release", rows)
    measures = measures_of(tree, EVERYONE)
    found = {row["subject_id"]: row for row in read_subjects(tree, "x", 2, measures).iter_rows(named=True)}
    assert sorted(found) == list(range(6))
    for subject, row in found.items():
        assert row["tokens"] == sum(token[0] == subject for token in rows)
        assert row["structured"] == sum(token[0] == subject and token[1] != TokenType.IMAGE for token in rows)
        assert row["set"] == MODALITY_SETS[int(subject < 3)]
        for cohort in (STRUCTURED, IMAGING):
            times = times_of(rows, subject, cohort)
            for name, values in (("tokens", times), ("times", sorted(set(times)))):
                mean = float(np.diff(values).mean() / DAY) if len(values) > 1 else None
                assert row[f"interval_{name}_{cohort}"] == (None if mean is None else pytest.approx(mean))
        assert row["interval"] == row["interval_tokens_structured"]


@pytest.mark.whole
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens)
def test_pooled_gaps_are_those_of_plain_loops(tmp_path: Path, rows: list[Token]) -> None:
    tree = write_release(tmp_path / "release", rows)
    splits = {0: "train", 1: "train", 2: "tuning", 3: "tuning", 4: "train"}  # 5 has none
    measures = measures_of(tree, splits)
    subjects = read_subjects(tree, "x", 2, measures).with_columns(
        pl.col("subject_id").replace_strict(splits, default=None, return_dtype=pl.String).alias("split")
    )
    gaps = measure_gaps(measures, "x")
    cohorts = measure_cohorts(subjects, ["train", "tuning"], gaps)
    for cohort in (STRUCTURED, IMAGING):
        for split in ("train", "tuning"):
            members = [
                subject
                for subject, assigned in splits.items()
                if assigned == split and (cohort == STRUCTURED or subject < 3)
            ]
            times = [sorted(set(times_of(rows, subject, cohort))) for subject in members]
            pooled = sorted(float(gap) for distinct in times for gap in np.diff(distinct))
            row = cohorts.filter(population=cohort, split=split).row(0, named=True)
            assert row["interval_pooled_n"] == len(pooled)
            if not pooled:
                assert row["interval_pooled_mean"] is None
                continue
            rounded = sorted(gap if gap < DAY else gap // 60 * 60 for gap in pooled)
            assert row["interval_pooled_mean"] == pytest.approx(np.mean(pooled) / DAY)
            if len(pooled) > 1:
                assert row["interval_pooled_sd"] == pytest.approx(np.std(pooled, ddof=1) / DAY, abs=1e-6)
            assert row["interval_pooled_median"] == pytest.approx(rounded[(len(rounded) + 1) // 2 - 1] / DAY)
            assert row["interval_pooled_max"] == pytest.approx(rounded[-1] / DAY)


def test_the_three_intervals_differ_as_they_are_meant_to(tmp_path: Path) -> None:
    """Three tokens at once and one a day later: 1/3 of a day, one day; with another subject's two gaps, pooled."""
    kind = int(TokenType.STRUCTURED)
    rows: list[Token] = [(4, kind, 0)] * 3 + [(4, kind, 86_400), (5, kind, 0), (5, kind, 3_600), (5, kind, 7_200)]
    tree = write_release(tmp_path, [*rows, (4, int(TokenType.SPECIAL), 999_999)])
    measures = measures_of(tree, EVERYONE)
    subjects = read_subjects(tree, "x", 2, measures).with_columns(pl.lit("train").alias("split"))
    table = measure_cohorts(subjects, ["train"], measure_gaps(measures, "x")).row(0, named=True)
    assert table["interval_tokens_mean"] == pytest.approx((1 / 3 + 1 / 24) / 2)
    assert table["interval_times_mean"] == pytest.approx((1 + 1 / 24) / 2)
    assert table["interval_pooled_mean"] == pytest.approx((1 + 2 / 24) / 3)
    assert (table["subjects"], table["interval_tokens_n"], table["interval_pooled_n"]) == (6, 2, 3)


def test_without_a_profile_only_distinct_times_are_known(tmp_path: Path) -> None:
    tree = write_release(tmp_path, [])
    measures = Measures(tree)
    subjects = read_subjects(tree, None, 2, measures).with_columns(pl.lit("train").alias("split"))
    table = measure_cohorts(subjects, ["train"], measure_gaps(measures, None)).row(0, named=True)
    assert (table["interval_times_mean"], table["interval_tokens_mean"], table["interval_pooled_mean"]) == (
        2.5,
        None,
        None,
    )


def test_a_modality_set_is_named_by_what_a_subject_has() -> None:
    frame = pl.DataFrame({"ct": [0, 2, 0, 1, 0], "mri": [0, 0, 0, 1, 3], "wsi": [0, 0, 1, 1, 0]})
    assert frame.select(set_of(["ct", "wsi"]))["set"].to_list() == [
        "structured only", "CT", "slide", "CT and slide", "structured only",
    ]  # fmt: skip
    named = frame.select(set_of(["ct", "mri", "wsi"]))["set"]
    assert named.to_list()[3:] == ["CT and mri and slide", "mri"]
    shown = measure_sets(pl.DataFrame({"set": named}).with_columns(pl.lit("train").alias("split")), ["train"])
    assert shown["set"].to_list() == [*MODALITY_SETS, "CT and mri and slide", "mri"]
    assert shown["subjects"].sum() == 5


# --- the gate


FRACTIONS = dict(zip(SPLITS, (0.85, 0.05, 0.10), strict=True))
GROSS = ("length_ks_ratio", "length_smd_ratio", "interval_smd_ratio", "modality_ratio")


def measured(subjects: pl.DataFrame, splits: pl.DataFrame) -> pl.DataFrame:
    """What the gate sees of subjects, were their events their tokens."""
    frame = subjects.with_columns(
        set_of(["ct", "wsi"]),
        pl.col("events").alias("tokens"),
        pl.col("mean_interval_days").alias("interval"),
    ).join(splits.select("subject_id", "split"), on="subject_id")
    return measure_splits(frame, "mehrt", FRACTIONS, {})


def worst(frame: pl.DataFrame, *columns: str) -> float:
    values = frame.select(pl.max_horizontal(pl.col(columns).max())).item()
    return 0.0 if values is None else float(values)


@pytest.mark.whole
@pytest.mark.parametrize("size", [30, 250, 1_000, 5_000, 20_000])
@pytest.mark.parametrize("seed", range(4))
def test_stratified_splits_pass_at_any_size(size: int, seed: int) -> None:
    subjects = population(size, seed)
    ledger, _ = freeze_all(subjects)
    assert worst(measured(subjects, ledger), *GROSS, "match_ratio") <= 1


@pytest.mark.whole
@pytest.mark.parametrize("seed", range(6))
def test_growth_and_change_pass_what_gates(seed: int) -> None:
    """Ten nights bring new subjects, and records grow by chance. No subject can move, so no night may fail."""
    everyone = population(1_100, seed)
    ledger, freeze = freeze_all(everyone[:600])
    for end in range(650, 1_101, 50):
        ledger, _, freeze = assign(everyone[:end], ledger, freeze)
    rng = np.random.default_rng(seed)
    grown = everyone.with_columns(
        (pl.col("events") * pl.Series(rng.lognormal(1, 1, 1_100))).cast(pl.Int64).alias("events"),
        pl.Series("mean_interval_days", rng.lognormal(2, 2, 1_100)),
        pl.Series("ct", (rng.random(1_100) < 0.2).astype(np.int64)),
    )
    assert worst(measured(grown, ledger), *GROSS) <= 1


def bad(subjects: pl.DataFrame, by: str, seed: int) -> pl.DataFrame:
    """Who is in tuning and held_out is drawn from the half with the largest values."""
    rng = np.random.default_rng(seed)
    ordered = subjects.sort(pl.col(by).fill_null(0), descending=True)
    half = rng.permutation(len(ordered) // 2)
    names = np.full(len(ordered), "train", dtype=object)
    cut = len(ordered) // 20
    names[half[:cut]], names[half[cut : 3 * cut]] = "tuning", "held_out"
    return ordered.select("subject_id", pl.Series("split", names, dtype=pl.String))


@pytest.mark.parametrize("by", ["events", "mean_interval_days", "ct"])
@pytest.mark.parametrize("size", [2_000, 10_000])
def test_splits_that_hang_on_what_they_should_not_are_refused(by: str, size: int) -> None:
    subjects = population(size)
    assert worst(measured(subjects, bad(subjects, by, 1)), *GROSS) > 1


def test_few_subjects_are_never_judged() -> None:
    subjects = population(9 * FEWEST)
    assert worst(measured(subjects, bad(subjects, "events", 1)).filter(split="tuning"), *GROSS, "match_ratio") == 0


def test_the_standardised_difference_is_that_of_its_definition() -> None:
    first, second = np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.0, 9.0, 1.0])
    expected = (3.5 - 7 / 3) / np.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2)
    assert smd(first, second) == pytest.approx(expected) == pytest.approx(-smd(second, first))
    assert smd(np.full(5, 0.1), np.full(9, 0.1)) == smd(first, second[:1]) == 0


# --- the report


def test_figure_a1_has_the_releases_shares() -> None:
    subjects = population(400)
    ledger, _ = freeze_all(subjects)
    kinds = Counter(dict.fromkeys(MODALITY_SETS, 0))
    joined = subjects.with_columns(set_of(["ct", "wsi"])).join(ledger, on="subject_id")
    kinds.update(joined.filter(split="train")["set"].to_list())
    sets = measure_sets(joined, list(SPLITS))
    assert dict(sets.filter(split="train").select("set", "subjects").iter_rows()) == dict(kinds)


def balance(subjects: list[int], aside: int, *, open_cells: bool) -> list[dict[str, Any]]:
    frame = pl.DataFrame(
        {
            "scheme": ["mehrt"] * 3,
            "split": list(SPLITS),
            "subjects": subjects,
            "share": [0.8, 0.1, 0.1],
            "target": [0.8, 0.1, 0.1],
            "set_aside": [aside] * 3,
        }
    ).with_columns(
        pl.lit(0.01234).alias(name) for name in ("length_ks", "length_smd", "interval_smd", "modality_points")
    )

    measurements = cast(Measurements, SimpleNamespace(areas={"splits": frame}))
    return balance_table(measurements, Cells(open=open_cells)).frame().to_dicts()


def test_the_report_counts_who_is_set_aside() -> None:
    rows = balance([80, 10, 10], 4, open_cells=True)
    assert [(row["split"], row["subjects"]) for row in rows] == [
        ("train", 80), ("tuning", 10), ("held_out", 10), ("set aside", 4),
    ]  # fmt: skip
    assert rows[1]["length_ks"] == 0.01234 and rows[3]["length_ks"] is None
    assert len(balance([80, 10, 10], 0, open_cells=True)) == 3


def test_the_report_hides_few_patients_and_what_is_worked_out_from_them() -> None:
    rows = balance([800, 100, 4], 3, open_cells=False)
    assert [row["subjects"] for row in rows] == [800, None, None, None]
    assert rows[2]["length_ks"] is None and rows[0]["length_ks"] == 0.01234
    assert "1–10" in rows[3]["withheld"]
