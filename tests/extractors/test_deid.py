"""De-identification: stable ids, whole-week shifts, a guarded key, and no raw identifier in any file under a root."""

import hashlib
import hmac
import os
import re
import stat
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors import deid as deid_module
from extractors.deid import SYNTHETIC_KEY, DeidConfig, Deidentifier, KeyedHash, load_key
from extractors.events.lag_counts import LAGS
from extractors.ids import INVISIBLE, NULL_IDS
from pipelines.aligning.continued import QUARANTINE, SUBJECTS
from pipelines.aligning.segments import read_frame_blob, read_texts
from tests.support.images.indexing import index_images
from tests.support.images.phantoms import write_series
from tests.support.raw.raw_tables import BUCKETS, align_one, aligned_events, convert, csv_text, read_pieces, source_of
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.schemas import ITEMS

KEY = bytes(range(32))
DAY_US = 86_400_000_000
PATIENT, VISIT = "SECRET-PATIENT-4711", "SECRET-VIS-0815"


def text(*values: str | None) -> pl.Series:
    return pl.Series(values, dtype=pl.String)


def hashing(**changes: Any) -> Deidentifier:
    return Deidentifier(DeidConfig(**changes), KEY)


def test_an_id_becomes_the_same_in_any_block_and_order() -> None:
    first, second = hashing(), hashing()
    together = first.subject_ids(text("a", None, "b", "a"))
    assert together[0] == together[3] != together[2]
    assert together[1] is None
    assert second.subject_ids(text("z", "b", "a")).to_list()[1:] == [together[2], together[0]]
    assert together.drop_nulls().min() >= 0
    assert first.subject_ids(text()).to_list() == first.subject_ids(text(None)).drop_nulls().to_list() == []


@pytest.mark.parametrize("length", [0, 32, 64, 65, 200])
def test_the_keyed_hash_is_the_standards(length: int) -> None:
    key, texts = bytes(range(length)), ["", "4711", "ü" * 100, "a\0b"]
    expected = [hmac.digest(key, f"visit\0{value}".encode(), hashlib.sha256) for value in texts]
    hashed = KeyedHash(key)
    assert hashed.digests("visit", texts) == expected == hashed.digests("visit", texts), "nothing is left of the first"
    assert hashed.numbers("visit", texts).astype(">u8").tobytes() == b"".join(expected)
    assert hashed.numbers("visit", []).shape == (0, 4)


def test_an_id_becomes_the_same_in_another_process() -> None:
    program = (
        "import polars as pl; from extractors.deid import *;"
        "d = Deidentifier(DeidConfig(), bytes(range(32))); s = pl.Series(['a', 'ü']);"
        "days = d.offsets(s).dt.total_days().to_list();"
        "print(d.subject_ids(s).to_list(), d.visit_ids(s).to_list(), days, d.item_key('i'))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    deidentifier, raw = hashing(), text("a", "ü")
    ids, visits = deidentifier.subject_ids(raw).to_list(), deidentifier.visit_ids(raw).to_list()
    days = deidentifier.offsets(raw).dt.total_days().to_list()
    assert out.stdout.strip() == f"{ids} {visits} {days} {deidentifier.item_key('i')}"


def test_another_key_gives_other_ids_offsets_and_item_keys() -> None:
    raw = pl.Series([str(number) for number in range(50)])
    deidentifier, other_key = hashing(), Deidentifier(DeidConfig(), bytes(32))
    assert not set(deidentifier.subject_ids(raw)) & set(other_key.subject_ids(raw))
    assert deidentifier.offsets(raw).to_list() != other_key.offsets(raw).to_list()
    assert deidentifier.item_key("x") != other_key.item_key("x")
    assert deidentifier.key_fingerprint != other_key.key_fingerprint


def test_subject_and_visit_ids_of_the_same_text_differ() -> None:
    assert hashing().subject_ids(text("7"))[0] != hashing().visit_ids(text("7"))[0]


def names_nobody(identifier: str) -> bool:
    """Whether an id is blank, or spells that there is none: letter by letter, apart from the code under test."""
    seen = "".join(letter for letter in identifier if not re.match(f"[{INVISIBLE}]", letter)).strip()
    return not seen or seen.lower() in NULL_IDS or re.match(r"[+-]?[0-9](\.[0-9]+)?[eE]\+[0-9]+$", seen) is not None


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(min_size=1) | st.sampled_from([" ", "\u2003", "\ufeff", "NULL", "."]), min_size=1, max_size=30),
    st.binary(min_size=32, max_size=32),
)
def test_offsets_are_whole_weeks_never_zero_and_within_two_years(raw: list[str], key: bytes) -> None:
    offsets = Deidentifier(DeidConfig(), key).offsets(pl.Series(raw)).dt.total_microseconds().to_list()
    for identifier, offset in zip(raw, offsets, strict=True):
        assert (offset is None) is names_nobody(identifier)
        if offset is not None:
            weeks, rest = divmod(offset, 7 * DAY_US)
            assert rest == 0 and weeks != 0 and abs(weeks) <= deid_module.MAX_WEEKS


