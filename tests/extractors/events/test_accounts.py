"""Every raw row is accounted for: what it becomes, which rows are equal, and the record of rows without events."""

import csv
import io
import random
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.deid import KeyedHash
from extractors.tables import csv_reader
from flows.runs.convert import convert as convert_sources
from flows.runs.settings import RunSettings
from pipelines import meds
from pipelines.aligning import gather
from pipelines.engine.context import StageReport
from tests.support.raw.raw_tables import (
    align_one,
    aligned_events,
    convert,
    convert_text,
    csv_text,
    plan_meds,
    quarantine_of,
    run_meds,
    source_of,
)
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.manifest import TaskEntry
from warehouse.parquet import read_frame

MAPPING = "{name: s, subject: pid, tables: {t: {events: [{code: X, time: at}]}}}"
GOOD = csv_text(["pid", "at"], [(number, "2020-01-01") for number in range(5)]).encode()
SEGMENT = "t-t.csv.segment"


def event(code: str = "X", **keys: Any) -> dict[str, Any]:
    return {"code": code, **keys}


def table(*events: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"events": list(events), **keys}


def removed_rows(work: Path, accounts: dict[str, dict[str, Any]]) -> tuple[int, int]:
    """Aligns both buckets; returns the number of repeated rows of `t` and the number of events that remain."""
    repeated = left = 0
    for bucket in range(2):
        result = align_one(work, accounts, bucket)
        repeated += result.counts["set_aside"].get("duplicate_row", {}).get("t", {"rows": 0})["rows"]
        left += len(aligned_events(work, bucket))
    return repeated, left


# --- conservation, against a recomputation in plain Python

RULE = table(
    event("STATIC/{sex}"),
    event("LAB/{code:upper}", time="at", value="value", where="sex IS NULL OR sex <> 'skip'"),
    event("SEEN/{code}", time="seen"),
)
FIELDS = ("pid", "sex", "code", "at", "seen", "value")
TIMES = st.sampled_from(["", "2020-02-29", "2020-01-01 10:00:00", "2019-02-29", "nonsense", " "])
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["1", "2", "3", "", "abc", " 4 ", "9223372036854775808", "1.5"]),
        st.sampled_from(["", "F", "skip"]),
        st.sampled_from(["", "a", "b\nc", 'q"uote', "x,y"]), TIMES, TIMES, st.sampled_from(["", "1.5", "high"]),
    ),
    max_size=25,
)  # fmt: skip


def plain_time(text: str) -> str:
    """Whether datetime finds the text missing, bad or good."""
    if not text.strip():
        return "missing"
    try:
        datetime.fromisoformat(text.strip())
    except ValueError:
        return "bad"
    return "good"


def plain_outcome(row: dict[str, str]) -> tuple[str, int]:
    """What becomes of a row, and how many events it makes."""
    if not row["pid"].strip().isdigit() or int(row["pid"]) >= 2**63:
        return "bad_subject_id", 0
    static = int(row["sex"] != "")
    lab, seen = plain_time(row["at"]), plain_time(row["seen"])
    applies = row["sex"] != "skip"
    coded = row["code"] != ""
    # A laboratory row without a value makes no event.
    timed = int(applies and coded and lab == "good" and row["value"] != "") + int(coded and seen == "good")
    if timed or static:
        return ("events" if timed else "static"), timed + static
    met = [lab] * applies + [seen]
    if "bad" in met:
        return "unparsable_time", 0
    if "missing" in met:
        return "missing_time", 0
    return "missing_code" if not coded else "empty_value", 0


