"""Columns looked up in other tables: any amount of memory gives the same rows, and no temporary file remains."""

import csv
import random
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.events import joins
from extractors.events.joins import attach_all
from extractors.events.lag_counts import LAGS
from extractors.source import JoinRule, Source
from extractors.tables import csv_reader
from extractors.tables.export import Export
from pipelines import lags
from pipelines.aligning.continued import SUBJECTS
from pipelines.aligning.segments import read_frame_blob
from pipelines.engine.context import StageReport
from pipelines.metadata import ledger_rows
from tests.support.raw.raw_tables import (
    align_one,
    aligned_events,
    convert,
    convert_text,
    csv_text,
    plan_meds,
    run_meds,
    source_of,
)
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.manifest import TaskEntry
from warehouse.parquet import read_frame

NOTHING = StageReport("align", entries={})


def event(code: str = "X", **keys: Any) -> dict[str, Any]:
    return {"code": code, **keys}


def table(*events: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"events": list(events), **keys}


STAYS = table(event("STAY", time="opened"))


def write_stays(work: Path, *rows: tuple[object, ...]) -> None:
    (work / "raw").mkdir(exist_ok=True)
    (work / "raw" / "stays.csv").write_text(csv_text(["pid", "stay", "opened", "closed"], rows))


def with_join(columns: dict[str, str], **keys: Any) -> dict[str, Any]:
    return table(
        event("DX/{code}", time="closed"), joins=[{"table": "stays", "key": "stay", "columns": columns}], **keys
    )


def test_a_join_looks_up_and_a_missing_key_gives_nothing(tmp_path: Path) -> None:
    write_stays(tmp_path, (1, "s1", "2020-01-01", "2020-01-09 12:00:00"), (1, None, "2020-01-01", "2020-02-02"))
    text = csv_text(["pid", "stay", "code"], [(1, "s1", "A"), (1, "s9", "B"), (1, None, "C")])
    found, counts = convert_text(tmp_path, with_join({"closed": "closed"}), text, stays=STAYS)
    assert found.select("code", "time").rows() == [("DX/A", datetime(2020, 1, 9, 12))]
    assert counts["quarantined"] == {"missing_time": 2}


@pytest.mark.parametrize(("function", "day"), [("min", 3), ("max", 8)])
def test_min_and_max_over_several_rows_a_key(tmp_path: Path, function: str, day: int) -> None:
    write_stays(
        tmp_path, *((1, "s1", "2020-01-01", f"2020-01-0{day} 00:00:00") for day in (8, 3)), (1, "s1", "x", None)
    )
    text = csv_text(["pid", "stay", "code"], [(1, "s1", "A")])
    found, counts = convert_text(tmp_path, with_join({"closed": f"{function}(closed)"}), text, stays=STAYS)
    assert [at.day for at in found["time"]] == [day]
    assert counts["raw"] == counts["events"] == 1