def test_every_week_of_two_years_either_way_occurs() -> None:
    offsets = hashing().offsets(pl.Series([str(number) for number in range(5000)])).dt.total_days()
    assert set(offsets) == {7 * week for week in range(-104, 105) if week}


def test_intervals_within_a_subject_stand_to_the_microsecond(tmp_path: Path) -> None:
    times = ["1950-01-01 00:00:00", "2020-02-29 23:59:59.999999", "2020-03-01 00:00:00.000001", "2021-10-31 02:30:00"]
    raw = tmp_path / "t.csv"
    raw.write_text(csv_text(["pid", "at"], [(who, at) for who in ("a", "b") for at in times]))
    source = source_of(t={"events": [{"code": "X", "time": "at"}]})
    rows, _ = convert(tmp_path, source, "t", raw, {"mode": "limited"})
    truth = [datetime.fromisoformat(at) for at in times]
    shifts = []
    for events_of_subject in rows.partition_by("subject_id"):
        found = events_of_subject["time"].to_list()
        assert [later - found[0] for later in found] == [later - truth[0] for later in truth]
        shifts.append(found[0] - truth[0])
    assert shifts[0] != shifts[1]
    assert all(shift % timedelta(weeks=1) == timedelta() and shift for shift in shifts)


def test_keep_leaves_ids_and_dates_and_finds_what_is_no_integer() -> None:
    keep = hashing(subject_ids="keep", dates="keep")
    assert keep.subject_ids(text("007", "12", "x", None)).to_list() == [7, 12, None, None]
    assert keep.offsets(text("1", "x", None)).to_list() == [timedelta()] * 3


def test_keep_decides_about_each_visit_id_alone() -> None:
    keep = hashing(subject_ids="keep", dates="keep")
    alone, beside = keep.visit_ids(text("12")), keep.visit_ids(text("12", "V-1", None))
    assert alone[0] == beside[0] == 12
    assert beside[1] == hashing().visit_ids(text("V-1"))[0]
    assert beside[2] is None


def test_kept_ids_that_are_equal_integers_share_one_offset() -> None:
    mixed = hashing(subject_ids="keep", dates="shift")
    ids, offsets = mixed.subject_ids(text("007", "7", "8")), mixed.offsets(text("007", "7", "8"))
    assert ids[0] == ids[1]
    assert offsets[0] == offsets[1] != offsets[2]


def test_two_raw_ids_with_one_hash_have_two_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    deid = hashing()
    real = KeyedHash.digests
    monkeypatch.setattr(
        KeyedHash, "digests", lambda self, domain, texts: [bytes(8) + each[8:] for each in real(self, domain, texts)]
    )
    assert deid.subject_ids(text("a", "b")).to_list() == [0, 0]
    assert len(deid.subject_checks(text("a", "b", "a"))) == 2
    assert len(deid.subject_checks(text("a", "a", " a "))) == 1


