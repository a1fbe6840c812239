"""A raw file that changed: what is kept of it and what is new say together what a conversion of the whole file says."""

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.tables import content_blocks, csv_reader
from pipelines import meds
from pipelines.aligning import continued
from pipelines.aligning.continued import SUBJECTS
from pipelines.engine.context import RunContext
from pipelines.engine.execute import execute
from pipelines.engine.local import LocalEngine
from pipelines.engine.run_stage import load_record, run_stage
from tests.support.raw.changing_table import Nights, Row, csv_of, edited, row
from tests.support.raw.raw_tables import align_one, aligned_events
from tests.support.raw.small_blocks import make_small
from warehouse.errors import TimeloomError


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


# In `make test` alone: five nights, each converted twice, for each example.
@pytest.mark.whole
@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 2**32), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans(),
    st.sampled_from([1200, 5000, 1 << 20]), st.sampled_from([0.0, 0.3, 9.0]),
)  # fmt: skip
def test_nights_say_what_the_whole_file_says(
    seed: int, line_end: str, ended: bool, gz: bool, chunk: int, share: float
) -> None:
    draw = random.Random(seed)
    rows = [row(draw) for _ in range(draw.randrange(100, 500))]
    if line_end == "\r\n":
        rows = [tuple(text.replace("\n", " ") for text in fields) for fields in rows]
    if draw.random() < 0.5:
        rows.sort()
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        patch.setattr(csv_reader, "CHUNK_BYTES", chunk)
        patch.setattr(continued, "DEAD_SHARE", share)
        patch.setattr(continued, "MOST_FORMERS", 3)
        nights = Nights(Path(folder), gz)
        for _ in range(5):
            nights.agree(*nights.convert(csv_of(rows, line_end, ended)))
            if draw.random() < 0.5:
                stays = {f"v{number}": f"2020-02-0{draw.randrange(1, 4)} 00:00:00" for number in range(4)}
                names = {test: draw.choice(["alpha", "beta"]) for test in "ABCD"}
                for of in (stays, names):
                    del of[draw.choice(sorted(of))]
                nights.look_up(stays, names)
            rows = edited(rows, draw)
            if line_end == "\r\n":
                rows = [tuple(text.replace("\n", " ") for text in fields) for fields in rows]


@pytest.fixture
def nights(tmp_path: Path, small_blocks: None) -> Nights:
    return Nights(tmp_path)


def rows_of(number: int, seed: int = 3) -> list[Row]:
    """Rows in the order of their subjects, without quoted line ends."""
    draw = random.Random(seed)
    return sorted(tuple(text.replace("\n", " ") for text in row(draw)) for _ in range(number))


def segment_rows(nights: Nights, counts: dict[str, Any]) -> int:
    entry = load_record((nights.folder / counts["segment"]).with_suffix(".json"))
    assert entry is not None
    return entry.files[counts["segment"]].rows or 0


def test_an_inserted_row_converts_the_block_that_it_stands_in(nights: Nights) -> None:
    rows = rows_of(400)
    first, _ = nights.convert(csv_of(rows, "\n", True))
    rows[200:200] = [("7", "v1", "A", "2020-01-02 03:04:05", "", "5", "mg", "")]
    night, whole = nights.convert(csv_of(rows, "\n", True))
    assert first["followed"]["blocks"] > 30 and not first["formers"]
    # Of 43 blocks of about 10 rows, one.
    assert night["followed"]["blocks"] == 1
    assert [(former["segment"], former["blocks"]) for former in night["formers"]] == [
        (first["segment"], first["followed"]["blocks"])
    ]
    assert segment_rows(nights, night) < 25 < segment_rows(nights, first)
    nights.agree(night, whole)
    # The record names every file that it stands for.
    entry = load_record(nights.folder / "night-2.json")
    assert entry is not None and set(entry.files) == {first["segment"], night["segment"]}


def test_an_appended_row_converts_the_last_block(nights: Nights) -> None:
    rows = rows_of(400)
    nights.convert(csv_of(rows, "\n", False))
    night, whole = nights.convert(csv_of([*rows, rows[0]], "\n", False))
    assert night["followed"]["blocks"] == 1 and len(night["formers"]) == 1
    nights.agree(night, whole)


@pytest.mark.parametrize(
    ("stays", "blocks"),
    [
        ({"v1": "1", "v2": "2", "v9": "3"}, 0),
        ({"v1": "1", "v2": "2", "w": "9"}, 1),
        ({"v1": "1", "v2": "2"}, 1),
        ({"v1": "2", "v2": "1", "w": "3"}, 40),
    ],
    ids=["a stay of nobody", "another value", "gone", "two stays that change places"],
)
def test_a_row_for_which_another_table_says_something_else_converts_its_block(
    nights: Nights, stays: dict[str, str], blocks: int
) -> None:
    def look_up(found: dict[str, str]) -> None:
        nights.look_up({stay: f"2020-02-0{day} 00:00:00" for stay, day in found.items()}, {"A": "alpha"})

    rows = rows_of(400)
    rows[200:200] = [("7", "w" if blocks else "v1", "A", "2020-01-02 03:04:05", "", "5", "mg", "")]
    look_up({"v1": "1", "v2": "2"} | ({"w": "3"} if blocks else {}))
    first, _ = nights.convert(csv_of(rows, "\n", True))
    look_up(stays)
    night, whole = nights.convert(csv_of(rows, "\n", True))
    read = night["followed"]["blocks"]
    assert read == blocks if blocks < 2 else read == first["followed"]["blocks"] >= blocks
    nights.agree(night, whole)


