"""What is counted of a bucket, held against the same counts in plain expressions over the whole file, and in parts."""

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import patients, releases
from validation.measure.anew import measure_anew
from validation.measure.annotations import FAULTS
from validation.measure.contents import read_holdings
from validation.measure.events import annotations, item_events, measure_events
from validation.measure.files import events as of_events
from validation.measure.files import timelines as of_timelines
from validation.measure.measured_release import MeasuredRelease
from validation.measure.measures import Measures
from validation.measure.tally import tabulated
from validation.measure.tasks import Facts, place_of, readings, unmeasured
from warehouse.layout import ReleaseLayout
from warehouse.parquet import empty_frame, write_tables
from warehouse.schemas import EVENTS, ITEMS, MEASURES

CODES = ["LAB//1", "LAB//2", "DX/3", "MEDS_BIRTH", "MEDS_DEATH", ""]
START = datetime(2020, 1, 1)
FACTS = Facts(releases.BUCKETS, {releases.PROFILE: patients.entry()}, {}, releases.SCHEME, releases.PROFILE)

rows = st.lists(
    st.tuples(
        st.integers(0, 6),
        st.sampled_from(CODES),
        st.none() | st.integers(-80_000_000, 400_000),  # minutes: also before 1850
        st.none() | st.integers(-5, 5),
        st.sampled_from(["labs", "notes"]),
        st.sampled_from([None, None, "ct-a", "ct-b"]),
        st.sampled_from([None, "recorded", "time", "estimated", "odd"]),
        st.sampled_from([None, "<", "odd"]),
        st.sampled_from([None, "after_death", "odd"]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=40,
)


def events_of(drawn: list[tuple[object, ...]]) -> pl.DataFrame:
    names = ("subject_id", "code", "minutes", "late", "source", "item_key", "availability", "value_flag", "conflict",
             "number", "text")  # fmt: skip
    frame = pl.DataFrame(drawn, schema=list(names), orient="row", strict=False)
    time = pl.lit(START) + pl.duration(minutes=pl.col("minutes").cast(pl.Int64))
    return frame.select(
        pl.col("subject_id").cast(pl.Int64),
        time.alias("time"),
        pl.col("code").cast(pl.String),
        pl.when(pl.col("number").cast(pl.Boolean)).then(1.0).alias("numeric_value"),
        pl.when(pl.col("text").cast(pl.Boolean)).then(pl.lit("x")).alias("text_value"),
        (time + pl.duration(minutes=pl.col("late").cast(pl.Int64))).alias("available_time"),
        pl.lit(None, pl.String).alias("time_precision"),
        pl.when(pl.col("item_key").cast(pl.String).is_null())
        .then(pl.lit("clinical"))
        .otherwise(pl.lit("image"))
        .alias("kind"),
        pl.lit(None, pl.String).alias("unit"),
        pl.col("source").cast(pl.String),
        pl.lit(None, pl.Int64).alias("visit_id"),
        *(pl.col(name).cast(pl.String) for name in ("item_key", "availability", "value_flag", "conflict")),
    ).sort("subject_id", maintain_order=True)


def of_code(name: str) -> pl.Expr:
    return (pl.col("code") == name) | pl.col("code").str.starts_with(f"{name}//")


def plain_summary(events: pl.DataFrame) -> dict[str, int]:
    """Each count in one expression over all rows."""
    same = (pl.col("subject_id") == pl.col("subject_id").shift()).fill_null(False)
    before, time = pl.col("time").shift(), pl.col("time")
    backwards = same & ((time < before).fill_null(False) | (time.is_null() & before.is_not_null()))
    lives = events.group_by("subject_id").agg(
        of_code("MEDS_BIRTH").sum().alias("births"), of_code("MEDS_DEATH").sum().alias("deaths")
    )
    timed, known = time.is_not_null(), ["recorded", "time", "estimated"]
    flag, conflict = pl.col("value_flag"), pl.col("conflict")
    whole = pl.col("numeric_value").is_not_null() & pl.col("text_value").is_not_null()
    counted = {
        "rows": pl.lit(True),
        "empty_codes": pl.col("code") == "",
        "rows_out_of_order": backwards,
        "available_before_time": pl.col("available_time") < time,
        "implausible_times": time < datetime(1850, 1, 1),
        "availability_unknown": timed & ~pl.col("availability").is_in(known).fill_null(False),
        "availability_of_static": ~timed & pl.col("availability").is_not_null(),
        "unavailable": timed & pl.col("available_time").is_null(),
        "value_flag_unknown": flag == "odd",
        "value_flag_alone": flag.is_not_null() & ~whole,
        "conflict_unknown": conflict == "odd",
    }
    sums = {name: events.filter(which.fill_null(False)).height for name, which in counted.items()}
    twice = lives.filter((pl.col("births") > 1) | (pl.col("deaths") > 1)).height
    return sums | {"born_or_dead_twice": twice, "subjects": events["subject_id"].n_unique()}


# In `make test` alone: each example is a release that is measured.
@pytest.mark.whole
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows, st.integers(1, 9))
def test_what_is_counted_of_events_is_what_plain_expressions_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[tuple[object, ...]], together: int
) -> None:
    """In row groups of some rows, and taken up a few rows at a time: subjects stay whole."""
    monkeypatch.setattr(of_events, "PART_ROWS", together)
    tree, events = ReleaseLayout(tmp_path / "release"), events_of(drawn)
    releases.write_codes(tree, [code for code in CODES if code])
    releases.write_subject_splits(tree, {})
    releases.write_scheme_subjects(tree, [(0, "train"), (1, "tuning")])
    groups = [events.slice(at, together) for at in range(0, events.height, together)]
    write_tables(tree.events(0), groups, EVENTS, "data")
    measures = measure_anew(tree, FACTS)
    summary = measure_events(tree, releases.BUCKETS, measures).summary.row(0, named=True)
    expected = plain_summary(events)
    assert {name: summary[name] for name in expected} == expected
    assert set(FAULTS) < set(expected)
    stored = annotations(measures)
    assert dict(stored.select("source", "rows").iter_rows()) == dict(events["source"].value_counts().iter_rows())
    images = events.drop_nulls("item_key")["item_key"].value_counts()
    assert dict(item_events(measures).iter_rows()) == dict(images.iter_rows())
    holdings = read_holdings(measures, empty_frame(ITEMS))
    facts = events.filter(pl.col("item_key").is_null())
    space = pl.col("code").str.split("/").list.first().alias("namespace")
    spaces = facts.group_by(pl.col("source").alias("label"), space).agg(
        pl.len().alias("events"), pl.col("time").is_null().sum().alias("static")
    )
    assert sorted(holdings.spaces.iter_rows()) == sorted(spaces.iter_rows())
    sets = facts.group_by("subject_id").agg(pl.col("source").unique().sort().alias("labels"))
    assert sorted(map(str, holdings.sets.iter_rows())) == sorted(
        map(str, sets.group_by("labels").agg(pl.len().alias("subjects")).iter_rows())
    )
    tokenised = measures.counted("tokenised", ["events", "clinical"], of="scheme", within="namespace", split="split")
    of_split = events.filter(pl.col("subject_id") < 2).with_columns(
        pl.when(pl.col("subject_id") == 0).then(pl.lit("train")).otherwise(pl.lit("tuning")).alias("split"), space
    )
    clinical = ((pl.col("kind") == "clinical") & pl.col("time").is_not_null()).sum()
    by_space = of_split.group_by("namespace", "split").agg(pl.len(), clinical.alias("clinical"))
    assert sorted(tokenised.drop("scheme").iter_rows()) == sorted(by_space.iter_rows())