def test_safe_harbor_year_is_refused() -> None:
    with pytest.raises(TimeloomError, match="safe_harbor_year"):
        hashing(mode="safe_harbor_year")


def test_the_key_is_made_once_outside_the_root_for_the_owner_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "warehouse")
    assert not layout.private.is_relative_to(layout.root)
    first = load_key(DeidConfig(), layout.private, create=True)
    path = layout.private / "deid.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(layout.private.stat().st_mode) == 0o700
    assert load_key(DeidConfig(), layout.private) == first
    assert load_key(DeidConfig(), tmp_path / "elsewhere", create=True) != first


def test_the_key_is_closed_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load_key(DeidConfig(), tmp_path / "private", create=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "private" / "deid.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", [b"", b"not hexadecimal", b"abcd", b"\xff\xfe\x00", b"00" * 31])
def test_a_damaged_key_is_refused_in_one_line(tmp_path: Path, damage: bytes) -> None:
    load_key(DeidConfig(), tmp_path, create=True)
    (tmp_path / "deid.key").write_bytes(damage)
    with pytest.raises(TimeloomError, match=r"key is (unreadable|too short); restore deid.key") as caught:
        load_key(DeidConfig(), tmp_path, create=True)
    assert "\n" not in str(caught.value)


TEXT = "5a" * 32


@pytest.mark.parametrize("way", ["KEY", "KEY_FILE", "KEY_COMMAND"])
def test_a_machine_may_have_the_key_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    (tmp_path / "key").write_text(f"{TEXT}\n")
    named = {"KEY": TEXT, "KEY_FILE": str(tmp_path / "key"), "KEY_COMMAND": f"cat '{tmp_path / 'key'}'"}
    monkeypatch.setenv(f"TIMELOOM_{way}", named[way])
    assert load_key(DeidConfig(), tmp_path / "private", create=True) == bytes.fromhex(TEXT)
    assert not (tmp_path / "private").exists(), "no other key is made"
    assert load_key(DeidConfig(mode="synthetic"), tmp_path) == SYNTHETIC_KEY


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TIMELOOM_KEY", "5a5a no key"),
        ("TIMELOOM_KEY", "5a" * 31),
        ("TIMELOOM_KEY_FILE", "/absent/5a5a"),
        ("TIMELOOM_KEY_COMMAND", "false 5a5a"),
        ("TIMELOOM_KEY_COMMAND", "echo 5a5a no key"),
        ("TIMELOOM_KEY_COMMAND", "/absent/5a5a"),
        ("TIMELOOM_KEY_COMMAND", "echo '5a5a"),
    ],
)
def test_a_key_elsewhere_that_is_none_is_one_line_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(TimeloomError) as caught:
        load_key(DeidConfig(), tmp_path, create=True)
    assert str(caught.value).startswith(f"the de-identification key that {variable} names is ")
    assert "5a5a" not in repr(caught.value)
    assert caught.value.__cause__ is None, "nothing that quotes it"


def test_a_key_is_named_in_one_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMELOOM_KEY", TEXT)
    monkeypatch.setenv("TIMELOOM_KEY_COMMAND", "false")
    with pytest.raises(TimeloomError, match="TIMELOOM_KEY and TIMELOOM_KEY_COMMAND are both set; name the key in one"):
        load_key(DeidConfig(), tmp_path)


def test_a_machine_is_held_to_the_fingerprint_of_the_key(tmp_path: Path) -> None:
    key = load_key(DeidConfig(), tmp_path, create=True)
    fingerprint = Deidentifier(DeidConfig(), key).key_fingerprint
    assert Deidentifier.held_to(DeidConfig(), tmp_path, fingerprint).item_key("x") == Deidentifier(
        DeidConfig(), key
    ).item_key("x")
    load_key(DeidConfig(), tmp_path / "other", create=True)
    with pytest.raises(TimeloomError, match="is not the one that the root was made with") as caught:
        Deidentifier.held_to(DeidConfig(), tmp_path / "other", fingerprint)
    assert key.hex() not in str(caught.value)