@pytest.mark.whole
@settings(max_examples=25, deadline=None)
@given(ROWS, st.integers(0, 3), st.sampled_from([40, 97, 1 << 20]))
def test_every_row_is_accounted_for_exactly(rows: list[tuple[str, ...]], repeats: int, chunk: int) -> None:
    text = csv_text(FIELDS, rows + rows[:repeats])
    expected: dict[str, int] = {}
    quarantined: dict[int, str] = {}
    emitted = 0
    raw = list(csv.DictReader(io.StringIO(text, newline="")))
    for number, row in enumerate(raw, 1):
        outcome, events = plain_outcome(row)
        expected[outcome] = expected.get(outcome, 0) + 1
        emitted += events
        if not events:
            quarantined[number] = outcome
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_reader, "CHUNK_BYTES", chunk)
        work = Path(folder)
        found, counts = convert_text(work, RULE, text)
        assert counts["raw"] == len(raw)
        assert counts["raw"] == counts["events"] + counts["static"] + sum(counts["quarantined"].values())
        outcomes = {"events": counts["events"], "static": counts["static"], **counts["quarantined"]}
        assert {name: number for name, number in outcomes.items() if number} == expected
        assert counts["emitted"] == len(found) == emitted
        assert quarantine_of(work, counts) == sorted(quarantined.items())
        kept = {tuple(row.items()) for row in raw if plain_outcome(row)[1]}
        repeated, left = removed_rows(work, {SEGMENT: counts})
        assert repeated == sum(1 for row in raw if plain_outcome(row)[1]) - len(kept)
        assert left == sum(plain_outcome(dict(row))[1] for row in kept)


def test_codes_of_many_columns_with_many_values_are_their_rows_own(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(9)]
    template = "/".join(f"{{{name}}}" for name in names)
    rows = [
        (1, "2020-01-01", *(f"{(row * (2 * place + 1) + place) % 256}" for place in range(9))) for row in range(256)
    ]
    # These rows differ from the first row in the first column only.
    rows += [(1, "2020-01-01", value, *rows[0][3:]) for value in ("7", "8")]
    found, _ = convert_text(tmp_path, table(event(template, time="at")), csv_text(["pid", "at", *names], rows))
    assert found["code"].to_list() == ["/".join(str(value) for value in row[2:]) for row in rows]


# --- ids


@pytest.mark.parametrize("value", ["9223372036854775808", "1e3", "1.5", "abc", "0x1", "--1"])
def test_what_is_no_integer_id_is_quarantined_where_ids_are_kept_and_hashed_where_not(
    tmp_path: Path, value: str
) -> None:
    text = csv_text(["pid", "at"], [(1, "2020-01-01"), (value, "2020-01-02"), (2, "2020-01-03")])
    kept, counts = convert_text(tmp_path, table(event(time="at")), text)
    assert kept["subject_id"].to_list() == [1, 2]
    assert counts["quarantined"] == {"bad_subject_id": 1}
    assert quarantine_of(tmp_path, counts) == [(2, "bad_subject_id")]
    hashed, counts = convert_text(tmp_path, table(event(time="at")), text, {"mode": "expert"})
    assert hashed["subject_id"].n_unique() == counts["events"] == 3
    assert counts["quarantined"] == {}


def test_negative_and_the_largest_ids_are_kept(tmp_path: Path) -> None:
    ids = [-5, -(2**63), 2**63 - 1, 0]
    found, counts = convert_text(
        tmp_path, table(event(time="at")), csv_text(["pid", "at"], [(subject, "2020-01-01") for subject in ids])
    )
    assert found["subject_id"].to_list() == ids
    assert sum(removed_rows(tmp_path, {SEGMENT: counts})) == 4


@pytest.mark.parametrize(("collide", "refused"), [(True, True), (False, False)], ids=["one hash", "own hashes"])
def test_two_ids_of_different_tables_with_one_hash_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collide: bool, refused: bool
) -> None:
    real = KeyedHash.digests

    def digests(self: KeyedHash, domain: str, texts: Iterable[str]) -> list[bytes]:
        texts = list(texts)
        made = real(self, domain, texts)
        # The first half is the id of the subject; the second half shows whether two raw ids differ.
        halved = [collide and domain == "subject" and value.startswith("twin") for value in texts]
        return [bytes(8) + each[8:] if half else each for each, half in zip(made, halved, strict=True)]

    monkeypatch.setattr(KeyedHash, "digests", digests)
    rules = {name: table(event(time="at")) for name in ("t", "u")}
    accounts = {}
    for name, rows in {"t": ["twin-one", "other", "twin-one"], "u": ["twin-two", "other"]}.items():
        path = tmp_path / f"{name}.csv"
        path.write_text(csv_text(["pid", "at"], [(row, "2020-01-01") for row in rows]))
        accounts[name] = convert(tmp_path, source_of(**rules), name, path, {"mode": "expert"})[1]
    report = StageReport(
        "meds",
        entries={name: TaskEntry(fingerprint="", files={}, counts=account) for name, account in accounts.items()},
    )
    if not refused:
        assert len(meds.subjects_of(report, tmp_path)) == 3
        return
    with pytest.raises(TimeloomError, match="two subject ids share one hash") as caught:
        meds.subjects_of(report, tmp_path)
    assert "twin" not in str(caught.value)
    alone = StageReport("meds", entries={"t": report.entries["t"]})
    assert len(meds.subjects_of(alone, tmp_path)) == 2