def test_a_file_that_lost_rows_alone_converts_what_stands_around_them(nights: Nights) -> None:
    rows = rows_of(400)
    nights.convert(csv_of(rows, "\n", True))
    night, whole = nights.convert(csv_of(rows[:150] + rows[160:], "\n", True))
    assert night["followed"]["blocks"] <= 3
    nights.agree(night, whole)


def test_withdrawn_subjects_and_codes_that_nobody_awaits_are_gone(nights: Nights) -> None:
    awaits = ("77", "v1", "Z", "2020-01-02 03:04:05", "", "5", "mg", "")
    silent = ("78", "v1", "", "", "", "", "", "")
    rows = [*rows_of(300), awaits, *rows_of(300, 4), silent]
    first, _ = nights.convert(csv_of(rows, "\n", True))
    assert any("LAB/Z" in of["awaited"] for of in first["buckets"].values())
    night, whole = nights.convert(csv_of([*rows_of(300), *rows_of(300, 4)], "\n", True))
    assert night["formers"] and not any("LAB/Z" in of["awaited"] for of in night["buckets"].values())
    assert len(nights.frame(first, "subjects", SUBJECTS)) == len(nights.frame(night, "subjects", SUBJECTS)) + 2
    nights.agree(night, whole)


def test_rows_in_another_order_are_a_file_of_its_own(nights: Nights) -> None:
    rows = rows_of(400)
    first, _ = nights.convert(csv_of(rows, "\n", True))
    shuffled = random.Random(1).sample(rows, len(rows))
    night, whole = nights.convert(csv_of(shuffled, "\n", True))
    assert not night["formers"]
    nights.agree(night, whole)
    said = {bucket: (of["rows"], of["hash"]) for bucket, of in first["buckets"].items()}
    assert said == {bucket: (of["rows"], of["hash"]) for bucket, of in night["buckets"].items()}


def test_what_no_longer_looks_for_known_blocks_is_right(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_blocks, "_STRANGE_BYTES", 2000)
    rows = rows_of(400)
    nights.convert(csv_of(rows, "\n", True))
    changed = [*rows[:100], *rows_of(200, 9), *rows[100:]]
    night, whole = nights.convert(csv_of(changed, "\n", True))
    # The first hundred rows are known; what stands behind the new ones is not looked for.
    assert night["raw"] == 600
    nights.agree(night, whole)
    night, whole = nights.convert(csv_of([*changed, rows[0]], "\n", True))
    assert night["formers"]
    nights.agree(night, whole)


