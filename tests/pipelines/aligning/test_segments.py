"""Segments: each piece belongs to one bucket and reads back as it was written; damage is reported."""

from datetime import datetime
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.events.converted import AWAITED, CONVERTED
from extractors.tables import csv_reader
from pipelines import meds
from pipelines.aligning import segments
from pipelines.aligning.segments import (
    SegmentWriter,
    frame_batch,
    read_blob,
    read_frame_blob,
    read_texts,
    texts_batch,
)
from tests.support.raw.raw_tables import (
    align_one,
    aligned_events,
    convert_text,
    csv_text,
    plan_meds,
    read_pieces,
    run_meds,
)
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of

CODES = ["A", "B", "C"]
NIGHT = datetime(1931, 1, 1)
EVENT = st.fixed_dictionaries(
    {
        "subject_id": st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 2**63 - 1]),
        "time": st.sampled_from([None, NIGHT, datetime(2020, 1, 1)]),
        "code": st.integers(0, 2),
        "numeric_value": st.sampled_from([None, 0.0, -1.5]),
        "text_value": st.sampled_from([None, "", "é\n\x00"]),
        "available_time": st.sampled_from([None, NIGHT]),
        "precision": st.integers(0, 5),
        "unit": st.sampled_from([None, 0]),
        "visit_id": st.sampled_from([None, -7]),
        "rule": st.integers(0, 1),
        "availability": st.integers(0, 3),
        "flag": st.sampled_from([None, 2]),
        "row_hash": st.integers(0, 2**64 - 1),
    }
)


def frame_of(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=CONVERTED, orient="row")


def written(path: Path, frames: list[pl.DataFrame], buckets: int) -> dict[str, Any]:
    with SegmentWriter(path, buckets) as writer:
        for number, frame in enumerate(frames):
            # The frame has a column that the segment does not store, and the columns come in another order.
            writer.write(frame.select(reversed(frame.columns)).with_columns(row=number, block=pl.lit(0, pl.UInt32)))
        index = writer.index(CODES)
        assert writer.rows == sum(map(len, frames)) == sum(entry["rows"] for entry in index.values())
        return index


@settings(max_examples=50, deadline=None)
@given(
    st.lists(EVENT, max_size=40), st.lists(st.integers(0, 40), max_size=4), st.sampled_from([1, 2, 5]),
    st.sampled_from([1, 7, 1 << 19]), st.randoms(use_true_random=False),
)  # fmt: skip
def test_pieces_read_back_as_they_were_written(
    rows: list[dict[str, Any]], cuts: list[int], buckets: int, gathered: int, shuffle: Any
) -> None:
    whole = frame_of(rows)
    places = [0, *sorted(cut % (len(rows) + 1) for cut in cuts), len(rows)]
    frames = [whole[start:end] for start, end in pairwise(places)]
    bucket_of_row = bucket_of(whole["subject_id"].to_numpy(), buckets).tolist()
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "GATHERED_ROWS", gathered)
        path = Path(folder) / "one.segment"
        index = written(path, frames, buckets)
        assert set(index) == {str(number) for number in bucket_of_row}
        for number, entry in index.items():
            kept = whole.filter(pl.Series(bucket_of_row, dtype=pl.Int64) == int(number))
            assert read_pieces(path, entry["pieces"]).equals(kept)
            assert entry["rows"] == len(kept)
            waits = kept.filter(pl.col("availability") == AWAITED)["code"]
            assert entry["awaited"] == sorted({CODES[code] for code in waits})
            assert len(entry["pieces"]) <= max(1, len(kept))
        # The hash depends on the rows, not on their order or their pieces.
        patch.setattr(segments, "GATHERED_ROWS", 3)
        again = written(path, [frame_of(shuffle.sample(rows, len(rows)))], buckets)
        assert {number: entry["hash"] for number, entry in again.items()} == {
            n: entry["hash"] for n, entry in index.items()
        }
        if rows:
            rows[0]["row_hash"] ^= 1
            changed = written(path, [frame_of(rows)], buckets)
            assert changed[str(bucket_of_row[0])]["hash"] != index[str(bucket_of_row[0])]["hash"]


def test_a_repeated_row_changes_the_hash(tmp_path: Path) -> None:
    row = dict.fromkeys(CONVERTED) | {"subject_id": 1, "code": 0, "rule": 0, "availability": 0, "row_hash": 5}
    hashes = [written(tmp_path / "s", [frame_of([row] * times)], 1)["0"]["hash"] for times in (1, 2, 3)]
    assert len(set(hashes)) == 3
    # Two rows that differ only in the rule are not a repeated row.
    other = written(tmp_path / "s", [frame_of([row, row | {"rule": 1}])], 1)["0"]["hash"]
    assert other not in hashes


def test_texts_and_frames_read_back(tmp_path: Path) -> None:
    empty = pl.DataFrame(schema={"row": pl.Int64, "reason": pl.String})
    frames = [empty, empty.clear(), pl.DataFrame({"row": [1, 2], "reason": ["a", None]})]
    texts = [[], ["", "é\n\x00"], [f"code {n}" for n in range(3000)]]
    with SegmentWriter(tmp_path / "s", 1) as writer:
        places = [writer.blob(texts_batch(text)) for text in texts]
        others = [writer.blob(frame_batch(frame)) for frame in frames]
        assert writer.index([]) == {}
    assert [read_texts(tmp_path / "s", place) for place in places] == texts
    for frame, place in zip(frames, others, strict=True):
        assert read_frame_blob(tmp_path / "s", place, empty).equals(frame)
    chunked = pl.concat([frames[2], frames[2]], rechunk=False)
    assert frame_batch(chunked).num_rows == 4