# --- equal rows


def test_equal_rows_are_found_across_the_files_of_a_table_and_other_rows_are_not(tmp_path: Path) -> None:
    source = source_of(t=table(event("X/{code}", time="at")), u=table(event("X/{code}", time="at")))
    columns = ["pid", "code", "at", "note"]
    (tmp_path / "a.csv").write_text(csv_text(columns, [(1, "A", "2020-01-01", "n"), (1, "B", "2020-01-01", None)]))
    (tmp_path / "b.csv").write_text(csv_text(columns, [(1, "A", "2020-01-01", "n"), (1, "B", "2020-01-01", "other")]))
    accounts = {
        f"{name}-{file}.csv.segment": convert(tmp_path, source, name, tmp_path / f"{file}.csv")[1]
        for name, file in (("t", "a"), ("t", "b"), ("u", "b"))
    }
    (bucket,) = accounts["t-a.csv.segment"]["buckets"]
    result = align_one(tmp_path, accounts, int(bucket))
    # An equal row of another table is not a repetition.
    assert result.counts["set_aside"]["duplicate_row"] == {"t": {"rows": 1, "events": 1, "timed": 1}}
    left = aligned_events(tmp_path, int(bucket)).select("source", "code").rows()
    assert left == [("t", "X/A"), ("u", "X/A"), ("t", "X/B"), ("t", "X/B"), ("u", "X/B")]


def test_equal_rows_are_found_across_the_chunks_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", 64)
    rows = [(1, f"2020-01-{day:02d} 00:00:00") for day in (*range(1, 21), 1, 2)]
    found, counts = convert_text(tmp_path, table(event(time="at")), csv_text(["pid", "at"], rows))
    assert found["row"].to_list() == list(range(1, 23))
    assert removed_rows(tmp_path, {SEGMENT: counts}) == (2, 20)


def test_rows_are_compared_as_they_stand_in_their_files(tmp_path: Path) -> None:
    source = source_of(t=table(event("X/{code}", time="at")))
    (tmp_path / "a.csv").write_text("pid,code,at,note\n1,A,2020-01-01,n\n")
    (tmp_path / "b.csv").write_text("note,at,code,pid\nn,2020-01-01,A,1\n")
    (tmp_path / "c.csv").write_bytes(b"pid,code,at,note\n\n1,A,2020-01-01,n")
    accounts = {
        f"t-{file}.csv.segment": convert(tmp_path, source, "t", tmp_path / f"{file}.csv")[1] for file in ("a", "b", "c")
    }
    assert removed_rows(tmp_path, accounts) == (1, 2)


def test_a_repeated_row_of_several_events_loses_each_of_them_once(tmp_path: Path) -> None:
    rule = table(event("S/{sex}"), event("A", time="at"), event("B", time="at"), event("C", time="seen"))
    rows = [(1, "F", "2020-01-01", None), (1, "F", "2020-01-01", None), (1, "F", None, None), (1, "F", None, None)]
    _, counts = convert_text(tmp_path, rule, csv_text(["pid", "sex", "at", "seen"], rows))
    assert (counts["events"], counts["static"], counts["emitted"]) == (2, 2, 8)
    (bucket,) = counts["buckets"]
    result = align_one(tmp_path, {SEGMENT: counts}, int(bucket))
    assert result.counts["set_aside"]["duplicate_row"] == {"t": {"rows": 2, "events": 4, "timed": 1}}
    assert sorted(aligned_events(tmp_path, int(bucket))["code"]) == ["A", "B", "S/F", "S/F"]


def test_a_change_in_a_column_that_no_rule_reads_is_seen_by_the_index(tmp_path: Path) -> None:
    rule = table(event("X", time="at"))
    digests = [
        convert_text(tmp_path, rule, csv_text(["pid", "at", "n"], [(1, "2020-01-01", "a"), (1, "2020-01-01", other)]))
        for other in ("a", "b")
    ]
    hashes = [{bucket: count["hash"] for bucket, count in counts["buckets"].items()} for _, counts in digests]
    assert hashes[0] != hashes[1]