def test_synthetic_patients_need_no_key_file(tmp_path: Path) -> None:
    load_key(DeidConfig(mode="synthetic"), tmp_path / "private")
    assert not (tmp_path / "private").exists()


def _holders(folder: Path, *needles: str) -> set[str]:
    """Files that hold a needle in their name, in their bytes, or in any value that Parquet stores compressed."""
    holders = set()
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        held = path.read_bytes() + str(path.relative_to(folder)).encode()
        if path.suffix == ".parquet":
            held += str(pq.read_table(path).to_pydict()).encode() + str(pq.read_schema(path).metadata).encode()
        if any(needle.encode() in held for needle in needles):
            holders.add(path.name)
    return holders


FRAMES = {"subjects": SUBJECTS, "lags": LAGS, "quarantine": QUARANTINE}


def test_no_raw_identifier_in_any_file_under_a_root(tmp_path: Path) -> None:
    raw, layout = tmp_path / "raw", Layout(tmp_path / "warehouse")
    raw.mkdir()
    (raw / "t.csv").write_text(csv_text(["pid", "visit", "at"], [(PATIENT, VISIT, "2020-01-01"), ("p2", VISIT, "x")]))
    write_series(tmp_path / "ct" / PATIENT, PatientID=PATIENT, PatientName=PATIENT, AccessionNumber=VISIT[:16])
    deid = {"mode": "expert"}
    source = source_of(t={"visit": "visit", "events": [{"code": "X", "time": "at"}]})
    layout.root.mkdir()
    _, counts = convert(layout.segments, source, "t", raw / "t.csv", deid, private=layout.private)
    items, _ = index_images(tmp_path, "ct", {"path": str(tmp_path / "ct")}, deid=deid, buckets=BUCKETS)
    assert items["verdict"].to_list() == ["ok"]
    for bucket in range(BUCKETS):
        items_of_bucket = items.filter(pl.col("bucket") == bucket).with_columns(
            *(pl.lit(0, pl.Int32).alias(name) for name in ("units_encoded", "units_failed", "dim")),
            *(pl.lit(None, pl.String).alias(name) for name in ("store", "encoder")),
        )
        align_one(layout.segments, {counts["segment"]: counts}, bucket, items_of_bucket.select(ITEMS.names))
    events = pl.concat([aligned_events(layout.segments, bucket) for bucket in range(BUCKETS)])
    assert len(events) == 2

    segment = layout.segments / counts["segment"]
    texts = [read_texts(segment, counts["blobs"][name]) for name in ("codes", "units")]
    frames = [read_frame_blob(segment, counts["blobs"][name], empty) for name, empty in FRAMES.items()]
    pieces = [read_pieces(segment, count["pieces"]) for count in counts["buckets"].values()]
    # A segment is compressed, so its contents are searched and not its bytes.
    contents = str([texts, *(frame.to_dict(as_series=False) for frame in (*frames, *pieces))])
    assert not any(needle in contents for needle in (PATIENT, VISIT, "p2"))
    assert "unparsable_time" in contents
    uids = ("2.25.1", "2.25.99", "2.25.98")
    assert _holders(layout.root, PATIENT, VISIT, *uids) == set()
    held = {path.parent.name for path in layout.private.rglob("*") if path.name in _holders(layout.private, PATIENT)}
    assert held == {"scanned", "grouped"}
    # The same scan finds an identifier that is there: the raw files themselves, and a planted Parquet file.
    assert "t.csv" in _holders(raw, PATIENT)
    pl.DataFrame({"x": [PATIENT] * 1000}).write_parquet(layout.root / "leak.parquet")
    assert _holders(layout.root, PATIENT) == {"leak.parquet"}