@pytest.mark.parametrize("columns", [{"closed": "closed"}, {"closed": "max(closed)", "opened": "opened"}])
@pytest.mark.parametrize("fits", [True, False])
def test_a_join_that_fans_out_is_refused(
    tmp_path: Path, columns: dict[str, str], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fits:
        monkeypatch.setattr(joins, "LOOKUP_BYTES", 1)
    write_stays(tmp_path, (1, "SECRET", "2020-01-01", "2020-01-08"), (1, "SECRET", "2020-01-02", "2020-01-09"))
    text = csv_text(["pid", "stay", "code"], [(1, "SECRET", "A")])
    with pytest.raises(TimeloomError, match="the join with stays finds several rows a key") as caught:
        convert_text(tmp_path, with_join(columns), text, stays=STAYS)
    assert "SECRET" not in str(caught.value)
    assert list(tmp_path.glob(".*")) == list(tmp_path.glob("*.segment")) == []


def test_equal_rows_of_a_lookup_are_no_fan_out(tmp_path: Path) -> None:
    write_stays(tmp_path, *[(1, "s1", "2020-01-01", "2020-01-08")] * 2)
    text = csv_text(["pid", "stay", "code"], [(1, "s1", "A")])
    assert convert_text(tmp_path, with_join({"closed": "closed"}), text, stays=STAYS)[1]["events"] == 1


# --- what is known when another table should say it

MISSES: dict[str, Any] = table(
    event("DX/{code}", time="at", available={"column": "closed"}),
    joins=[{"table": "stays", "key": "stay", "columns": {"closed": "closed"}, "no_link": ["0", "-"], "optional": True}],
)
NOON = datetime(2020, 1, 1, 12)


def closed_late(work: Path, rule: dict[str, Any], *rows: tuple[object, ...]) -> tuple[pl.DataFrame, dict[str, Any]]:
    text = csv_text(["pid", "stay", "at", "code"], rows)
    return convert_text(work, rule, text, stays={**STAYS, "optional": True})


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("derived", [True, False])
def test_availability_through_a_join_that_missed_is_never_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: bool, derived: bool
) -> None:
    if not fits:
        monkeypatch.setattr(joins, "LOOKUP_BYTES", 1)
    write_stays(tmp_path, *((1, f"s{n}", "x", NOON + timedelta(days=n)) for n in range(1, 20)), (1, "open", "x", None))
    rows = [(1, f"s{n}", NOON, "A") for n in range(1, 20)]
    rows += [(1, "lost", NOON, "A"), (1, None, NOON, "A"), (1, "0", NOON, "A"), (1, "-", NOON, "B")]
    rows += [(1, "open", NOON, "A"), (1, "gone", NOON, "B")]
    rule = MISSES
    if derived:
        rule = {**MISSES, "derive": {"over": "COALESCE(closed, closed)"}}
        rule["events"] = [event("DX/{code}", time="at", available="over")]
    found, counts = closed_late(tmp_path, rule, *rows)
    how = dict(zip(found["row"], found["availability"], strict=True))
    assert [how[row] for row in range(1, 26)] == [
        *["recorded"] * 19,
        "missed",
        "time",
        "time",
        "time",
        "time",
        "missed",
    ]
    assert counts["joins"] == {"stays by stay": {"asked": 22, "missed": 2, "optional": 1}}
    assert counts["partial"] == {"availability_join_missed": 2, "unknown_available_time": 4}
    # The estimate: of 19 stays the 19th is the first that 95 % of them do not outlast, and it took longer than the
    # two weeks that are counted at most.
    account = StageReport("meds", entries={"t": TaskEntry(fingerprint="", files={}, counts=counts)})
    lagged = {"source": "t", "path": str(tmp_path / "t-t.csv.segment")}
    lagged |= {name: counts["blobs"][name] for name in ("codes", "lags")}
    lags.run({"segments": [lagged], "before": None}, tmp_path / "release")
    table_lag = read_frame(ReleaseLayout(tmp_path / "release").lags)
    assert table_lag.select("code", "lag_us").rows() == [("", timedelta(days=14) // timedelta(microseconds=1))]
    asked = {"t": {"DX/A", "DX/B"}}
    for known in (lags.awaited(table_lag, asked), {}):
        events = []
        for bucket in range(2):
            align_one(tmp_path, {"t-t.csv.segment": counts}, bucket, lags=known)
            events.append(aligned_events(tmp_path, bucket))
        missed = pl.concat(events).filter(pl.col("availability") == "estimated")
        assert missed.select("code", "available_time").rows() == [
            ("DX/A", NOON + timedelta(days=14)), ("DX/B", NOON + timedelta(days=14)),
        ]  # fmt: skip
    rows_of = {(outcome, reason): rows for _, outcome, reason, rows, _ in ledger_rows(account, NOTHING)}
    assert rows_of["join_missed", "stays by stay"] == 2


def test_an_estimate_of_stays_counts_the_day_that_is_all_that_is_known(tmp_path: Path) -> None:
    write_stays(tmp_path, *((1, f"s{n}", "x", "2020-01-03 18:00:00") for n in range(5)))
    rows = [(1, f"s{n}", "2020-01-01", "A") for n in range(5)]
    _, counts = closed_late(tmp_path, MISSES, *rows, (1, "lost", "2020-01-01 08:00:00", "A"))
    found = read_frame_blob(tmp_path / "t-t.csv.segment", counts["blobs"]["lags"], LAGS)
    # From the first moment of the first day to the end: 66 hours, a step for each five minutes.
    assert found.select("step", "rows").rows() == [(66 * 12, 5)]


def test_where_no_join_missed_no_lag_of_stays_is_kept(tmp_path: Path) -> None:
    write_stays(tmp_path, (1, "s1", "x", "2020-01-03 18:00:00"))
    found, counts = closed_late(tmp_path, MISSES, (1, "s1", NOON, "A"), (1, None, NOON, "A"))
    assert found["availability"].to_list() == ["recorded", "time"]
    assert read_frame_blob(tmp_path / "t-t.csv.segment", counts["blobs"]["lags"], LAGS).is_empty()
    assert counts["joins"] == {"stays by stay": {"asked": 1, "missed": 0, "optional": 1}}


def test_of_a_table_that_is_not_there_no_misses_are_counted_and_nothing_is_known_early(tmp_path: Path) -> None:
    found, counts = closed_late(tmp_path, MISSES, (1, "s1", NOON, "A"), (1, "0", NOON, "A"))
    assert found["availability"].to_list() == ["missed", "time"]
    assert counts["joins"] == {}


def test_a_looked_up_column_replaces_the_rows_own(tmp_path: Path) -> None:
    write_stays(tmp_path, (1, "s1", "2020-01-01", "2020-01-08 00:00:00"))
    text = csv_text(["pid", "stay", "code", "closed"], [(1, "s1", "A", "1999-01-01 00:00:00")])
    found, _ = convert_text(tmp_path, with_join({"closed": "closed"}), text, stays=STAYS)
    assert found["time"].to_list() == [datetime(2020, 1, 8)]


def test_a_key_may_have_another_name_there(tmp_path: Path) -> None:
    write_stays(tmp_path, (1, "s1", "2020-01-01", "2020-01-08"), (2, "s1", "2020-01-01", "2020-01-09"))
    rule = table(
        event("DX", time="closed"),
        joins=[{"table": "stays", "key": {"visit": "stay", "pid": "pid"}, "columns": {"closed": "closed"}}],
    )
    text = csv_text(["pid", "visit"], [(1, "s1"), (2, "s1"), (1, "s2")])
    found, _ = convert_text(tmp_path, rule, text, stays=STAYS)
    assert [at.day for at in found["time"]] == [8, 9]


def test_a_join_on_a_looked_up_column_and_of_a_table_with_itself(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "bridge.csv").write_text("visit,stay\nv1,s1\nv2,s2\n")
    write_stays(tmp_path, (1, "s1", "2020-01-01", "2020-01-08"), (1, "s2", "2020-01-01", "2020-01-09"))
    rule = table(
        event("DX/{code}-{first}", time="closed"),
        joins=[
            {"table": "bridge", "key": "visit", "columns": {"stay": "stay"}},
            {"table": "stays", "key": "stay", "columns": {"closed": "closed"}},
            {"table": "t", "key": "visit", "columns": {"first": "min(code)"}},
        ],
    )
    text = csv_text(["pid", "visit", "code"], [(1, "v1", "B"), (1, "v2", "C"), (1, "v1", "A"), (1, "v3", "D")])
    found, counts = convert_text(tmp_path, rule, text, stays=STAYS, bridge={"role": "reference"})
    assert found.select("code", pl.col("time").dt.day()).rows() == [("DX/B-A", 8), ("DX/C-C", 9), ("DX/A-A", 8)]
    assert counts["quarantined"] == {"missing_time": 1}


@pytest.mark.parametrize("optional", [True, False])
def test_an_absent_table_gives_null_where_the_join_is_optional(tmp_path: Path, optional: bool) -> None:
    rule = table(
        event("DX/{ward|NONE}", time="at"),
        joins=[{"table": "stays", "key": "stay", "columns": {"ward": "ward"}, "optional": optional}],
    )
    text = csv_text(["pid", "stay", "at"], [(1, "s1", "2020-01-01")])
    if optional:
        assert convert_text(tmp_path, rule, text, stays=STAYS)[0]["code"].to_list() == ["DX/NONE"]
        return
    with pytest.raises(TimeloomError, match="the joined table stays is missing"):
        convert_text(tmp_path, rule, text, stays=STAYS)


def test_a_joined_table_that_lacks_the_column_is_named_and_an_optional_column_is_null(tmp_path: Path) -> None:
    write_stays(tmp_path, (1, "s1", "2020-01-01", "2020-01-08"))
    rule = table(
        event("DX/{ward|NONE}", time="at"),
        joins=[{"table": "stays", "key": "stay", "columns": {"ward": "ward"}}],
    )
    text = csv_text(["pid", "stay", "at"], [(1, "s1", "2020-01-01")])
    with pytest.raises(TimeloomError, match="table stays: lacks the column ward"):
        convert_text(tmp_path, rule, text, stays=STAYS)
    found, _ = convert_text(tmp_path, rule, text, stays=STAYS | {"optional_columns": ["ward"]})
    assert found["code"].to_list() == ["DX/NONE"]


def test_a_joined_table_with_malformed_rows_gives_its_good_ones(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "stays.csv").write_text("pid,stay,opened,closed\n1,s1\n1,s2,2020-01-01,2020-01-02\n1,,,,,\n")
    text = csv_text(["pid", "stay", "code"], [(1, "s1", "A"), (1, "s2", "B")])
    found, counts = convert_text(tmp_path, with_join({"closed": "closed"}), text, stays=STAYS)
    assert found.select("row", "code").rows() == [(2, "DX/B")]
    assert counts["quarantined"] == {"missing_time": 1}


def test_a_crosswalk_is_joined_where_the_site_gives_one(tmp_path: Path) -> None:
    source = Source.model_validate(
        {
            "name": "test",
            "subject": "pid",
            "crosswalks": {"rxnorm": {"columns": ["ndc", "rxcui"]}},
            "tables": {
                "t": table(
                    event("RX/{rxcui|NONE}", time="at"),
                    joins=[
                        {"table": "crosswalk/rxnorm", "key": "ndc", "columns": {"rxcui": "rxcui"}, "optional": True}
                    ],
                )
            },
        }
    )
    (tmp_path / "t.csv").write_text("pid,at,ndc\n1,2020-01-01,0001\n1,2020-01-01,2\n")
    given_file = tmp_path / "elsewhere.csv"
    given_file.write_text("ndc,rxcui\n0001,R1\n")
    path = tmp_path / "t.csv"
    assert convert(tmp_path, source, "t", path)[0]["code"].to_list() == ["RX/NONE"] * 2
    with_file, _ = convert(tmp_path, source, "t", path, crosswalks={"rxnorm": given_file})
    assert with_file["code"].to_list() == ["RX/R1", "RX/NONE"]
    given_file.write_text("ndc,other\n0001,R1\n")
    with pytest.raises(TimeloomError, match="table crosswalk/rxnorm: lacks the column rxcui"):
        convert(tmp_path, source, "t", path, crosswalks={"rxnorm": given_file})
    given_file.unlink()
    with pytest.raises(TimeloomError, match="there is no file for the crosswalk/rxnorm"):
        convert(tmp_path, source, "t", path, crosswalks={"rxnorm": given_file})
    with pytest.raises(TimeloomError, match="knows no crosswalk atc; the ones it knows: rxnorm"):
        Export(tmp_path, source, {"atc": given_file})


# --- lookups that do not fit

KEYS = st.sampled_from(["", "a", "b", "c", "dd", " a"])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(KEYS, KEYS), max_size=30),
    st.dictionaries(st.tuples(KEYS, KEYS), st.sampled_from(["", "x", "y"]), max_size=12),
    st.sampled_from([1, 200, 96 << 20]),
    st.sampled_from([12, 40, 1 << 20]),
)
def test_a_join_is_what_a_dictionary_gives(
    asking: list[tuple[str, str]], answering: dict[tuple[str, str], str], memory: int, chunk: int
) -> None:
    rule = JoinRule.model_validate({"table": "u", "key": {"k": "one", "l": "two"}, "columns": {"found": "value"}})
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(joins, "LOOKUP_BYTES", memory)
        patch.setattr(joins, "PIECES", 3)
        patch.setattr(csv_reader, "CHUNK_BYTES", max(chunk, 16))
        work = Path(folder)
        rows = [(*key, value) for key, value in answering.items()]
        (work / "u.csv").write_text(csv_text(["one", "two", "value"], rows + rows[:2]))
        export = Export(work, source_of(u={"role": "reference"}))
        frame = pl.DataFrame(asking, schema={"k": pl.String, "l": pl.String}, orient="row").with_row_index("n")
        frame = frame.with_columns(pl.col("k", "l").replace("", None))
        blocks = iter([frame[:7], frame[7:7], frame[7:]])
        joined = pl.concat(list(attach_all(blocks, export, [rule], work)) or [frame]).sort("n")
        expected = [(answering.get(pair) or None) if all(pair) else None for pair in asking]
        assert joined.get_column("found", default=pl.Series([], dtype=pl.String)).to_list() == expected
        assert joined["n"].to_list() == list(range(len(asking)))
        assert sorted(path.name for path in work.iterdir()) == ["u.csv"]