MANY = [(number % 7, f"2020-01-{number % 28 + 1:02d}", f"{number % 11}", number % 3) for number in range(300)]


@pytest.mark.whole
def test_the_order_of_raw_rows_does_not_change_a_buckets_hash_nor_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = table(event("S/{v}"), event("X/{v}", time="at", value="v"))
    shuffled = random.Random(1).sample(MANY, len(MANY))
    release = ReleaseLayout(tmp_path / "release")
    seen: list[tuple[Any, ...]] = []
    for rows, chunk, ranges in ((MANY, 1 << 20, 10**6), (shuffled, 1 << 20, 10**6), (MANY, 60, 30), (shuffled, 77, 1)):
        monkeypatch.setattr(csv_reader, "CHUNK_BYTES", chunk)
        monkeypatch.setattr(gather, "RANGE_ROWS", ranges)
        _, counts = convert_text(tmp_path, rule, csv_text(["pid", "at", "v", "n"], rows))
        results = [align_one(tmp_path, {SEGMENT: counts}, bucket) for bucket in range(2)]
        parts = [pl.read_parquet(release.events(bucket)) for bucket in range(2)]
        whole = [[path.read_bytes() for path in files(release, bucket)] for bucket in range(2)]
        hashes = {bucket: count["hash"] for bucket, count in counts["buckets"].items()}
        # With other ranges the file has other row groups, but the same rows.
        seen.append((hashes, [result.counts for result in results], parts, whole if ranges > len(MANY) else None))
    for hashes, accounts, parts, whole in seen[1:]:
        assert (hashes, accounts) == seen[0][:2]
        assert all(part.equals(other) for part, other in zip(parts, seen[0][2], strict=True))
        assert whole in (None, seen[0][3])
    changed = [*MANY[:-1], (*MANY[-1][:-1], 99)]
    _, counts = convert_text(tmp_path, rule, csv_text(["pid", "at", "v", "n"], changed))
    assert {bucket: count["hash"] for bucket, count in counts["buckets"].items()} != seen[0][0]


def files(release: ReleaseLayout, bucket: int) -> list[Path]:
    return [release.events(bucket), release.subjects(bucket), release.codes_of(bucket)]


# --- tables that the source does not know


def test_a_table_that_no_rule_mentions_is_accounted_for(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "deep").mkdir(parents=True)
    for name in ("t.csv", "deep/extra.csv", "extra.csv"):
        (raw / name).write_bytes(GOOD)
    (raw / "readme.txt").write_text("no table")
    tasks = plan_meds(tmp_path, MAPPING)
    # The label is a hash, because the name of an unmapped file may be a patient's name.
    names = sorted(task.params["label"] for task in tasks)
    assert names[0] == "t"
    assert all(name.startswith("unmapped-") and "extra" not in name for name in names[1:])
    assert len(set(names)) == 3
    assert len({task.key for task in tasks}) == len(tasks)
    for task in tasks:
        counts = meds.run(task.params, tmp_path).counts
        assert counts["raw"] == 5
        assert counts["quarantined"] == ({} if task.params["label"] == "t" else {"unmapped_table": 5})


def test_a_missing_table_is_named_unless_optional(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(TimeloomError, match=r"lacks the table t; .*optional"):
        plan_meds(tmp_path, MAPPING)
    assert plan_meds(tmp_path, MAPPING.replace("{events:", "{optional: true, events:")) == []


def test_a_missing_table_is_told_with_a_file_that_is_spelt_alike(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    mapping = "{name: s, subject: pid, tables: {lab_results: {events: [{code: X, time: at}]}}}"
    for name in ("Lab_Result.csv", "licence.txt", "vitals.csv"):
        (raw / name).write_text("pid,at\n1,2020-01-01\n")
    with pytest.raises(
        TimeloomError, match=r"lacks the table lab_results \(Lab_Result lies there and is no table of it\);"
    ):
        plan_meds(tmp_path, mapping)
    (raw / "Lab_Result.csv").unlink()
    with pytest.raises(TimeloomError, match=r"lacks the table lab_results;"):
        plan_meds(tmp_path, mapping)


def test_a_reference_is_counted_and_makes_nothing(tmp_path: Path) -> None:
    found, counts = convert_text(tmp_path, {"role": "reference"}, GOOD + b"1,2,3\n")
    assert (len(found), counts["raw"], counts["reference"]) == (0, 6, 5)
    assert counts["quarantined"] == {"malformed_row": 1}
    assert quarantine_of(tmp_path, counts) == [(6, "malformed_row")]


def test_a_failing_expression_says_nothing_of_the_value(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "t.csv").write_text(csv_text(["pid", "at"], [(1, "(SECRET-VALUE")]))
    # A pattern that is none.
    mapping = MAPPING.replace("{events:", "{derive: {year: \"REGEXP_LIKE('x', at)\"}, events:")
    with pytest.raises(TimeloomError, match=r"derive\.year fails at row 1") as caught:
        run_meds(tmp_path, plan_meds(tmp_path, mapping))
    assert "SECRET" not in str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))
    below = tmp_path / "warehouse"
    assert all(b"SECRET" not in path.read_bytes() for path in below.rglob("*") if path.is_file())
    assert not list(below.rglob("*.segment"))