def tables_of(tree: ReleaseLayout) -> dict[str, pl.DataFrame]:
    measures = measure_anew(tree, FACTS)
    assert not measures.failed
    found = sorted(measures.place.measured.rglob("*.parquet"))
    return {str(path.relative_to(measures.place.measured)): pl.read_parquet(path) for path in found}


def test_a_bucket_is_measured_alike_in_one_part_and_in_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = patients.make_tree(tmp_path / "release")
    at_once = tables_of(tree)
    for module in (of_events, of_timelines):
        monkeypatch.setattr(module, "PART_ROWS", 7)
    in_parts = tables_of(tree)
    assert at_once.keys() == in_parts.keys() and len(at_once) > 20
    for name, frame in at_once.items():
        assert frame.equals(in_parts[name]), name
    for name, frame in at_once.items():
        area = name.split("/")[0]
        assert frame.columns == MEASURES[area].names, "the schemas are closed"


def test_how_often_combinations_stand_there(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [1, 0, 1, 1, 0], "b": [2, 0, 2, 1, 0], "c": [0, 3, 0, 0, 3]})
    columns = {name: (frame[name].to_numpy(), 4) for name in frame.columns}
    cells = pl.DataFrame(tabulated(columns)).sort("a", "b", "c")
    assert cells.rows() == [(0, 0, 3, 2), (1, 1, 0, 1), (1, 2, 0, 2)]


def test_a_damaged_file_is_told_to_whoever_asks_for_what_it_holds(tmp_path: Path) -> None:
    tree = patients.make_tree(tmp_path / "release")
    path = tree.timeline(releases.PROFILE, 1)
    path.write_bytes(path.read_bytes()[:100])
    measures = measure_anew(tree, FACTS)
    assert {"timelines", "lengths"} <= measures.failed.keys()
    assert "counts" not in measures.failed
    assert measures.counted("events", ["rows"])["rows"].item() > 0
    assert isinstance(measures, Measures)


def test_each_part_that_is_not_measured_is_named(tmp_path: Path) -> None:
    """Nothing counted is no zero: what is gone of the measures would be judged as nothing wrong."""
    tree = patients.make_tree(tmp_path / "release")
    taken = measure_anew(tree, FACTS)
    assert unmeasured(tree, FACTS, taken.place) == []
    wanted = list(readings(tree, FACTS))
    assert {reading.params["kind"] for reading in wanted} == {"release", "events", "strata", "timelines", "shards"}
    for reading in wanted:
        path = taken.place.measures(*place_of(reading.params))
        moved = path.rename(path.with_suffix(".aside"))
        assert unmeasured(tree, FACTS, taken.place) == [reading.key]
        moved.rename(path)


def test_of_which_profile_lengths_are_is_not_told_by_an_empty_folder(tmp_path: Path) -> None:
    """A run that was killed, whose first profile was another one, leaves it."""
    tree = ReleaseLayout(tmp_path)
    for name, kept in (("a", False), ("b", True)):
        path = tree.measures("lengths", name, "0000")
        path.parent.mkdir(parents=True)
        if kept:
            path.touch()
    release = MeasuredRelease(tree, 1, dict.fromkeys(("a", "b"), patients.entry()), {})
    assert release.first_profile == "b"