def test_a_lookup_that_does_not_fit_gives_the_same_events_and_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded = random.Random(3)
    stays = [(n % 50, f"s{n}", "2020-01-01", f"2020-02-{n % 28 + 1:02d} 10:00:00") for n in range(400)]
    write_stays(tmp_path, *stays, *((stay[0], stay[1], stay[2], None) for stay in stays[:9]))
    rows = [(n % 50, f"s{seeded.randrange(450)}", n) for n in range(1500)]
    text = csv_text(["pid", "stay", "code"], rows)
    rule = with_join({"closed": "max(closed)"})
    cuts: list[Path] = []
    real = joins._cut

    def cut(*given_: Any) -> Path:
        cuts.append(real(*given_))
        return cuts[-1]

    monkeypatch.setattr(joins, "_cut", cut)
    seen = []
    for memory in (96 << 20, 5000, 1):
        monkeypatch.setattr(joins, "LOOKUP_BYTES", memory)
        found, counts = convert_text(tmp_path, rule, text, stays=STAYS)
        hashes = {bucket: count["hash"] for bucket, count in counts["buckets"].items()}
        seen.append((found, hashes, {name: counts[name] for name in ("raw", "events", "quarantined", "emitted")}))
        assert bool(cuts) == (memory < 96 << 20)
        assert not any(path.exists() for path in cuts)
        assert list(tmp_path.glob(".*")) == []
    assert seen[0][2]["events"] < seen[0][2]["raw"] == 1500
    for found, *rest in seen[1:]:
        assert found.equals(seen[0][0])
        assert rest == list(seen[0][1:])
    closed = {row["stay"]: row["closed"] for row in csv.DictReader(csv_text(["stay", "closed"], [
        (stay[1], stay[3]) for stay in stays]).splitlines())}  # fmt: skip
    plain = [(f"DX/{code}", datetime.fromisoformat(closed[stay])) for _, stay, code in rows if stay in closed]
    assert seen[0][0].select("code", "time").rows() == plain