@pytest.mark.parametrize("part", ["first", "second"])
def test_a_damaged_segment_converts_the_whole_file(nights: Nights, part: str) -> None:
    rows = rows_of(400)
    for number in range(2):
        counts, _ = nights.convert(csv_of([*rows, *rows[:number]], "\n", True))
    assert counts["formers"]
    name = counts["formers"][0]["segment"] if part == "first" else counts["segment"]
    path = nights.folder / name
    data = bytearray(path.read_bytes())
    place, length, *_ = next(
        piece
        for of in counts["buckets"].values()
        for piece in (of["formers"][0]["pieces"] if part == "first" else [counts["blobs"]["blocks"]])
    )
    data[place + length // 2] ^= 1
    path.write_bytes(bytes(data))
    # Every block of the file is changed but few, so that the damaged piece is read.
    changed = [fields if number % 9 else (*fields[:5], "8", *fields[6:]) for number, fields in enumerate(rows)]
    night, whole = nights.convert(csv_of(changed, "\n", True))
    assert not night["formers"] and night["followed"]
    nights.agree(night, whole)


def test_a_damaged_former_segment_that_a_bucket_is_read_from_is_made_anew(nights: Nights) -> None:
    rows = rows_of(400)
    data = csv_of([*rows, rows[0]], "\n", True)
    nights.convert(csv_of(rows, "\n", True))
    night, _ = nights.convert(data)
    path = nights.folder / night["formers"][0]["segment"]
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(TimeloomError, match="a segment is damaged"):
        align_one(nights.folder, {night["segment"]: night}, int(next(iter(night["buckets"]))))
    # The night's own record is not believed any more: a file that it names is gone.
    assert not path.exists()
    task = nights.task("night", "2")
    with LocalEngine(1) as engine:
        report = run_stage(meds.STAGE, [task], RunContext(engine, nights.folder, None, None))
    assert report.ran == 1
    again = load_record(Path(task.record))
    assert again is not None and not again.counts["formers"]


def test_a_segment_without_a_record_is_written_again(nights: Nights) -> None:
    rows = rows_of(400)
    nights.convert(csv_of(rows, "\n", True))
    night, whole = nights.convert(csv_of([*rows, rows[0]], "\n", True))
    # As a kill between the two leaves it.
    record = nights.folder / "night-2.json"
    record.unlink()
    execute(nights.task("night", "2"))
    again = load_record(record)
    assert again is not None and again.counts == night
    nights.agree(dict(again.counts), whole)


def test_a_file_that_is_as_it_once_was_writes_its_segment_anew(nights: Nights) -> None:
    """The first night's record is gone; what the second one made goes on from the first one's segment."""
    first, second = rows_of(400), rows_of(400)
    second[200:200] = [("7", "v1", "A", "2020-01-02 03:04:05", "", "5", "mg", "")]
    nights.convert(csv_of(first, "\n", True))
    night, _ = nights.convert(csv_of(second, "\n", True))
    assert night["formers"]
    record = nights.folder / "night-1.json"
    record.unlink()
    nights.path.write_bytes(csv_of(first, "\n", True))
    execute(nights.task("night", "1"))
    again, whole = load_record(record), load_record(nights.folder / "whole1-0.json")
    assert again is not None and whole is not None and not again.counts["formers"]
    nights.agree(dict(again.counts), dict(whole.counts))


def test_rows_that_a_record_counts_and_no_segment_has_are_an_error(nights: Nights) -> None:
    rows = rows_of(400)
    nights.convert(csv_of(rows, "\n", True))
    night, _ = nights.convert(csv_of([*rows, rows[0]], "\n", True))
    bucket = next(iter(night["buckets"]))
    night["buckets"][bucket]["rows"] += 1
    with pytest.raises(TimeloomError, match="a segment is damaged"):
        align_one(nights.folder, {night["segment"]: night}, int(bucket))
    # What the next run reads is not built on any of them.
    assert not list(nights.folder.glob("night-*"))


def test_another_header_or_separator_knows_no_block(nights: Nights) -> None:
    rows = rows_of(400)
    nights.convert(csv_of(rows, "\n", True))
    for change in (
        lambda data: data.replace(b"unit,note", b"note,unit", 1),
        lambda data: data.replace(b",", b";"),
    ):
        night, whole = nights.convert(change(csv_of(rows, "\n", True)))
        assert not night["formers"]
        assert night["rules"] == whole["rules"]


def test_what_the_whole_file_decides_is_decided_by_the_whole_file(nights: Nights) -> None:
    rows = [(*fields[:5], "8.1 L", "", "") if fields[2] == "A" else fields for fields in rows_of(400)]
    first, _ = nights.convert(csv_of(rows, "\n", True))
    assert first["followed"] is None
    # A flag in the new row: the letters of all others are flags now.
    flagged = ("7", "v1", "A", "2020-01-02 03:04:05", "", "9 H", "", "")
    night, whole = nights.convert(csv_of([*rows, flagged], "\n", True))
    assert night["rules"] != first["rules"]
    nights.agree(night, whole)


def test_a_first_letter_among_known_blocks_converts_the_whole_file(nights: Nights) -> None:
    rows = rows_of(400)
    nights.convert(csv_of(rows, "\n", True))
    flagged = ("7", "v1", "A", "2020-01-02 03:04:05", "", "8.1 L", "", "")
    night, whole = nights.convert(csv_of([*rows, flagged], "\n", True))
    assert night["followed"] is None and not night["formers"]
    nights.agree(night, whole)


@pytest.mark.parametrize(
    "tail", ["1,v1,A\n", "pid,visit,test,at,known,value,unit,note\n", '1,v1,A,"open', "1 ​,v1,A,,,,,\n"]
)
def test_records_that_are_no_rows_convert_the_whole_file(nights: Nights, tail: str) -> None:
    data = csv_of(rows_of(400), "\n", True)
    nights.convert(data)
    if tail.endswith("open"):
        nights.path.write_bytes(data + tail.encode())
        task = nights.task("night", "2")
        execute(task)
        assert load_record(Path(task.record)) is None
        assert "never closed" in Path(task.record).with_suffix(".error").read_text()
        return
    night, whole = nights.convert(data + tail.encode())
    assert night["followed"] is None and not night["formers"]
    nights.agree(night, whole)
    night, whole = nights.convert(data)
    nights.agree(night, whole)


def test_a_trial_reads_what_was_kept(nights: Nights) -> None:
    rows = rows_of(400)
    nights.convert(csv_of(rows, "\n", True))
    night, whole = nights.convert(csv_of([*rows, rows[0]], "\n", True))
    assert night["formers"]
    bucket = int(next(iter(whole["buckets"])))
    found = []
    for counts in (night, whole):
        result = align_one(nights.folder, {counts["segment"]: counts}, bucket, bound="8" + "0" * 15)
        found.append((result.counts, aligned_events(nights.folder, bucket)))
    assert found[0][0] == found[1][0] and found[0][0]["set_aside"]["outside_limit"]
    assert found[0][1].equals(found[1][1])