ROWS = [(n % 9, f"2020-01-{n % 28 + 1:02d}", n % 5) for n in range(200)]
RULE: dict[str, Any] = {"events": [{"code": "X/{v}", "time": "at"}, {"code": "S/{v}"}]}


def test_flushes_of_any_size_align_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", 150)
    text = csv_text(["pid", "at", "v"], ROWS)
    seen = []
    for gathered, pieces in ((1 << 19, 1), (50, 5), (1, 20)):
        monkeypatch.setattr(segments, "GATHERED_ROWS", gathered)
        _, counts = convert_text(tmp_path, RULE, text)
        assert all(len(count["pieces"]) >= pieces for count in counts["buckets"].values())
        files = []
        for bucket in range(2):
            align_one(tmp_path, {"t-t.csv.segment": counts}, bucket)
            files.append(aligned_events(tmp_path, bucket))
        seen.append(({number: count["hash"] for number, count in counts["buckets"].items()}, files))
    for hashes, files in seen[1:]:
        assert hashes == seen[0][0]
        assert all(file.equals(other) for file, other in zip(files, seen[0][1], strict=True))
    assert sum(map(len, seen[0][1])) == 2 * len({(*row,) for row in ROWS})


# --- damage

MAPPING = "{name: s, subject: pid, tables: {t: {events: [{code: 'X/{v}', time: at, value: v, unit: v}]}}}"


def blobs_of(counts: dict[str, Any]) -> dict[str, Any]:
    pieces = {f"bucket {number}": count["pieces"][0] for number, count in counts["buckets"].items()}
    return {**pieces, **counts["blobs"]}


def test_every_flipped_byte_is_one_line_and_is_extracted_anew(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "t.csv").write_text(csv_text(["pid", "at", "v"], [*ROWS, ("SECRET", None, 0)]))
    first = run_meds(tmp_path, plan_meds(tmp_path, MAPPING))
    ((_, entry),) = first.entries.items()
    segment = tmp_path / "warehouse" / "segments" / entry.counts["segment"]
    whole = segment.read_bytes()
    blobs = blobs_of(entry.counts)
    assert {"codes", "units", "subjects", "lags", "quarantine"} < set(blobs)
    assert sum(length for _, length, _, _ in blobs.values()) <= len(whole)
    for piece in blobs.values():
        place, length, _, _ = piece
        for at in {place, place + length // 2, place + length - 1}:
            assert segment.with_suffix(".json").exists()
            damaged = bytearray(whole)
            damaged[at] ^= 0x10
            segment.write_bytes(damaged)
            with pytest.raises(TimeloomError, match=r"a segment is damaged; run again: .* anew") as caught:
                read_blob(segment, piece, segments.TEXTS)
            assert "SECRET" not in str(caught.value)
            assert str(tmp_path) not in str(caught.value)
            # The record is deleted: the next run converts the raw file again, to the same bytes.
            assert not segment.with_suffix(".json").exists()
            again = run_meds(tmp_path, plan_meds(tmp_path, MAPPING))
            assert (again.ran, again.resumed) == (1, 0)
            assert segment.read_bytes() == whole
    assert run_meds(tmp_path, plan_meds(tmp_path, MAPPING)).resumed == 1


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_truncated_segment_is_extracted_anew(tmp_path: Path, keep: int) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "t.csv").write_text(csv_text(["pid", "at", "v"], ROWS))
    ((_, entry),) = run_meds(tmp_path, plan_meds(tmp_path, MAPPING)).entries.items()
    segment = tmp_path / "warehouse" / "segments" / entry.counts["segment"]
    whole = segment.read_bytes()
    segment.write_bytes(whole[:keep])
    again = run_meds(tmp_path, plan_meds(tmp_path, MAPPING))
    assert again.ran == 1
    assert segment.read_bytes() == whole
    # The file is cut while it is read.
    segment.write_bytes(whole[:keep])
    with pytest.raises(TimeloomError, match="a segment is damaged"):
        read_texts(segment, entry.counts["blobs"]["quarantine"])


def test_a_conversion_that_fails_leaves_no_segment(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "t.csv").write_text(csv_text(["pid", "at", "v"], ROWS) + '1,"never closed')
    with pytest.raises(TimeloomError, match="never closed"):
        run_meds(tmp_path, plan_meds(tmp_path, MAPPING))
    folder = tmp_path / "warehouse" / "segments"
    assert [path.name for path in folder.iterdir() if path.suffix != ".error"] == []


def test_subjects_of_every_segment_are_those_of_the_raw_rows(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    # A subject whose only row is quarantined is still in the list.
    rows = [*ROWS, (77, "rubbish", 1), ("", "2020-01-01", 1)]
    (tmp_path / "raw" / "t.csv").write_text(csv_text(["pid", "at", "v"], rows))
    report = run_meds(tmp_path, plan_meds(tmp_path, MAPPING, {"mode": "synthetic", "subject_ids": "keep"}))
    found = meds.subjects_of(report, tmp_path / "warehouse" / "segments")
    assert sorted(found["subject_id"]) == [*range(9), 77]
    assert found["check"].unique().to_list() == [0]
    assert np.array_equal(found["subject_id"].unique().sort(), found["subject_id"].sort())