def test_counts_are_of_rows_and_not_of_events(tmp_path: Path) -> None:
    rows = [(1, "2020-01-01", "2020-01-02"), (2, None, "2020-01-02"), (3, "bad", "2020-01-02"), (4, None, "bad")]
    rule = table(event("A", time="at"), event("B", time="seen"))
    found, counts = convert_text(tmp_path, rule, csv_text(["pid", "at", "seen"], rows))
    assert (counts["raw"], counts["events"], counts["emitted"], len(found)) == (4, 3, 4, 4)
    assert counts["quarantined"] == {"unparsable_time": 1}
    assert counts["partial"] == {"unparsable_time": 1}
    assert np.array_equal(found["row"].to_numpy(), [1, 1, 2, 3])


def test_the_releases_quarantine_says_which_rows_of_which_file_and_nothing_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", 32)
    parts = tmp_path / "raw" / "t"
    parts.mkdir(parents=True)
    (parts / "a.csv").write_text("pid,at\n1,2020-01-01\nSECRET\n1,SECRET\n1,2020-01-02\n")
    (parts / "b.csv").write_text("pid,at\n1,2020-01-01\n\n,SECRET\n" + "2,2020-01-03\n" * 9 + "1,2,SECRET\n3,\n")
    (tmp_path / "raw" / "u.csv").write_text("pid,at\n1,2020-01-01\n")
    (tmp_path / "raw" / "unmapped.csv").write_text("x\nSECRET\n")
    (tmp_path / "source.yaml").write_text(
        "{name: s, subject: pid, tables: {t: {events: [{code: X, time: at}]}, u: {events: [{code: Y, time: at}]}}}"
    )
    (tmp_path / "run.yaml").write_text(
        "{name: n, sources: [{source: source.yaml, path: raw}], deid: {mode: synthetic, subject_ids: keep}, "
        "buckets: 2, limits: {unparsable_times: 1}}"
    )
    tree = ReleaseLayout(tmp_path / "dataset")
    done = convert_sources(RunSettings(tmp_path / "run.yaml", workers=1), tree.path)
    assert read_frame(tree.quarantine).rows() == [
        ("t", 0, 3, "unparsable_time"), ("t", 0, 2, "malformed_row"), ("t", 1, 2, "bad_subject_id"),
        ("t", 1, 13, "missing_time"), ("t", 1, 12, "malformed_row"),
    ]  # fmt: skip
    ledger = read_frame(tree.ledger)
    rows = {(table, outcome): 0 for table, outcome, *_ in ledger.iter_rows()}
    for table, outcome, _, number, _ in ledger.iter_rows():
        rows[table, outcome] += number
    assert (rows["t", "raw"], rows["t", "events"], rows["t", "quarantined"]) == (17, 3, 14)
    assert (rows["u", "raw"], rows["u", "events"]) == (1, 1)
    # Nine repeated rows, and one that is repeated across the files, need no person's attention.
    assert done.quarantined == 6
    names = [name for name in {*ledger["table"]} if name.startswith("unmapped-")]
    assert [rows[name, "quarantined"] for name in names] == [1]
    contents = str([ledger.rows(), *(read_frame(path).rows() for path in tree.path.rglob("*.parquet"))])
    assert "SECRET" not in contents
    assert "unparsable_time" in contents