@pytest.mark.parametrize("fits", [True, False])
def test_what_no_row_asks_for_is_not_looked_at(tmp_path: Path, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fits:
        monkeypatch.setattr(joins, "LOOKUP_BYTES", 1)
    (tmp_path / "raw").mkdir()
    # There are few distinct texts, as in columns of numbers, and one text that the rule's SQL cannot read.
    people = "".join(f"{number},{number // 50},{number % 3}\n" for number in range(1000))
    (tmp_path / "raw" / "people.csv").write_text(f"card,person,factor\n{people}1000,99,n/a\n")
    rule = table(
        event("{code}", time="at", value="twice"),
        subject="person",
        joins=[{"table": "people", "key": "card", "columns": {"person": "person", "factor": "factor"}}],
        derive={"twice": "CAST(factor AS INT) * 2"},
    )
    rows = [(number, "A", "2020-01-01 00:00:00") for number in range(20)]
    found, counts = convert_text(tmp_path, rule, csv_text(["card", "code", "at"], rows), people={"role": "reference"})
    assert found["numeric_value"].to_list() == [2.0 * (number % 3) for number in range(20)]
    subjects = read_frame_blob(tmp_path / counts["segment"], counts["blobs"]["subjects"], SUBJECTS)
    assert len(subjects) == 1


def test_columns_may_be_called_anything(tmp_path: Path) -> None:
    write_stays(tmp_path, (1, "s1", "2020-01-01", "2020-01-08 00:00:00"))
    text = csv_text(["pid", "stay", "_row", "_row_hash", "code"], [(1, "s1", "42", "7", "A")])
    rule = with_join({"closed": "closed"})
    rule["events"][0] |= {"value": "_row", "text": "_row_hash"}
    found, _ = convert_text(tmp_path, rule, text, stays=STAYS)
    assert found.select("numeric_value", "text_value").rows() == [(42.0, "7")]


def test_the_scratch_folder_is_clean_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joins, "LOOKUP_BYTES", 1)
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", 64)
    write_stays(tmp_path, *((n, f"s{n}", "2020-01-01", "2020-01-08") for n in range(50)))
    text = csv_text(["pid", "stay", "code"], [(n, f"s{n}", "A") for n in range(50)])
    with pytest.raises(TimeloomError, match="table t: record 51 has a quoted field that is never closed"):
        convert_text(tmp_path, with_join({"closed": "closed"}), text + '1,"s1,A\n', stays=STAYS)
    assert list(tmp_path.glob(".*")) == list(tmp_path.glob("*.segment")) == []
    stays = tmp_path / "raw" / "stays.csv"
    stays.write_text(stays.read_text() + '1,"s1')
    with pytest.raises(TimeloomError, match="table stays: record 51 has a quoted field that is never closed"):
        convert_text(tmp_path, with_join({"closed": "closed"}), text, stays=STAYS)
    assert list(tmp_path.glob(".*")) == list(tmp_path.glob("*.segment")) == []


# --- incremental


def test_a_segment_is_used_again_until_its_raw_file_or_a_joined_one_changes(tmp_path: Path) -> None:
    write_stays(tmp_path, (1, "s1", "2020-01-01", "2020-01-09 12:00:00"))
    (tmp_path / "raw" / "t.csv").write_text(csv_text(["pid", "stay", "code"], [(1, "s1", "A")]))
    mapping = """{name: s, subject: pid, tables: {
        t: {joins: [{table: stays, key: stay, columns: {closed: closed}}], events: [{code: X, time: closed}]},
        stays: {events: [{code: Y, time: opened}]}}}"""
    assert run_meds(tmp_path, plan_meds(tmp_path, mapping)).ran == 2
    assert run_meds(tmp_path, plan_meds(tmp_path, mapping)).resumed == 2
    write_stays(tmp_path, (1, "s1", "2020-01-01", "2020-01-10 12:00:00"))
    assert run_meds(tmp_path, plan_meds(tmp_path, mapping)).ran == 2
    (tmp_path / "raw" / "t.csv").write_text(csv_text(["pid", "stay", "code"], [(1, "s1", "B")]))
    again = run_meds(tmp_path, plan_meds(tmp_path, mapping))
    assert (again.ran, again.resumed) == (1, 1)


def test_a_looked_up_value_is_part_of_a_buckets_hash(tmp_path: Path) -> None:
    text = csv_text(["pid", "stay", "code"], [(1, "s1", "A"), (1, "s2", "A")])
    hashes = []
    for opened, closed in (("2020-01-01", "08"), ("2020-01-01", "09"), ("2020-01-02", "09")):
        write_stays(tmp_path, *((1, f"s{n}", opened, f"2020-01-{closed} 10:00:00") for n in (1, 2)))
        _, counts = convert_text(tmp_path, with_join({"closed": "closed"}), text, stays=STAYS)
        hashes.append({bucket: count["hash"] for bucket, count in counts["buckets"].items()})
    # A change of a looked-up value changes the bucket's hash; a change of another column of that table does not.
    assert hashes[0] != hashes[1] == hashes[2]
